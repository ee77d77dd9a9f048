"""The same preparation again: a split that is written is never redrawn, and never changed without a word. No Ray."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from anatomask.cli.main import main
from anatomask.data.shards import PreparedDataset
from tests.bad_input import world
from tests.bad_input.kinds import FRESH

SPLITS = Path("out/splits.json")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the test runs, with scans."""
    world.write_scans(tmp_path / "scans")
    world.without_ray(monkeypatch, world.save_untrained)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_split_that_was_edited_is_kept_and_a_case_that_was_skipped_joins(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = here / "scans" / "imagesTr" / "anna_0000.nii.gz"
    good = scan.read_bytes()
    scan.write_bytes(good[:500])
    assert main(FRESH.split()) == 1
    drawn = json.loads(SPLITS.read_text())
    assert "is kept as it is" not in shown(capsys)
    drawn["test"].append(drawn["train"].pop())
    SPLITS.write_text(json.dumps(drawn))
    scan.write_bytes(good)
    assert main([*FRESH.split(), "--dry-run"]) == 0
    assert main(FRESH.split()) == 0
    assert f"splits.json is kept as it is, though these settings would put {drawn['test'][-1]} into other" in shown(
        capsys
    )
    kept = {name: list(cases) for name, cases in PreparedDataset.open("out").splits.items()}
    assert sorted(case for cases in kept.values() for case in cases) == sorted(world.CASES)
    assert {name: [case for case in cases if case != "anna"] for name, cases in kept.items()} == drawn
    before = SPLITS.read_bytes()
    assert main(FRESH.split()) == 0
    assert SPLITS.read_bytes() == before
    assert main([*FRESH.split(), "--overwrite"]) == 0
    assert json.loads(SPLITS.read_text()) != kept and "is kept as it is" not in shown(capsys).rpartition("cases")[2]


def test_finished_cases_whose_scans_or_labels_are_newer_are_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(FRESH.split()) == 0
    assert main(FRESH.split()) == 0
    assert "newer than what was made of them" not in capsys.readouterr().err
    later = time.time() + 60
    for path in ("imagesTr/bert_0000.nii.gz", "labelsTr/anna.nii.gz"):
        os.utime(here / "scans" / path, (later, later))
    note = "scans or labels of anna, bert are newer than what was made of them, which is kept; delete out/cases/<case>"
    assert main(FRESH.split()) == 0
    assert note in capsys.readouterr().err.replace(f"{here}/", "")
    assert main([*FRESH.split(), "--dry-run"]) == 0
    assert "labels of anna, bert are newer" in shown(capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split.seed", "1"], "split.seed is 0 there, 1 here"),
        (["--split.fractions", "0.5", "0.25", "0.25"], "split.fractions is"),
        (["--split.folds", "2"], "split.folds is None there, 2 here"),
        (["--split.file", "mine.json"], "split that comes with them or by --split.file, changed since"),
    ],
)
def test_another_split_is_refused_with_the_remedy(
    more: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.json").write_text('{"train": ["anna"], "test": ["bert"]}')
    assert main(FRESH.split()) == 0
    before = SPLITS.read_bytes()
    assert main([*FRESH.split(), *more]) == 1
    error = capsys.readouterr().err
    assert message in error and "--overwrite" in error
    assert SPLITS.read_bytes() == before


def test_a_folder_without_labels_that_an_older_version_split_stays_usable(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (here / "scans" / "labelsTr").iterdir():
        path.rename(here / "scans" / "imagesUnlabeled" / path.name.replace(".nii", "_0000.nii"))
    for path in (here / "scans" / "imagesTr").iterdir():
        path.replace(here / "scans" / "imagesUnlabeled" / path.name)
    assert main(FRESH.split()) == 0
    assert PreparedDataset.open("out").splits["unlabeled"] == tuple(sorted(world.CASES))
    older = {"train": ["anna", "bert", "cora", "dora"], "val": ["emil"], "test": ["fred"]}
    SPLITS.write_text(json.dumps(older | {"unlabeled": [], "unlabeled_test": []}))
    settings = json.loads(Path("out/prepare.json").read_text())
    Path("out/prepare.json").write_text(json.dumps(settings | {"split.seed": 3, "split.fold": 0}))
    assert main([*FRESH.split(), "--split.seed", "3"]) == 1
    assert "no case has a label, so all are for pretraining; leave it out" in capsys.readouterr().err
    capsys.readouterr()
    assert main(FRESH.split()) == 0
    assert "is kept as it is" in shown(capsys)
    splits = PreparedDataset.open("out").splits
    assert {name: list(cases) for name, cases in splits.items() if cases} == older
