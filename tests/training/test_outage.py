"""Training on data in object storage whose network fails: for a while, and for too long."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anatomask.cluster_settings import ClusterConfig
from anatomask.cluster_shares import training_resources
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.training.job import TrainingJob
from anatomask.training.journal import JOURNAL
from anatomask.training.ray_train import fit
from tests.outages import Network
from tests.training.witness import BATCH, job, surviving_samples

STEPS = 24


def crop(dataset: PreparedDataset, case: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A few voxels, read slowly from a case that no reader remembers."""
    time.sleep(0.05)
    image, _ = dataset.read_crop("one", (0, 0, 0), (2, 2, 2), label=False)
    return {"x": np.concatenate([image, image]).astype(np.float64)}


def lines(training: TrainingJob) -> list[str]:
    journal = training.run / JOURNAL
    return [line.split(" ", 2)[2] for line in journal.read_text().splitlines()] if journal.exists() else []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_outage_is_survived_and_one_that_is_too_long_ends_with_the_last_checkpoint(
    prepared: Any, s3: Any, tmp_path: Path, ray_session: None
) -> None:
    local = Storage(prepared(np.arange(16**3, dtype=np.int16).reshape(16, 16, 16)).path)
    for name in ("dataset.json", "cases.jsonl", "fingerprint.json", "splits.json", "cases/one.parquet"):
        Storage(s3.address("data")).write(name, local.read(name))
    network = Network(s3.endpoint)
    data = Storage(replace(s3, endpoint=network.endpoint).address("data"), max_outage=0.2)
    training = replace(job(tmp_path / "run", data, steps=STEPS), draw=crop)
    resources = training_resources(ClusterConfig(threads=1))
    assert data.exists("dataset.json")  # as when its job was made

    def updates() -> int:
        return len(surviving_samples(training.run)) if (training.run / "seen.jsonl").exists() else 0

    with ThreadPoolExecutor(1) as pool:

        def cut_after(count: int, *, mend: bool) -> None:
            while updates() < count:
                assert not fitting.done(), fitting.exception()
                time.sleep(0.05)
            network.cut()
            if mend:
                network.mend_later(5)

        fitting = pool.submit(fit, training, resources, max_failures=3)
        cut_after(3, mend=True)
        while not any("answers again" in line for line in lines(training)):
            assert not fitting.done(), fitting.exception()
            time.sleep(0.05)
        cut_after(updates() + 1, mend=False)
        with pytest.raises(UserError, match=r"^s3://bucket/data/\S+: no answer for 0.2 min; .*same command goes on$"):
            fitting.result()
    told = lines(training)
    assert sum("training with" in line for line in told) == 1, told
    assert sum("storage does not answer" in line for line in told) == 2, told
    assert any(line.startswith("stopped: s3://bucket/data/") for line in told), told
    assert "hush" not in " ".join(told)

    network.mend()
    fit(training, resources, max_failures=3)
    network.cut()
    expected = {step: list(range((step - 1) * BATCH, step * BATCH)) for step in range(1, STEPS + 1)}
    assert {step: sorted(set(samples)) for step, samples in surviving_samples(training.run).items()} == expected
    assert lines(training)[-1] == f"update {STEPS} of {STEPS}: the end"
