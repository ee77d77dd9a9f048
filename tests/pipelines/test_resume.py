"""A pretraining that is killed and started again with the same command ends as one that was never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from anatomask.data.shards import PreparedDataset
from anatomask.weights import find_weights, read_weights

SETTINGS = [
    *["--recipe", "tiny", "--loader.patch-size", "32", "32", "32", "--network.base", "4"],
    *[
        "--method.decoder-width",
        "16",
        "--method.r0",
        "0.5",
        "--training.epochs",
        "4",
        "--training.steps-per-epoch",
        "4",
    ],
    *["--training.checkpoint-every", "3", "--training.log-every", "1", "--cluster.threads", "1", "--splits", "train"],
]


def command(dataset: PreparedDataset, runs: Path, name: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pipelines",
        "pretrain",
        *SETTINGS,
        "--data",
        dataset.path,
        "--runs",
        str(runs),
        "--name",
        name,
    ]


def last_step(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stopped_again_and_again(prepared, tmp_path: Path) -> None:
    """By every signal, at random updates; Ctrl-C and SIGKILL reach all of its processes, as from a terminal."""
    dataset = prepared(np.random.default_rng(0).integers(-900, 900, (40, 36, 40)).astype(np.int16))
    subprocess.run(command(dataset, tmp_path, "whole"), check=True)

    cut, seed = tmp_path / "cut", int(time.time())
    print(f"seed {seed}")  # of the updates after which it is stopped
    after = sorted(random.Random(seed).sample(range(1, 15), 4))
    stops = zip(after, (signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL), strict=True)
    for starts, (step, how) in enumerate(stops, start=1):
        process = subprocess.Popen(command(dataset, tmp_path, "cut"), start_new_session=True)
        while journal(cut).count("on with") < starts or last_step(cut) < step:
            assert process.poll() is None, "it ended before it could be stopped"
            time.sleep(0.05)
        if how == signal.SIGTERM:
            os.kill(process.pid, how)  # Ray's own processes, unlike with SIGINT, would end of it, too
        else:
            os.killpg(process.pid, how)
        code = process.wait()
        assert code == (-how if how == signal.SIGKILL else 128 + how)
        if how != signal.SIGKILL:
            assert json.loads((cut / "checkpoints" / "index.json").read_text())["step"] >= step
    subprocess.run(command(dataset, tmp_path, "cut"), check=True)

    assert "SIGINT: a checkpoint" in journal(cut) and "SIGTERM: a checkpoint" in journal(cut)
    assert journal(cut).count("update 16 of 16: the end") == 1
    whole_weights, cut_weights = (read_weights(find_weights(tmp_path / name)).tensors for name in ("whole", "cut"))
    assert whole_weights.keys() == cut_weights.keys()
    assert all(torch.equal(whole_weights[name], cut_weights[name]) for name in whole_weights)
    assert losses(tmp_path / "whole") == losses(cut)


def journal(run: Path) -> str:
    return (run / "log.txt").read_text() if (run / "log.txt").exists() else ""


def losses(run: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
