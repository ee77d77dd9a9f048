from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anatomask.errors import UserError
from anatomask.runs.checkpoint_index import read_index
from anatomask.training.checkpoints import Checkpoints
from anatomask.weights.files import find_weights

DAMAGED: list[Any] = [
    *(5, [], "x", None, True),
    {"last": "../../../x"},
    {"last": ".."},
    {"last": "/etc"},
    {"last": 5},
    {"last": "step_1", "best": "step_1/../../x"},
    {"last": "step_00000001", "step": "1"},
    {"last": "step_00000001", "step": -1},
    {"last": "step_00000001", "step": None},
    {"last": "step_00000001", "step": 1, "best_score": "high"},
]


@pytest.mark.parametrize("text", [*map(json.dumps, DAMAGED), "{", "[" * 100_000, "\0"])
def test_a_damaged_index_is_named_and_leads_nowhere(text: str, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "index.json").write_text(text)
    with Checkpoints(tmp_path / "run") as checkpoints:
        for read in (checkpoints.step, checkpoints.index, lambda: find_weights(tmp_path / "run")):
            with pytest.raises(UserError, match=r"index\.json is damaged .*begin the run anew with --overwrite"):
                read()


def test_an_index_is_read_and_none_is_empty(tmp_path: Path) -> None:
    assert read_index(tmp_path) == {}
    index = {"last": "step_00000002", "step": 2, "best": "step_00000001", "best_step": 1, "best_score": 0.5}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert read_index(tmp_path) == index


def test_a_folder_named_almost_like_a_checkpoint_is_not_removed(tmp_path: Path) -> None:
    mine = tmp_path / "checkpoints" / "step_00000001_of_my_thesis"
    mine.mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000001").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints._write(2, {}, {}, {}, {}, None, None)
    assert mine.is_dir() and not (tmp_path / "checkpoints" / "step_00000001").exists()
