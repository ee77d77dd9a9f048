"""A pretraining that is killed and started again with the same command ends as one that was never stopped."""

from __future__ import annotations

import json
import os
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
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_started_again(how: signal.Signals, prepared, tmp_path: Path) -> None:
    dataset = prepared(np.random.default_rng(0).integers(-900, 900, (40, 36, 40)).astype(np.int16))
    subprocess.run(command(dataset, tmp_path, "whole"), check=True)

    process = subprocess.Popen(command(dataset, tmp_path, "cut"), start_new_session=True)
    while last_step(tmp_path / "cut") < 5:
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.05)
    if how == signal.SIGKILL:
        os.killpg(process.pid, how)
        process.wait()
    else:
        os.kill(process.pid, how)
        assert process.wait() == 130
    assert last_step(tmp_path / "cut") < 16
    subprocess.run(command(dataset, tmp_path, "cut"), check=True)

    whole, cut = (read_weights(find_weights(tmp_path / name)).tensors for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    losses = [
        [
            (row["step"], row["train/loss"])
            for row in map(json.loads, (tmp_path / name / "metrics.jsonl").open())
            if "train/loss" in row
        ]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]
