"""What `anatomask evaluate` decides before and after the work; no Ray is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from anatomask.cluster_settings import ClusterConfig
from anatomask.config import EvaluateConfig
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.stages.evaluate import IDENTITY_FILE, TASK_BYTES, _claim, _memory, _read_scores, _resources, _verdict

GIB = 2**30


def test_the_memory_is_that_of_the_case_that_needs_most(
    make_dataset: Callable[..., PreparedDataset], blobs: Callable[..., np.ndarray]
) -> None:
    dataset = make_dataset({"small": blobs((8, 8, 8)), "large": blobs((40, 30, 20))})
    memory, case = _memory(dataset, ["small", "large"], (32, 32, 32))
    assert case == "large"
    padded, source = 40 * 32 * 32, 40 * 30 * 20
    assert memory == TASK_BYTES + padded * (4 * 3 + 4 + 6) + source * 15


def test_a_case_that_fits_no_node_is_refused_with_its_need(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "memory": 10.0 * GIB}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0, "memory": 4.0 * GIB}},
        {"Alive": False, "Resources": {"CPU": 64.0, "memory": 900.0 * GIB}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    cpu = EvaluateConfig(run="x", cluster=ClusterConfig(gpu=False))
    assert _resources(cpu, 2, 9 * GIB, "s1") == (4, False)
    with pytest.raises(UserError, match=r"case s1 needs 11\.0 GiB of memory .* 10\.0 GiB for Ray"):
        _resources(cpu, 2, 11 * GIB, "s1")
    with pytest.raises(UserError, match=r"case s1 needs 9\.0 GiB .* 4\.0 GiB for Ray"):
        _resources(EvaluateConfig(run="x"), 2, 9 * GIB, "s1")


@pytest.mark.parametrize("text", ['{"cut', "[]"])
def test_a_damaged_identity_says_overwrite(text: str, tmp_path: Path) -> None:
    (tmp_path / IDENTITY_FILE).write_text(text)
    with pytest.raises(UserError, match=r"evaluation\.json is damaged.*--overwrite"):
        _claim(Storage(tmp_path), {"split": "test"}, overwrite=False)
    _claim(Storage(tmp_path), {"split": "test"}, overwrite=True)
    _claim(Storage(tmp_path), {"split": "test"}, overwrite=False)


def test_what_no_evaluation_wrote_is_neither_deleted_nor_counted(tmp_path: Path) -> None:
    """Even without --overwrite, an evaluation emptied any folder named predictions."""
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "mine.nii.gz").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"predictions is there, but no evaluation wrote it; move it elsewhere"):
            _claim(Storage(tmp_path), {"split": "test"}, overwrite)
    (tmp_path / IDENTITY_FILE).write_text('{"split": "val"}')
    for name in ("predictions/a.csv", "predictions/a.nii.gz", "cases.csv", "summary.json"):
        (tmp_path / name).write_text("ours")
    _claim(Storage(tmp_path), {"split": "test"}, overwrite=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"predictions/mine.nii.gz", IDENTITY_FILE}


@pytest.mark.parametrize("content", [b"run,case\na,b\n", b"\xff\xfe\n\x00"])
def test_damaged_scores_of_a_case_say_which_file_to_delete(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "s1.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"predictions/s1\.csv is not a table of scores .*delete that file"):
        _read_scores(Storage(tmp_path), "s1")


def test_the_verdict_without_any_class_present() -> None:
    nothing = {"mean": None, "sd": None}
    summary: dict[str, Any] = {
        "run": "r", "dataset": "d", "split": "test", "cases": 0, "failed": {}, "dsc": nothing, "nsd": nothing
    }  # fmt: skip
    assert _verdict(summary) == "r on d (test): DSC – %, NSD – %, 0 cases"
    summary |= {"dsc": {"mean": 0.5, "sd": 0.01}, "nsd": {"mean": 0.25, "sd": None}, "cases": 2}
    assert _verdict(summary) == "r on d (test): DSC 50.0 ± 1.0 %, NSD 25.0 %, 2 cases"
