from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from anatomask.config import FinetuneConfig
from anatomask.nested import plain
from anatomask.runs.siblings import kinship


def described(folder: Path, inputs: dict[str, str], **changes: Any) -> dict[str, Any]:
    """The kinship of a finetuning with these settings."""
    folder.mkdir(exist_ok=True)
    settings = plain(FinetuneConfig(data="shards", **changes))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "inputs.json").write_text(json.dumps(inputs))
    found = kinship(folder)
    assert found is not None
    return found


def test_runs_that_differ_in_seed_or_fold_alone_are_siblings(tmp_path: Path) -> None:
    inputs = {"data": "d", "init": "w"}
    first = described(tmp_path, inputs, init="runs/a", name="x")
    for changes in ({"seed": 3}, {"fold": 1}, {"name": "y"}):
        other = described(tmp_path, inputs, **{"init": "runs/b", **changes})  # the same weights in another place
        assert other["seeds"] == first["seeds"] and other["seed"] == changes.get("seed", 0)
    watching = [described(tmp_path, inputs, init="runs/a", fold=k, val_split=f"fold_{k}") for k in (0, 1)]
    assert watching[0]["seeds"] == watching[1]["seeds"] != first["seeds"]


def test_twins_differ_in_their_start_alone(tmp_path: Path) -> None:
    pretrained = described(tmp_path, {"data": "d", "init": "w"}, init="runs/a", seed=1)
    scratch = described(tmp_path, {"data": "d"})
    assert pretrained["starts"] == scratch["starts"] and pretrained["seeds"] != scratch["seeds"]
    for inputs, changes in (({"data": "other"}, {}), ({"data": "d"}, {"train_fraction": 0.5})):
        assert described(tmp_path, inputs, **changes)["starts"] != scratch["starts"]


@pytest.mark.parametrize("text", ["", "5", "seed: x", "[", "- 1"])
def test_a_folder_without_a_runs_settings_has_none(text: str, tmp_path: Path) -> None:
    assert kinship(tmp_path) is None
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "inputs.json").write_text("{}")
    assert kinship(tmp_path) is None
