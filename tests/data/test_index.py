"""The index of a prepared data set: what is damaged, doubled or mixed up is refused when it is opened."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anatomask.data.index import FORMAT, FORMAT_WITHOUT_DIGESTS, write_index
from anatomask.data.shards import PreparedDataset
from anatomask.errors import Note, UserError

SPLITS = {"train": ["one"], "val": ["two"], "test": ["three"], "unlabeled": [], "unlabeled_test": []}


@pytest.fixture
def three(prepared: Callable[..., PreparedDataset]) -> Callable[..., Path]:
    """Write the index of three scans in a version of the format; returns the folder. Only one scan has a file."""

    def make(version: int = FORMAT, patients: Sequence[str] = "abc") -> Path:
        one = prepared(np.arange(512, dtype=np.int16).reshape(8, 8, 8))
        records = [
            replace(one.records["one"], case=case, patient=patient)
            for case, patient in zip(SPLITS["train"] + SPLITS["val"] + SPLITS["test"], patients, strict=True)
        ]
        write_index(one.path, one.info, records, SPLITS, one.fingerprint, format=version)
        return Path(one.path)

    return make


def test_an_index_comes_back_without_a_note(three: Callable[..., Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        dataset = PreparedDataset.open(str(three()))
    assert {name: list(cases) for name, cases in dataset.splits.items()} == SPLITS
    assert sorted(dataset.records) == ["one", "three", "two"]


@pytest.mark.parametrize("version", [FORMAT, FORMAT_WITHOUT_DIGESTS])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("cases.jsonl", lambda text: text + text.splitlines(keepends=True)[1], "line 4 lists case 'three' a second"),
        ("cases.jsonl", lambda text: text.replace('"mean":255.5', '"mean":NaN', 1), "line 1: NaN where a finite"),
        ("cases.jsonl", lambda text: text.replace('"minimum":0.0', '"minimum":-Infinity', 1), "line 1: -Infinity"),
        ("cases.jsonl", lambda text: re.sub(r'"channels":\[.*?\]', '"channels":[]', text), "'one' has 0 channels"),
        ("fingerprint.json", lambda text: text.replace('"mean": 255.5', '"mean": NaN'), "NaN where a finite"),
        ("fingerprint.json", lambda text: text.replace('"mean": 255.5', '"mean": 1e999'), "mean of channel 'channel0'"),
        ("fingerprint.json", lambda text: text.replace('"mean": 255.5', '"mean": "wide"'), "is 'wide'"),
        ("fingerprint.json", lambda text: json.dumps({"channels": []}), "it has 0 channels, the data set 1"),
        ("splits.json", lambda text: text.replace('"two"', '"one"'), "case 'one' is in train and in val"),
        ("splits.json", lambda text: text.replace('"three"', '"one"'), "case 'one' is in train and in test"),
        ("splits.json", lambda text: text.replace('"three"', '"two"'), "case 'two' is in val and in test"),
        ("splits.json", lambda text: text.replace('"one"', '"one", "one"'), "train names case 'one' twice"),
        ("splits.json", lambda text: text.replace('"one"', '"nine"'), "train names case 'nine', which was not"),
    ],
)
def test_what_cannot_be_is_refused(
    version: int, name: str, change: Callable[[str], str], message: str, three: Callable[..., Path]
) -> None:
    folder = three(version)
    before = (folder / name).read_text()
    (folder / name).write_text(change(before))
    assert change(before) != before
    with pytest.raises(UserError, match=rf"{name} is damaged .*{message}.*anatomask prepare --overwrite"):
        PreparedDataset.open(str(folder))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("cases.jsonl", '"mean":255.5', '"mean":255.4'),
        ("cases.jsonl", '"patient":"a"', '"patient":"b"'),
        ("fingerprint.json", "255.5", "215.5"),
        ("dataset.json", "2.0", "2.4"),
        ("dataset.json", '"name": "test"', '"name": "tess"'),
    ],
)
def test_a_digit_that_changed_is_noticed(name: str, old: str, new: str, three: Callable[..., Path]) -> None:
    folder = three()
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"{name} is damaged .*does not match its checksum.*--overwrite"):
        PreparedDataset.open(str(folder))


def test_an_older_folder_is_read_with_a_note(three: Callable[..., Path]) -> None:
    folder = three(FORMAT_WITHOUT_DIGESTS)
    assert "digests" not in json.loads((folder / "dataset.json").read_text())
    with pytest.warns(Note, match=r"prepared by an older version and has no checksums.*--overwrite"):
        assert len(PreparedDataset.open(str(folder)).records) == 3


def test_a_patient_on_both_sides_is_a_note_and_a_split_of_ones_own_may_hold_any_case(
    three: Callable[..., Path],
) -> None:
    folder = three(patients="aba")
    with pytest.warns(Note, match=r"splits\.json: .*both in train and in val or test: 1, the first a;"):
        PreparedDataset.open(str(folder))
    (folder / "splits.json").write_text(json.dumps({"train": ["one"], "val": ["two"], "quick": ["one", "two"]}))
    assert PreparedDataset.open(str(folder)).splits["quick"] == ("one", "two")
