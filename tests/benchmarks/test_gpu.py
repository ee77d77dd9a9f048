"""The GPU program runs whole on a CPU, where only what a GPU machine has can be imported, and ends in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu import OUTCOME, Part, Results, run
from gpu_pack import pack
from openkbp import prepared

from anatomask.weights.files import method_label, trained_stages
from anatomask.weights.tensor_files import read_described

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(ROOT / "benchmarks" / "gpu.py")
ABSENT = """
from functools import partial  # no descriptor, as the bound method that it replaces
from importlib.machinery import PathFinder
absent = {"ray", "monai", "nibabel", "blosc2", "tyro", "optuna", "pydantic", "sqlalchemy", "pydicom", "pyarrow"}
found = PathFinder.find_spec
PathFinder.find_spec = partial(
    lambda name, *rest, **named: None if name.partition(".")[0] in absent else found(name, *rest, **named)
)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute on two quiet cores
def test_all_parts_run_where_neither_ray_nor_monai_is(real_data: Path, tmp_path: Path) -> None:
    dataset = prepared(real_data, tmp_path / "shards", limit=2)
    data, out = tmp_path / "scans.gpu", tmp_path / "out"
    pack(dataset, dataset.records, data)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(ABSENT)
    done = subprocess.run(
        [sys.executable, PROGRAM, "--device", "cpu", "--quick", "--minutes", "25", "--data", data, "--out", out],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{done.stderr[-2000:]}\n{(out / 'table.txt').read_text()}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert {part: each["status"] for part, each in result["parts"].items()} == dict.fromkeys("abcd", "done")
    assert result["machine"]["torch"]
    found = {each["what"]: each for each in result["found"]}
    assert "skipped" in found["tests"]["says"]
    assert {f"base 4, 1 labels, {arm}" for arm in ("scratch", "spark", "anatomask")} <= found.keys()
    assert found["base 4, 1 labels, anatomask - scratch"]["patients"] == 2
    assert found["S blocks, tf32, batch 1"]["samples_per_second"] > 0
    assert found["encoder"]["blocks_over_dense"] > 0
    assert [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()] == result["found"]
    weights = read_described(out / "base4-spark.safetensors")  # with the checks of weights from elsewhere
    assert method_label(weights.header) == "SparK" and trained_stages(weights.header) == 4
    assert {"base4-anatomask.safetensors", "base4-spark.safetensors", "table.txt", "log.txt"} <= {
        path.name for path in out.iterdir()
    }


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


SAYS = 'print(\'{"what": "%s", "says": "1"}\', flush=True)'
SLEEPS = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"


def test_a_part_that_hangs_is_ended_with_what_it_started_and_keeps_what_it_found(tmp_path: Path) -> None:
    hanging = f"{SLEEPS} import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SAYS % 'first'}; time.sleep(60)"
    part = Part("b", [program(hanging), program(SAYS % "second")], told_time=False)
    start = time.monotonic()
    run(part, start + 4, Results(tmp_path))
    assert time.monotonic() - start < 15
    assert part.status == "ended at its limit"
    assert sorted(each["what"] for each in part.found) == ["first", "second"]
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert sorted(each["what"] for each in lines) == ["first", "second"]


def test_a_part_that_fails_says_so_and_the_log_has_why(tmp_path: Path) -> None:
    part = Part("c", [program(f"{SAYS % 'first'}; raise ValueError('why')")], told_time=False)
    run(part, time.monotonic() + 60, Results(tmp_path))
    assert part.status == "failed with exit codes [1]" and len(part.found) == 1
    assert "ValueError: why" in (tmp_path / "log.txt").read_text()


def test_programs_learn_how_much_time_is_left(tmp_path: Path) -> None:
    told = "import json, sys; print(json.dumps({'what': sys.argv[1], 'says': sys.argv[2]}))"
    part = Part("b", [program(told)], told_time=True)
    run(part, time.monotonic() + 108, Results(tmp_path))
    assert part.found[0]["what"] == "--seconds" and 95 <= float(part.found[0]["says"]) <= 101


def test_a_later_finding_replaces_one_of_the_same_name_in_the_table(tmp_path: Path) -> None:
    part, results = Part("b", [], told_time=False), Results(tmp_path)
    for says, detail in (("old", False), ("new", False), ("hidden", True)):
        results.take(part, json.dumps({"what": "x" if not detail else "y", "says": says, "detail": detail}))
    results.take(part, "not { json")
    results.take(part, "{neither}")
    table = results.table([part])
    assert "new" in table and "old" not in table and "hidden" not in table
    assert (tmp_path / "table.txt").read_text() == table + "\n"
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 5


def test_outcomes_of_tests_are_read() -> None:
    match = OUTCOME.match("tests/a.py::test_b[x y-1] FAILED [ 50%]")
    assert match is not None and match.groups() == ("tests/a.py::test_b[x y-1]", "FAILED")


def test_ended_from_outside_it_prints_what_it_has(tmp_path: Path) -> None:
    command = [sys.executable, PROGRAM, "--device", "cpu", "--quick", "--parts", "d", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    )
    while not (tmp_path / "log.txt").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads(printed.splitlines()[-1])["parts"]["d"]["status"] in ("cut off", "not run")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--device", "cpu", "--data", "nowhere.gpu"], "gpu_pack.py"),
        (["--device", "cuda", "--parts", "d"], "sees no GPU"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(flags: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, "--out", tmp_path / "out", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
