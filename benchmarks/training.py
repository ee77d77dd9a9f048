"""Cost of loading and checkpoints in a pretraining: `python benchmarks/training.py [--quick]`.

OpenKBP's scans run through Ray Data, in Ray Train's workers: the stage itself, in one worker group for each number of
workers, three times in turn. It runs once unchanged; once with its stream replaced by one that repeats its first batch
(no loading); once with its loop replaced by one that only takes the batches (only loading). The first updates, while
readers and kernels start, do not count. The run itself records how long training waits for data, and how long a
checkpoint stops it: rank 0's seconds. Reading runs half a gigabyte ahead (`BUFFER_BYTES`), so where batches are small
the readers finish before the training does; only the run with only loading shows whether they would keep up for ever.
The last line is JSON; its two shares are those of the worst number of workers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import machine, report
from openkbp import SPACING, prepared

from anatomask.cluster import running
from anatomask.cluster_settings import ClusterConfig
from anatomask.cluster_shares import training_resources
from anatomask.config import PretrainConfig
from anatomask.data.samples import Draw, SampleSequence
from anatomask.data.storage import Roots
from anatomask.data.stream import SampleReader
from anatomask.errors import Stopped
from anatomask.recipes import RECIPES
from anatomask.stages.pretrain import build_job
from anatomask.training import ray_train, worker
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.journal import METRICS
from anatomask.training.settings import TrainingConfig
from anatomask.training.update import Update

WITH_LOADING, SAME_BATCH, LOADING = "training", "same batch again", "loading alone"
INTERVAL = TrainingConfig().checkpoint_every


def main() -> None:
    """Train, read the records, and print."""
    arguments = parse()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        data = Path(arguments.data or Path(scratch) / "openkbp")
        prepared(Path(arguments.scans), data, arguments.limit, tuple(arguments.spacing))
        with running(ClusterConfig()):
            found = {
                count: measured(configuration(arguments, count, data, scratch), arguments.loads)
                for count in arguments.workers
            }
    report(
        f"Pretraining, recipe {arguments.recipe}, {arguments.updates} updates of {arguments.batch} crops of "
        f"{'x'.join(map(str, arguments.patch))}, {arguments.precision}",
        ["", "updates/s", "waiting for data", "stopped by a checkpoint", "written in", f"of {INTERVAL} updates"],
        [row for count, figures in found.items() for row in rows_of(count, figures)],
        {
            "data_wait_share": max(figures["data_wait_share"] for figures in found.values()),
            "checkpoint_share": max(figures["checkpoint_share"] for figures in found.values()),
            "workers": found,
            "arguments": vars(arguments),
            "machine": machine("cuda" if torch.cuda.is_available() else "cpu"),
        },
    )


def configuration(arguments: argparse.Namespace, workers: int, data: Path, runs: str) -> PretrainConfig:
    """Build the settings of a run of the given updates, whose last is its only validation."""
    recipe = RECIPES[arguments.recipe].settings("pretrain")
    return replace(
        recipe,
        data=str(data),
        runs=runs,
        name=f"{workers}-workers",
        loader=replace(recipe.loader, patch_size=tuple(arguments.patch)),
        optimiser=replace(recipe.optimiser, warmup_epochs=0),
        training=replace(
            recipe.training,
            epochs=1,
            steps_per_epoch=arguments.updates,
            batch_size=arguments.batch,
            precision=arguments.precision,
            checkpoint_every=arguments.updates // 4,
            log_every=max(1, arguments.updates // 10),
        ),
        cluster=ClusterConfig(workers=workers, readers=arguments.readers),
    )


def measured(config: PretrainConfig, loads: int) -> dict[str, Any]:
    """Measure one number of workers; `loads` batches are loaded without training."""
    job = build_job(config)
    for variant in (WITH_LOADING, SAME_BATCH, LOADING):
        (job.run / variant).mkdir(parents=True)
    resources = training_resources(config.cluster)
    with patch.object(ray_train, "start_worker", in_turn(loads)), suppress(Stopped):  # as the run's own folder is empty
        ray_train.fit(job, resources, max_failures=0)
    training, same_batch = (recorded(job.run / variant, config.training) for variant in (WITH_LOADING, SAME_BATCH))
    stopped = statistics.mean(training["checkpoint_seconds"])
    written = json.loads((job.run / WITH_LOADING / "written.json").read_text(encoding="utf-8"))
    return {
        "updates_per_second": {
            WITH_LOADING: training["updates_per_second"],
            SAME_BATCH: same_batch["updates_per_second"],
            LOADING: min(map(batches_per_second, (job.run / LOADING).glob("arrivals-*.json"))),
        },
        "threads_per_worker": resources.threads,
        "data_wait_share": training["wait_share"],
        "first_updates_wait_s": training["first_wait_s"],
        "checkpoint_s": stopped,
        "checkpoint_written_s": statistics.mean(written),
        "checkpoint_share": stopped * training["updates_per_second"] / INTERVAL,
    }


def recorded(run: Path, training: TrainingConfig) -> dict[str, Any]:
    """Summarise a run's metrics of its updates, without the first fifth."""
    rows = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
    timed = [(row, training.batch_size / row["train/samples_per_second"]) for row in rows if "train/wait" in row]
    assert training.steps_per_epoch
    first = training.steps_per_epoch // 5
    seconds = sum(took for row, took in timed if row["step"] > first)
    return {
        "updates_per_second": sum(row["step"] > first for row, _ in timed) / seconds,
        "wait_share": sum(row["train/wait"] * took for row, took in timed if row["step"] > first) / seconds,
        "first_wait_s": sum(row["train/wait"] * took for row, took in timed if row["step"] <= first),
        "checkpoint_seconds": [row["train/checkpoint_seconds"] for row in rows if "train/checkpoint_seconds" in row],
    }


def batches_per_second(arrivals: Path) -> float:
    """Compute the speed of one worker from the times at which its batches came, without the first fifth."""
    times = json.loads(arrivals.read_text(encoding="utf-8"))
    first = len(times) // 5
    return (len(times) - 1 - first) / (times[-1] - times[first])


# ---- in the workers


def in_turn(loads: int) -> Callable[[dict[str, Any]], None]:
    """Replace `start_worker`: run it three times, the last time for `loads` updates."""

    def run(config: dict[str, Any], variant: str, **changed: int) -> None:
        job = config["job"]
        training = replace(job.training, **changed)
        worker.run_worker(replace(job, run=job.run / variant, training=training), config["resources"])

    def run_in_turn(config: dict[str, Any]) -> None:
        with patch.object(worker, "Checkpoints", TimedCheckpoints):
            run(config, WITH_LOADING)
        with patch.object(worker, "stream_batches", same_batch):
            run(config, SAME_BATCH)
        with patch.object(worker, "train", only_load):
            run(config, LOADING, steps_per_epoch=loads)

    return run_in_turn


class TimedCheckpoints(Checkpoints):
    """Checkpoints that record how long each was being written."""

    def __exit__(self, *error: Any) -> None:
        """Write down the seconds once all are written."""
        super().__exit__(*error)
        if self.writes:
            (self.folder.parent / "written.json").write_text(json.dumps(self.seconds), encoding="utf-8")

    def _write(self, *state: Any) -> None:
        began = time.perf_counter()
        super()._write(*state)
        self.seconds = [*getattr(self, "seconds", []), time.perf_counter() - began]


def same_batch(
    data: Roots, sequence: SampleSequence, draw: Draw, samples: np.ndarray, batch_size: int, **settings: Any
) -> Iterator[dict[str, np.ndarray]]:
    """Replace `stream_batches`: repeat its first batch for ever."""
    return repeat(SampleReader(data, sequence, draw)({"sample": samples[:batch_size]}))


def only_load(
    update: Update, batches: Iterator[dict[str, np.ndarray]], checkpoints: Checkpoints, *others: Any, **settings: Any
) -> None:
    """Replace `train`: take the batches as fast as they come, and note when each came."""
    times = [time.perf_counter() for _ in batches]
    (checkpoints.folder.parent / f"arrivals-{update.workers.rank}.json").write_text(json.dumps(times), encoding="utf-8")


# ---- the program


def rows_of(workers: int, figures: dict[str, Any]) -> list[list[str]]:
    """Format the table's rows for one number of workers."""
    of = f"{workers} worker{'s' if workers > 1 else ''}"
    rows = [[f"{name}, {of}", f"{rate:.2f}", *["-"] * 4] for name, rate in figures["updates_per_second"].items()]
    rows[0][2:] = [
        f"{figures['data_wait_share']:.2%}",
        f"{figures['checkpoint_s']:.3f} s",
        f"{figures['checkpoint_written_s']:.2f} s",
        f"{figures['checkpoint_share']:.3%}",
    ]
    return rows


def parse() -> argparse.Namespace:
    """Parse the command line."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cases and updates, one worker: within a minute")
    parser.add_argument("--scans", default="../shared/data", help="folder of the real scans")
    parser.add_argument("--data", help="folder of the prepared scans, written unless it is there; default: temporary")
    parser.add_argument("--scratch", help="folder for what is written; default: the system's temporary one")
    parser.add_argument("--recipe", choices=RECIPES, default="paper-b" if gpu else "small", help="network and method")
    parser.add_argument(
        "--spacing", nargs=3, type=float, default=[1.5] * 3 if gpu else SPACING, help="of the scans, mm"
    )
    parser.add_argument("--limit", type=int, default=16 if gpu else None, help="cases of each split at most")
    parser.add_argument("--patch", nargs=3, type=int, help="default: the recipe's")
    parser.add_argument("--batch", type=int, help="over all workers; default: the recipe's")
    parser.add_argument("--precision", default="bf16" if gpu else "fp32")
    parser.add_argument("--workers", nargs="+", type=int, help="default: 1 2, or as many as there are GPUs")
    parser.add_argument("--readers", type=int, default=1, help="reading processes of each worker")
    parser.add_argument("--updates", type=int, default=500 if gpu else 100)
    parser.add_argument("--loads", type=int, default=1000, help="batches that are loaded alone")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.recipe].settings("pretrain")
    arguments.patch = arguments.patch or recipe.loader.patch_size
    arguments.batch = arguments.batch or recipe.training.batch_size
    arguments.workers = arguments.workers or ([1, 2] if torch.cuda.device_count() != 1 else [1])
    if arguments.quick:
        arguments.limit, arguments.workers, arguments.updates, arguments.loads = 4, [1], 10, 160
    if arguments.updates < 10:
        parser.error("--updates: at least 10")
    return arguments


if __name__ == "__main__":
    main()
