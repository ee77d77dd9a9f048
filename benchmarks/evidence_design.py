"""Trainings that the experiment is made of: the size of it, each training's settings, and a network's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RECIPE = "small"
"""Recipe of the network and the trainings."""
CROP = ("48", "48", "48")
PATCH, DECODER_WIDTH = 8, 32
FINETUNING_EPOCHS, PRETRAINING_EPOCHS = 20, 50
"""Epochs of a training, whatever its number of updates."""
POINTS = 4
"""Number of points of a learning curve."""
FINER_TOLERANCE_MM = 2.0
"""Tolerance in mm of the second NSD; the first is the data set's own of 3 mm."""

DIGITS = 5
"""Decimals of a score in a record."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """Size of the experiment."""

    budgets: tuple[int, ...]
    """Updates of a finetuning among which the budget is chosen, ascending."""
    rates: tuple[float, ...]
    """Learning rates among which each arm's is chosen, ascending."""
    pretraining: int
    """Updates of a pretraining."""
    pairs: int
    """Seeds of a finetuning in the primary comparison."""
    fewer_pairs: int
    """Seeds of a finetuning in the other comparisons."""
    few_labels: tuple[int, ...]
    """Labelled cases among which those of the primary comparison are chosen, descending."""
    other_labels: tuple[int, ...]
    """Labelled cases of the other comparisons, ascending; the last is all."""
    scans: int | None
    """Scans of each kind that are used. None: all."""

    @property
    def all_labels(self) -> int:
        """Return the number of labelled training cases."""
        return self.other_labels[-1]


@dataclass(frozen=True)
class Pretraining:
    """One pretraining on all scans that are not validation cases."""

    masking: str
    """Kind of masks: anatomask, or random (SparK)."""
    among: str
    """Patches among which masks are drawn."""
    seed: int
    updates: int

    @property
    def arm(self) -> str:
        """Return the name without the seed."""
        return f"{'spark' if self.masking == 'random' else self.masking}-{self.among}-u{self.updates}"

    @property
    def name(self) -> str:
        """Return the name of the run."""
        return f"{self.arm}-p{self.seed}"

    def settings(self) -> list[str]:
        """Return the flags of `pretrain`."""
        epochs = min(PRETRAINING_EPOCHS, self.updates)
        return [
            *("--seed", str(self.seed), "--splits", "train", "budget", "unlabeled"),
            *("--method.masking", self.masking, "--method.among", self.among, "--method.patch", str(PATCH)),
            *("--method.decoder-width", str(DECODER_WIDTH), "--method.ema-decay", "0.98"),
            *("--method.ema-decay-final", "0.998", "--loader.patch-size", *CROP),
            *("--training.epochs", str(epochs), "--training.steps-per-epoch", str(self.updates // epochs)),
            *("--training.validate-every", str(max(1, epochs // 5)), "--optimiser.warmup-epochs", "2"),
            *("--optimiser.rate-every", "update"),
        ]


@dataclass(frozen=True)
class Finetuning:
    """One network, trained with a seeded subset of the labels and scored on one split."""

    init: str
    """Initial weights: scratch, the name of a pretraining, permuted:NAME, or encoder:NAME of a finetuning."""
    labels: int
    updates: int
    rate: float
    seed: int
    split: str
    """Cases that it is scored on: budget or val."""

    @property
    def name(self) -> str:
        """Return the name without the split."""
        start = self.init.replace(":", "=")
        return f"{start}-n{self.labels}-u{self.updates}-lr{self.rate:g}-s{self.seed}"

    @property
    def recipe(self) -> str:
        """Return the recipe whose network is trained."""
        return RECIPE

    @property
    def crop(self) -> Sequence[str]:
        """Return the flags of the crop."""
        return ("--loader.patch-size", *CROP)

    @property
    def folder(self) -> str:
        """Return the name of the run. A training watches its split, so each split has a training of its own."""
        return self.name if self.split == "budget" else f"{self.name}-{self.split}"

    def settings(self, all_labels: int) -> list[str]:
        """Return the flags of `finetune`."""
        epochs = min(FINETUNING_EPOCHS, self.updates)
        points = POINTS if self.split == "val" else 1  # no curve is drawn of what chooses
        return [
            *("--seed", str(self.seed), "--train-fraction", str(self.labels / all_labels)),
            *("--val-split", self.split, *self.crop),
            *("--training.epochs", str(epochs), "--training.steps-per-epoch", str(self.updates // epochs)),
            *("--training.validate-every", str(max(1, epochs // points))),
            *("--optimiser.lr", str(self.rate), "--optimiser.warmup-epochs", str(epochs // 10)),
            *("--optimiser.rate-every", "update"),
            *("--inference.overlap", "0.25"),
        ]


def mean_dsc(records: Sequence[Record]) -> float:
    """Compute the mean over networks, cases and organs, as a fraction."""
    return float(
        np.mean([score for record in records for organs in record["dsc"].values() for score in organs.values()])
    )


def weakest_organ(record: Record) -> float:
    """Find the smallest mean DSC of an organ over the cases of one network, as a fraction."""
    organs = {organ for scores in record["dsc"].values() for organ in scores}
    return min(float(np.mean([s[organ] for s in record["dsc"].values() if organ in s])) for organ in organs)
