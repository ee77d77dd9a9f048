"""What is allowed and may surprise is said in one line each, on a real scan."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from anatomask.cli.main import main
from anatomask.data.phantom import write_phantom
from anatomask.data.settings import PhantomConfig
from anatomask.data.shards import PreparedDataset
from anatomask.stages.remarks import (
    labels_besides,
    large_crops,
    little_context,
    other_data,
    sides_unknown,
    unused_folds,
    watched_test_cases,
)
from anatomask.training.fixed_scans import FixedCases


def test_crops_that_most_scans_are_smaller_than_are_told(head: PreparedDataset) -> None:
    """The scan has 55 x 68 x 109 voxels."""
    assert large_crops(head, ["one"], (55, 68, 109)) == large_crops(head, ["one"], (48, 48, 48)) == []
    (text,) = large_crops(head, ["one"], (64, 64, 64))
    assert "64 x 64 x 64 voxels are larger than 1 of the 1 scans" in text and "55 x 68 x 109" in text
    record = head.records["one"]
    head.records |= {f"c{n}": dataclasses.replace(record, shape=(100, 100, 100)) for n in range(2)}
    assert large_crops(head, ["one", "c0", "c1"], (64, 64, 64)) == []


def test_test_cases_that_are_watched_are_told(head: PreparedDataset) -> None:
    head.splits = {"train": (), "val": (), "test": ("one",)}
    (text,) = watched_test_cases(head, FixedCases(("one",), held_out=True))
    assert "test cases" in text and text.endswith("one")
    assert watched_test_cases(head, FixedCases(("one",), held_out=False)) == []
    head.splits = {"train": (), "val": ("one",), "test": ()}
    assert watched_test_cases(head, FixedCases(("one",), held_out=True)) == []


def test_weights_of_other_data_are_told(head: PreparedDataset) -> None:
    same: dict[str, Any] = {"spacing": list(head.spacing), "fingerprint": head.fingerprint.to_dict()}
    assert other_data(same, head) == other_data({}, head) == []
    (text,) = other_data(same | {"spacing": [2 * mm for mm in head.spacing]}, head)
    assert "--preprocess.spacing " + " ".join(f"{2 * mm:g}" for mm in head.spacing) in text
    (channel,) = same["fingerprint"]["channels"]
    (text,) = other_data(same | {"fingerprint": {"channels": [channel | {"name": "MR", "scheme": "zscore"}]}}, head)
    assert "trained on MR as zscore" in text and f"has {channel['name']} as {channel['scheme']}" in text


def test_folds_that_are_all_trained_on_are_told(head: PreparedDataset) -> None:
    assert unused_folds(head, None) == []
    head.splits = {"train": ("one",), "fold_0": ("one",), "fold_1": ()}
    assert unused_folds(head, 1) == []
    assert unused_folds(head, None) == ["the cases of all 2 folds are trained on; to leave one out, --fold 0 to 1"]


def test_scans_that_are_small_beside_a_window_are_told() -> None:
    window = (64, 64, 32)
    assert little_context({"a": (32, 64, 300), "b": (64, 500, 16)}, window) == []
    (text,) = little_context({"a": (32, 64, 300), "thin": (200, 31, 7), "c": (64, 64, 32)}, window)
    assert "more padding than scan in 1 of the 3 scans" in text and "(thin 7 of 32 voxels along S)" in text


def test_labels_that_choose_the_checkpoint_are_told() -> None:
    assert labels_besides(["a"], ["b", "c"], 1.0) == labels_besides(["a"], [], 0.1) == []
    (text,) = labels_besides(["a"], ["b", "c"], 0.1)
    assert "besides the 1 labelled cases of --train-fraction 0.1, 2 more" in text


def test_mirroring_of_classes_that_may_have_sides_is_told() -> None:
    (text,) = sides_unknown(["class 1", "class 2"], (0, 1, 2))
    assert "mirrored from left to right" in text and "--reader.label-names" in text
    assert sides_unknown(["class 1"], (1, 2)) == sides_unknown(["liver"], (0, 1, 2)) == []


def test_a_spacing_that_beats_the_recipes_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list(write_phantom(PhantomConfig(out=str(tmp_path / "raw"), cases=1, size=32, spacing=8.0), overwrite=False))
    command = ["prepare", "--source", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--dry-run"]
    for recipe, told in (("tiny", True), ("paper-b", False)):
        assert main([*command, "--recipe", recipe, "--plan.sample", "0"]) == 0
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert ("defines 1.5 x 1.5 x 1.5 mm, so the recipe's 7 x 7 x 7 mm are not used" in shown) is told
