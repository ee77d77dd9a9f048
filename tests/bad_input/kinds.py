"""One kind of bad input: a command, how its good input is spoiled, and what the message must say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Spoil = Callable[[Path], object]
"""Spoil the good input in the folder that the command runs in."""


def nothing(folder: Path) -> None:
    """Leave the input as it is: the command itself asks for what cannot be."""


@dataclass(frozen=True)
class Kind:
    """A kind of bad input. One line in a table adds one."""

    name: str
    """Words for the test's report."""
    command: str
    """Verb and flags, as in a shell, in a folder that holds `scans`, `data`, `runs/pretrained` and `runs/finetuned`."""
    says: str
    """Pattern of the message: the file or field it names, and the remedy."""
    spoil: Spoil = nothing
    skips: bool = False
    """Whether cases are bad: they are listed with their reasons, and the others go through."""
    as_user: bool = False
    """Whether permissions hold, for root too."""


SMALL = "--recipe tiny --network.base 2 --loader.patch-size 32 32 32 --training.epochs 2 --training.steps-per-epoch 2"
"""Flags of trainings small enough for the folder's scans of 20 voxels."""
PREPARE = "prepare --source scans --preprocess.spacing 2 2 2 --out"
GO_ON = f"{PREPARE} data"
FRESH = f"{PREPARE} out"
SURVEY = "survey scans --output found"
PRETRAIN = f"pretrain {SMALL} --method.decoder-width 16 --data data --name"
FINETUNE = f"finetune {SMALL} --data data --name"
NEW_PRETRAINING = f"{PRETRAIN} new"
NEW_FINETUNING = f"{FINETUNE} new"
SAME_PRETRAINING = f"{PRETRAIN} pretrained"
SAME_FINETUNING = f"{FINETUNE} finetuned --init runs/pretrained"
TRANSFER = f"{NEW_FINETUNING} --init runs/pretrained"
EVALUATE = "evaluate --recipe tiny --data data --run runs/finetuned"
PREDICT = "predict --recipe tiny --run runs/finetuned --source scans/imagesTr --out predicted"
REPORT = "report --runs runs/finetuned --out report"
EXPORT = "export-weights runs/finetuned --format nnunet --output exported"
SWEEP = (
    "sweep --recipe tiny --space table3_mask_ratio --name new --pretrain-data data --finetune-data data "
    "--pretrain.loader.patch-size 32 32 32 --finetune.loader.patch-size 32 32 32"
)
GOOD = {
    "prepare": GO_ON,
    "prepare afresh": FRESH,
    "survey": SURVEY,
    "pretrain": NEW_PRETRAINING,
    "go on with a pretraining": SAME_PRETRAINING,
    "finetune": NEW_FINETUNING,
    "finetune from a pretraining": TRANSFER,
    "go on with a finetuning": SAME_FINETUNING,
    "evaluate": EVALUATE,
    "predict": PREDICT,
    "report": REPORT,
    "export": EXPORT,
    "sweep": SWEEP,
}
"""Commands that the kinds vary; with good input, each succeeds."""
