"""Workers and nodes that are lost: training goes on, and ends with the weights of a run that lost none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from anatomask.cluster import running
from anatomask.cluster_settings import ClusterConfig
from anatomask.cluster_shares import TrainingResources, training_resources
from anatomask.data.samples import worker_samples
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.failures import NonFiniteWatch
from anatomask.training.journal import JOURNAL
from anatomask.training.loop import train
from anatomask.training.parallel import Workers
from anatomask.training.ray_train import fit
from anatomask.training.recorder import SilentRecorder
from anatomask.training.scalars import ScalarLog
from anatomask.training.state import TrainingState
from anatomask.training.update import Update
from anatomask.weights.files import find_weights, read_weights
from tests.training.witness import BATCH, Death, Witness, draw, job, surviving_samples

STEPS = 12


@pytest.fixture
def data(prepared: Callable[..., PreparedDataset]) -> str:
    return prepared(np.zeros((16, 16, 16), np.int16)).path


def undisturbed(folder: Path) -> dict[str, torch.Tensor]:
    """Weights after a run of one worker that knows no Ray."""
    reference, cpu, workers = job(folder, ""), torch.device("cpu"), Workers()
    task = Witness(folder, STEPS, (), cpu)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        numbers = worker_samples(0, STEPS, BATCH, 0, 1).reshape(STEPS, BATCH)
        for batch in numbers:
            drawn = [draw(None, "", reference.sequence.rng(k)) for k in batch.tolist()]  # type: ignore[arg-type]
            yield {"sample": batch, "x": np.stack([sample["x"] for sample in drawn])}

    state = TrainingState.of(task, reference.optimiser, cpu)
    watch = NonFiniteWatch(folder, reference.cases, "stop", scaled=False)
    with Checkpoints(folder) as checkpoints:
        train(
            Update(state, task, workers, reference.training, reference.optimiser.clip, cpu),
            batches(),
            checkpoints,
            ScalarLog(SilentRecorder(), workers, BATCH, cpu, watch),
            reference.training,
            reference.optimiser,
            start=0,
            steps_per_epoch=reference.steps_per_epoch,
        )
    return dict(task.net.state_dict())


def check(run: Path, whole: dict[str, torch.Tensor]) -> str:
    """Every update used each of its samples once, and the weights are those of `whole`; returns the journal."""
    expected = {step: list(range((step - 1) * BATCH, step * BATCH)) for step in range(1, STEPS + 1)}
    assert {step: sorted(samples) for step, samples in surviving_samples(run).items()} == expected
    ended = read_weights(find_weights(run)).tensors
    assert ended.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.allclose(ended[name], tensor, rtol=1e-12, atol=1e-14), name
    return (run / JOURNAL).read_text()


@pytest.mark.slow  # the kill loops and this one; the quick suite trains often enough
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_worker_that_is_killed_is_replaced(
    data: str, tmp_path: Path, ray_session: None, open_to_others: set[int]
) -> None:
    whole = undisturbed(tmp_path / "whole")
    run = tmp_path / "run"
    resources = training_resources(ClusterConfig(workers=2, threads=1))
    fit(job(run, data, Death(step=7, rank=1)), resources, max_failures=1)
    journal = check(run, whole)
    assert "worker 1 failed" in journal
    assert [line.split(" ", 2)[2] for line in journal.splitlines() if "update" in line] == [
        "update 0 of 12: training with 2 workers",
        "update 4 of 12: training with 2 workers; updates 5 to 6 are computed again",
        "update 12 of 12: the end",
    ]
    assert not open_to_others  # neither the workers' rendezvous nor their connections


def damaged(dataset: PreparedDataset, case: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    raise UserError(f"cases/{case}.parquet is damaged: prepare it again")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_what_the_user_has_to_mend_is_said_at_once(data: str, tmp_path: Path, ray_session: None) -> None:
    """A case that a reader finds damaged is not tried again, and is named."""
    resources = training_resources(ClusterConfig(threads=1))
    broken = replace(job(tmp_path / "run", data), draw=damaged)
    with pytest.raises(UserError, match=r"^cases/case\d.parquet is damaged: prepare it again$"):
        fit(broken, resources, max_failures=3)
    assert (tmp_path / "run" / JOURNAL).read_text().count("training with") == 1


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    """A cluster of two nodes with two CPUs each."""
    ray.shutdown()  # what other tests use; it starts again when they ask for it
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "dashboard_host": "127.0.0.1"})
    cluster.add_node(num_cpus=2)
    with running(ClusterConfig(address=cluster.address)):
        yield cluster
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_workers_gone_then_a_node_which_returns(data: str, tmp_path: Path, two_nodes: Cluster) -> None:
    """All are replaced; while a node has gone, one worker does the work of two."""
    one_a_node = TrainingResources(2, 1, False, worker_cpus=1.5, readers=1, reader_cpus=0.4, threads=1)
    whole, run = undisturbed(tmp_path / "whole"), tmp_path / "run"
    training = job(run, data, Death(step=7), Death(step=10, waits=True), Death(step=11, rank=0, waits=True))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fit, training, one_a_node, max_failures=5)
        await_death(run, 10, future)
        two_nodes.remove_node(next(iter(two_nodes.worker_nodes)), allow_graceful=False)
        await_death(run, 11, future)
        two_nodes.add_node(num_cpus=2)
        future.result()
    lines = [line.split(" ", 2)[2] for line in check(run, whole).splitlines()]
    assert [line for line in lines if line.startswith("update")] == [
        "update 0 of 12: training with 2 workers",
        "update 4 of 12: training with 2 workers; updates 5 to 6 are computed again",
        "update 8 of 12: training with 1 worker; updates 9 to 9 are computed again",
        "update 8 of 12: training with 2 workers; updates 9 to 10 are computed again",
        "update 12 of 12: the end",
    ]
    assert sum("failed" in line for line in lines) >= 3


def await_death(run: Path, step: int, training: Future[None]) -> None:
    """Until a worker waits for its death in update `step`."""
    while not list(run.glob(f"death-{step}-*")):
        assert not training.done(), training.exception()
        time.sleep(0.1)
