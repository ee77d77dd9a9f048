"""The evaluation in a run's folder: whose it is, and its scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anatomask.data.index import data_digest
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.results import IDENTITY_FILE
from anatomask.evaluation.settings import InferenceConfig
from anatomask.runs.belongings import claim_folder
from anatomask.runs.evaluation import claim_evaluation, evaluation_identity, read_scores

TEST = {"split": "test", "checkpoint": "best", "weights": "abc"}


def test_an_evaluation_is_known_by_what_decides_its_scores(
    prepared: Callable[..., PreparedDataset], tmp_path: Path
) -> None:
    """These digests lie in `evaluation.json` and `inputs.json` since the first version; windows have a number since."""
    dataset = prepared(np.arange(4096, dtype=np.int16).reshape(16, 16, 16))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    cases, splits = (dataset.storage.read(name) for name in ("cases.jsonl", "splits.json"))
    named = evaluation_identity(dataset, "test", "best", tmp_path, InferenceConfig(), ("nsd", "lesions"))
    assert named["metrics"] == ["lesions", "nsd"]
    assert evaluation_identity(dataset, "test", "best", tmp_path, InferenceConfig(batch=7)) == {
        "data": dataset.path,
        "prepared": hashlib.sha256(cases).hexdigest(),
        "split": "test",
        "checkpoint": "best",
        "weights": hashlib.sha256(b"weights").hexdigest(),
        "inference": {"overlap": 0.5, "mirror": True, "windows": 2},
    }
    assert data_digest(dataset.storage, splits=True) == hashlib.sha256(cases + splits).hexdigest()


def test_an_evaluation_with_the_windows_of_an_earlier_version_is_not_continued(tmp_path: Path) -> None:
    now = {**TEST, "inference": {"overlap": 0.5, "mirror": True, "windows": 2}}
    claim_evaluation(Storage(tmp_path), {**now, "inference": {"overlap": 0.5, "mirror": True}}, overwrite=False)
    with pytest.raises(UserError, match=r"inference.*--overwrite evaluates it anew"):
        claim_evaluation(Storage(tmp_path), now, overwrite=False)


@pytest.mark.parametrize("text", ['{"cut', "[]"])
def test_a_damaged_identity_in_a_run_says_overwrite(text: str, tmp_path: Path) -> None:
    claim_folder(tmp_path)
    (tmp_path / IDENTITY_FILE).write_text(text)
    with pytest.raises(UserError, match=r"evaluation\.json is damaged.*--overwrite"):
        claim_evaluation(Storage(tmp_path), TEST, overwrite=False)
    claim_evaluation(Storage(tmp_path), TEST, overwrite=True)
    claim_evaluation(Storage(tmp_path), TEST, overwrite=False)


@pytest.mark.parametrize("text", ['{"cut', "[]", '{"split": "mine"}'])
def test_a_folder_of_others_loses_nothing_by_its_evaluation_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    names = (IDENTITY_FILE, "predictions/a.csv", "predictions/a.nii.gz", "cases.csv", "summary.json")
    for name in names:
        (tmp_path / name).write_text(text)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"evaluation\.json is damaged.*; move it elsewhere$"):
            claim_evaluation(Storage(tmp_path), TEST, overwrite=overwrite)
    assert all((tmp_path / name).read_text() == text for name in names)


def test_what_no_evaluation_wrote_is_neither_deleted_nor_counted(tmp_path: Path) -> None:
    """Even without --overwrite, an evaluation emptied any folder named predictions."""
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "mine.nii.gz").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"predictions is there, but no evaluation wrote it; move it elsewhere"):
            claim_evaluation(Storage(tmp_path), TEST, overwrite=overwrite)
    (tmp_path / IDENTITY_FILE).write_text(json.dumps({**TEST, "split": "val"}))
    for name in ("predictions/a.csv", "predictions/a.nii.gz", "cases.csv", "summary.json"):
        (tmp_path / name).write_text("ours")
    claim_evaluation(Storage(tmp_path), TEST, overwrite=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"predictions/mine.nii.gz", IDENTITY_FILE}


@pytest.mark.parametrize("content", [b"run,case\na,b\n", b"\xff\xfe\n\x00"])
def test_damaged_scores_of_a_case_say_which_file_to_delete(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "s1.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"predictions/s1\.csv is not a table of scores .*delete that file"):
        read_scores(Storage(tmp_path), "s1")
