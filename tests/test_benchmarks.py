"""Every benchmark runs, and its last line is the JSON that others read. How fast anything is, is not asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENCODER = ("blocks_over_dense", "blocks_over_spconv")
STEP = ("step_over_published", "samples_per_second", "share_of_peak", "peak_memory_gib")
PRECISION = ("compared", "final_val_loss", "seconds_per_update")
TRAINING = ("data_wait_share", "checkpoint_share", "workers")
LOADER = ("bytes_read_over_crop", "first_batch_s", "peak_memory_gib", "memory_growth_mib", "mib_per_volume")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("program", "keys"),
    [
        ("encoder", ENCODER),
        ("pretrain_step", STEP),
        ("upsampling", ("library_over_ours",)),
        ("loader", LOADER),
        ("space", ("mib_per_scan", "bytes_per_voxel")),
        ("precision", PRECISION),
        ("training", TRAINING),
        ("recipe_costs", ("costs",)),
        ("methods", ("methods",)),
        ("checksums", ("checking_over_loading", "gb_per_s", "weights_s")),
        ("metrics", ("seconds", "classes")),
        ("finetune_step", ("ours",)),
        ("augmentation", ("found",)),
        ("inference", ("ours",)),
        ("scaling", ("split", "recipes", "predictions", "index", "assumed")),
        ("startup", ("seconds_to_first_update", "anatomask_over_bare")),
        ("demo", ("kept", "of", "demos")),
        ("node_setup", ("seconds", "installed_gb")),
    ],
)
def test_quick_run_ends_with_its_figures(program: str, keys: tuple[str, ...], request: pytest.FixtureRequest) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{program}.py"), "--quick"]
    if program in ("loader", "space", "precision", "training", "checksums", "finetune_step", "inference", "startup"):
        command += ["--scans", str(request.getfixturevalue("real_data"))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(keys) <= result.keys()
    assert result["machine"]["torch"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_experiment_on_methods_runs_and_writes_its_page(real_data: Path, tmp_path: Path) -> None:
    """Two methods, the networks that they start and those from scratch."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program, scans = str(ROOT / "benchmarks" / "methods_evidence.py"), str(real_data / "openkbp")
    command = [sys.executable, program, "--quick", "--out", str(tmp_path), "--scans", scans, "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["records"] == 4
    report = [sys.executable, str(ROOT / "benchmarks" / "methods_report.py"), "--records", str(tmp_path / "records")]
    subprocess.run([*report, "--out", str(tmp_path / "methods.md")], check=True, env=environment)
    assert "| `mae-small` | 4 | 1 |" in (tmp_path / "methods.md").read_text()
