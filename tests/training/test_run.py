from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from anatomask.errors import UserError
from anatomask.training.run import open_run, run_folder

SETTINGS = {"data": "shards", "seed": 0, "method": {"mask_ratio": 0.6}, "name": "a", "runs": "r", "cluster": {"w": 1}}


def test_the_same_settings_go_on_wherever_they_run(tmp_path: Path) -> None:
    open_run(tmp_path / "a", SETTINGS, overwrite=False)
    open_run(tmp_path / "a", SETTINGS | {"cluster": {"w": 8}}, overwrite=False)
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["method"] == {"mask_ratio": 0.6}
    assert json.loads((tmp_path / "a" / "environment.json").read_text())["packages"]["torch"]


def test_another_environment_is_told_and_the_same_is_not(tmp_path: Path) -> None:
    for threads in (1, 1, 2):
        open_run(tmp_path / "a", SETTINGS, overwrite=False, resources={"workers": 1, "threads": threads})
    (line,) = (tmp_path / "a" / "log.txt").read_text().splitlines()
    assert line.endswith("in their last digits: resources.threads is 1 there, 2 here")
    assert json.loads((tmp_path / "a" / "environment.json").read_text())["resources"]["threads"] == 2


def test_other_settings_are_refused_and_the_field_is_named(tmp_path: Path) -> None:
    open_run(tmp_path / "a", SETTINGS, overwrite=False)
    with pytest.raises(UserError, match=r"method\.mask_ratio is 0\.6 there, 0\.8 here"):
        open_run(tmp_path / "a", SETTINGS | {"method": {"mask_ratio": 0.8}}, overwrite=False)


def test_overwrite_begins_anew_but_never_empties_a_folder_that_is_no_run(tmp_path: Path) -> None:
    open_run(tmp_path / "a", SETTINGS, overwrite=False)
    (tmp_path / "a" / "metrics.jsonl").write_text("old")
    open_run(tmp_path / "a", SETTINGS | {"seed": 1}, overwrite=True)
    assert not (tmp_path / "a" / "metrics.jsonl").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("dear")
    with pytest.raises(UserError, match="not a run's folder"):
        open_run(tmp_path / "thesis", SETTINGS, overwrite=True)
    assert (tmp_path / "thesis" / "chapter").read_text() == "dear"


def test_a_name_is_derived_from_what_the_run_is() -> None:
    base = run_folder("r", "", "pretrain", "x/kbp", SETTINGS)
    assert base.name.startswith("pretrain-kbp-")
    assert base == run_folder("r", "", "pretrain", "x/kbp", SETTINGS | {"cluster": {"w": 2}})
    assert base != run_folder("r", "", "pretrain", "x/kbp", SETTINGS | {"seed": 1})
    assert run_folder("r", "mine", "pretrain", "x", SETTINGS).name == "mine"
