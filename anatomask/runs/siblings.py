"""Kinship of finetunings: which differ in their seeds alone, and which in the weights that they start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anatomask.data.folds import fold_name
from anatomask.parsing import from_json, from_yaml
from anatomask.runs.belongings import CONFIG, INPUTS
from anatomask.runs.identity import run_key


def of_any_fold(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a finetuning as the runs of all folds share them, each of which may watch its own fold."""
    fold = settings.get("fold")
    own = fold is not None and settings.get("val_split") == fold_name(fold)
    return {**settings, "fold": None, "val_split": "its fold" if own else settings.get("val_split")}


def kinship(run: Path) -> dict[str, Any] | None:
    """Describe a finetuning for the tables, by the files in its folder.

    Returns:
        `seed`; `seeds`, a key that runs share which differ in seed or fold alone; `starts`, one that runs share which
        may differ in their initial weights, too. None where the folder does not hold a run's settings.
    """
    try:
        settings = from_yaml((run / CONFIG).read_bytes())
        inputs = from_json((run / INPUTS).read_bytes())
        seed = settings["seed"]
        shared = {name: value for name, value in of_any_fold(settings).items() if name != "seed"}
        others = {name: value for name, value in shared.items() if name != "init"}
        contents = {name: digest for name, digest in inputs.items() if name != "init"}
        return {
            "seed": int(seed),
            "seeds": run_key("finetune", shared, inputs),
            "starts": run_key("finetune", others, contents),
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # weights from elsewhere, or damaged files
        return None
