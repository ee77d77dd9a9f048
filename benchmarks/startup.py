"""Seconds from a command to its first update: `python benchmarks/startup.py [--quick] [--scans ../shared/data]`.

`anatomask pretrain` with the recipe `tiny` on a real CT, in turn with the least that Ray Train and Ray Data need for
the same: a process that starts Ray, a TorchTrainer of one worker, one reading process that sends it a batch of as many
bytes, and one step of AdamW of one layer. The median of the rounds is printed; the last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from checksums import SCAN, write_shard
from measure import machine, report

from anatomask.training.journal import METRICS

BATCH, CROP = 2, 48
"""Samples of a batch, and edge of their crops in voxels, as in the recipe `tiny`."""
POLL = 0.01
"""Seconds between two looks for the first update."""


def main() -> None:
    """Measure, and print."""
    arguments = parse()
    if arguments.bare:
        train_bare(Path(arguments.bare))
        return
    seconds: dict[str, list[float]] = {"anatomask": [], "bare": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "shards").mkdir()
        write_shard(folder / "shards", Path(arguments.scans) / SCAN)
        for turn in range(arguments.rounds + 1):
            run = folder / f"run{turn}"
            took = {"anatomask": first_line(ours(folder, run.name), run / METRICS)}
            took["bare"] = first_line(bare(folder / f"bare{turn}"), folder / f"bare{turn}" / METRICS)
            if turn or not arguments.rounds:  # before, the files of Python were not in memory
                for name, value in took.items():
                    seconds[name].append(value)
    found = {name: median(values) for name, values in seconds.items()}
    result = {
        "seconds_to_first_update": found,
        "anatomask_over_bare": found["anatomask"] / found["bare"],
        "rounds": len(seconds["bare"]),
        "load_average": os.getloadavg()[0],
        "machine": machine("cpu"),
    }
    rows = [
        ["anatomask pretrain --recipe tiny", f"{found['anatomask']:.1f}"],
        ["bare Ray Train and Ray Data", f"{found['bare']:.1f}"],
        ["ratio", f"{result['anatomask_over_bare']:.2f}"],
    ]
    report("From the command to the first update", ["", "seconds"], rows, result)


def ours(folder: Path, name: str) -> list[str]:
    """Return the command of a training of one update."""
    short = "--training.epochs 1 --training.steps-per-epoch 1 --training.log-every 1 --optimiser.warmup-epochs 0"
    where = ["--data", str(folder / "shards"), "--splits", "train", "--runs", str(folder), "--name", name]
    return [sys.executable, "-m", "anatomask", "pretrain", "--recipe", "tiny", *short.split(), *where]


def bare(folder: Path) -> list[str]:
    """Return the command of the bare training."""
    return [sys.executable, __file__, "--bare", str(folder)]


def first_line(command: list[str], metrics: Path) -> float:
    """Run a command to its end; return the seconds until it wrote its first line into `metrics`."""
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() not in (None, 0):
                raise SystemExit(f"{' '.join(command)} failed: {process.communicate()[1][-2000:]}")
            time.sleep(POLL)
        took = time.monotonic() - started
        process.communicate()
    return took


def train_bare(folder: Path) -> None:
    """Train one layer for one update with nothing but Ray Train and Ray Data, as `cluster.running` starts Ray."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    folder.mkdir(parents=True)
    ray.init(address="local", log_to_driver=False, dashboard_host="127.0.0.1")
    scaling = ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5})
    storage = RunConfig(name="ray", storage_path=str(folder))
    TorchTrainer(
        one_update, train_loop_config={"folder": str(folder)}, scaling_config=scaling, run_config=storage
    ).fit()


def one_update(config: dict[str, Any]) -> None:
    """Wait for a batch, take a step, and say so."""
    import ray.data
    import torch

    class Reader:
        def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"volume": np.zeros((len(rows["item"]), 1, CROP, CROP, CROP), np.float32)}

    rows = ray.data.from_items(list(range(BATCH))).map_batches(Reader, batch_size=BATCH, concurrency=1, num_cpus=0.5)
    layer = torch.nn.Conv3d(1, 1, 3)
    optimiser = torch.optim.AdamW(layer.parameters())
    for batch in rows.iter_batches(batch_size=BATCH):
        layer(torch.from_numpy(batch["volume"])).mean().backward()
        optimiser.step()
    (Path(config["folder"]) / METRICS).write_text("{}\n")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round without a warm-up")
    parser.add_argument("--scans", default="../shared/data", help="folder of the real scans")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bare", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 0
    return arguments


if __name__ == "__main__":
    main()
