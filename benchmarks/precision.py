"""Comparison of training in bf16 and fp32: `python benchmarks/precision.py [--figure FILE] [--quick]`.

It pretrains recipe `small` on OpenKBP's scans in each precision, from the same few sets of initial weights (one per
seed), on the same crops and masks in the same order. The spread of the seeds is the noise with which the difference
between precisions is compared. Training and validation are those of `anatomask pretrain`, without Ray. The validation
loss is that of held-out scans under fixed masks, computed in fp32. The last line is JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from measure import machine, report
from openkbp import prepared

from anatomask.data.samples import SampleSequence
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.data.stream import SampleReader
from anatomask.methods.masked import MaskedMethod
from anatomask.recipes import RECIPES
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.failures import NonFiniteWatch
from anatomask.training.fixed_scans import choose_fixed_cases
from anatomask.training.loop import train
from anatomask.training.monitors import MaskMonitor
from anatomask.training.parallel import Workers, distribute
from anatomask.training.pretraining import PretrainingTask
from anatomask.training.recorder import SilentRecorder
from anatomask.training.scalars import ScalarLog
from anatomask.training.settings import Precision
from anatomask.training.state import TrainingState
from anatomask.training.update import Update, set_arithmetic

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DATA_SEED = 0
"""Seed of the crops, their order and all masks, in every run."""
PANELS = {"train": "training loss, mean over an epoch", "val": "validation loss, fixed scans and masks"}
COLOURS = ("#1b4965", "#d1495b", "#8a8d91", "#edae49")


@dataclass
class Curves(SilentRecorder):
    """Recorder that keeps the scalars."""

    kept: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the scalars, by name."""
        for name, value in values.items():
            self.kept[name].append(value)


def main() -> None:
    """Train, compare, draw, print."""
    arguments = parse()
    runs = list(product(arguments.precisions, range(arguments.seeds)))
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(arguments.data or Path(scratch) / "openkbp")
        prepared(Path(arguments.scans), folder, arguments.limit)
        # Processes apart: what one sets for its matrix products must not reach another.
        with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
            found = dict(zip(runs, pool.map(partial(run, arguments, folder), *zip(*runs, strict=True)), strict=True))
    curves = {
        precision: {
            kind: np.array([found[precision, seed][kind] for seed in range(arguments.seeds)]) for kind in PANELS
        }
        for precision in arguments.precisions
    }
    reference, *others = arguments.precisions
    compared = {
        name: {kind: compare(curves[name][kind], curves[reference][kind]) for kind in PANELS} for name in others
    }
    if arguments.figure:
        draw(curves, arguments).savefig(arguments.figure, dpi=130)
    report(
        f"Pretraining of recipe small on OpenKBP: {arguments.seeds} seeds, "
        f"{arguments.epochs} epochs of {arguments.steps} updates, {arguments.device}",
        ["", "final val loss", *(f"seed {seed}" for seed in range(arguments.seeds)), "s per update"],
        [
            [
                precision,
                f"{losses['val'][:, -1].mean():.4f}",
                *(f"{loss:.4f}" for loss in losses["val"][:, -1]),
                f"{median_seconds(found, precision):.2f}",
            ]
            for precision, losses in curves.items()
        ],
        {
            "compared": compared,
            "final_val_loss": {name: losses["val"][:, -1].round(5).tolist() for name, losses in curves.items()},
            "seconds_per_update": {name: median_seconds(found, name) for name in curves},
            "curves": {
                name: {kind: rows.round(5).tolist() for kind, rows in losses.items()} for name, losses in curves.items()
            },
            "arguments": vars(arguments),
            "machine": machine(arguments.device) | {"threads": arguments.threads},
        },
    )


def run(arguments: argparse.Namespace, folder: Path, precision: Precision, seed: int) -> dict[str, list[float]]:
    """Run one training in this process; return by kind of loss its curve, and the median `seconds` of an update."""
    torch.set_num_threads(arguments.threads)
    set_arithmetic(precision)
    device, workers = torch.device(arguments.device), Workers()
    recipe = RECIPES["small"].settings("pretrain")
    training = replace(
        recipe.training,
        precision=precision,
        epochs=arguments.epochs,
        steps_per_epoch=arguments.steps,
        validate_every=1,
        checkpoint_every=arguments.epochs * arguments.steps,
    )
    dataset = PreparedDataset.open(str(folder))
    cases = tuple(sorted(dataset.splits["train"] + dataset.splits["unlabeled"]))
    sequence, patch_size = SampleSequence(cases, DATA_SEED), recipe.loader.patch_size
    fixed, header = choose_fixed_cases(dataset, cases), {"patch_size": patch_size, "spacing": dataset.spacing}
    task = PretrainingTask(recipe.method, recipe.network, recipe.loader, header, dataset.path, fixed, seed, device)
    draw = recipe.method.draw(recipe.loader)
    assert isinstance(task.method, MaskedMethod)
    task.monitor = MaskMonitor(task.method, dataset, fixed, draw, DATA_SEED, device)  # the same masks whatever the seed
    model = distribute(task, training, workers)
    state = TrainingState.of(task, recipe.optimiser, device, scaled=precision == "fp16")
    curves, batch_size = Curves(), training.batch_size
    with Checkpoints(folder, writes=False) as checkpoints:
        watch = NonFiniteWatch(folder, lambda step: [], "stop", precision == "fp16", writes=False)
        train(
            Update(state, model, workers, training, recipe.optimiser.clip, device),
            read(SampleReader(Storage(str(folder)), sequence, draw), batch_size),
            checkpoints,
            ScalarLog(curves, workers, batch_size, device, watch),
            training,
            recipe.optimiser,
            start=0,
            steps_per_epoch=arguments.steps,
        )
    return {
        "train": np.mean(np.reshape(curves.kept["train/loss"], (arguments.epochs, arguments.steps)), 1).tolist(),
        "val": curves.kept["val/loss"],
        "seconds": [batch_size / rate for rate in curves.kept["train/samples_per_second"]],
    }


def read(reader: SampleReader, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Read here the batches that Ray Data would read."""
    for first in count(step=batch_size):
        yield reader({"sample": np.arange(first, first + batch_size)})


def compare(ours: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compare two precisions' curves (seeds, epochs): their mean difference, and the noise for comparison.

    The noise of an epoch is the standard deviation over seeds, pooled over both precisions. Two means of three runs
    each of the same training differ by 0.8 of it on average, and by more than 2.3 in one case of twenty (Student's t).
    """
    difference = ours.mean(0) - reference.mean(0)
    noise = np.sqrt((ours.var(0, ddof=1) + reference.var(0, ddof=1)) / 2)
    return {
        "mean_difference": float(np.abs(difference).mean()),
        "largest_difference": float(np.abs(difference).max()),
        "mean_noise": float(noise.mean()),
        "mean_difference_over_noise": float((np.abs(difference) / noise).mean()),
        "largest_difference_over_noise": float((np.abs(difference) / noise).max()),
        "final_difference": float(difference[-1]),
        "final_noise": float(noise[-1]),
    }


def draw(curves: Mapping[str, Mapping[str, np.ndarray]], arguments: argparse.Namespace) -> Figure:
    """Draw mean and range over the seeds, a colour per precision, a panel per loss."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    updates = arguments.steps * np.arange(1, arguments.epochs + 1)
    for axes, (kind, title) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for (precision, losses), colour in zip(curves.items(), COLOURS, strict=False):
            rows = losses[kind]
            axes.plot(updates, rows.mean(0), color=colour, label=f"{precision}, mean of {arguments.seeds} seeds")
            axes.fill_between(updates, rows.min(0), rows.max(0), color=colour, alpha=0.2, linewidth=0, label="range")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("update")
        axes.set_ylabel("loss")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return figure


def median_seconds(found: Mapping[tuple[str, int], Mapping[str, Sequence[float]]], precision: str) -> float:
    """Compute the median seconds of an update in that precision, over all seeds."""
    return float(
        np.median([value for (name, _), one in found.items() if name == precision for value in one["seconds"]])
    )


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cases and updates, two seeds: within a minute")
    parser.add_argument("--scans", default="../shared/data", help="folder of the real scans")
    parser.add_argument("--data", help="folder of the prepared scans, written unless it is there; default: temporary")
    parser.add_argument("--scratch", help="folder for what is written; default: the system's temporary one")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "bf16"], help="reference first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="points of a curve")
    parser.add_argument("--steps", type=int, default=20, help="updates per epoch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--figure", help="PNG to draw the curves to")
    arguments = parser.parse_args()
    arguments.limit = None
    if arguments.quick:
        arguments.limit, arguments.seeds, arguments.epochs, arguments.steps = 4, 2, 2, 2
    if len(arguments.precisions) < 2 or arguments.seeds < 2:
        parser.error("it takes two precisions and two seeds at least")
    return arguments


if __name__ == "__main__":
    main()
