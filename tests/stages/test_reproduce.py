"""The paper's tables in one command, as far as that it runs: two updates of each training, on phantoms."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from anatomask.cli.main import main


def stages(runs: Path) -> dict[str, int]:
    """Time at which each run in the store last changed its weights or scores, by the run's name."""
    made = [*runs.glob("store/*/checkpoints/index.json"), *runs.glob("store/*/summary.json")]
    return {path.relative_to(runs / "store").parts[0]: path.stat().st_mtime_ns for path in made}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_tables_on_two_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables 2 and 3 share AnatoMask itself, which is made once; the same command again makes nothing anew."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("first", "second")):
        phantom = ["phantom", "--out", f"scans-{name}", "--cases", "4", "--size", "48", "--spacing", "6"]
        assert main([*phantom, "--seed", str(seed)]) == 0
        prepare = ["--preprocess.spacing", "8", "8", "8", "--preprocess.classes", "liver", "spleen"]
        assert main(["prepare", "--recipe", "tiny", "--source", f"scans-{name}", "--out", name, *prepare]) == 0
    command = ["reproduce", "--scale", "phantom", "--tables", "2", "3", "--data", "a=first", "b=second"]
    command += ["--runs", "runs", "--split", "test"]
    assert main([*command, "--dry-run"]) == 0
    capsys.readouterr()
    assert main(command) == 0
    made = stages(Path("runs"))
    verbs = Counter(name.partition("-")[0] for name in made)
    rows = {row["method"] for row in csv.DictReader(Path("runs/reproduction/table.csv").read_text().splitlines())}
    assert verbs["pretrain"] == verbs["finetune"] == verbs["evaluate"] > 5
    assert rows
    paper = Path("runs/reproduction/paper.md").read_text()
    assert "Table 2" in paper and "Table 3" in paper
    assert (Path("runs/reproduction") / "report.html").is_file()
    assert main(command) == 0
    assert stages(Path("runs")) == made
