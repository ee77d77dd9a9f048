from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError, RayActorError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.factory import create_failure_policy
from ray.train.v2.api.exceptions import WorkerGroupError

from anatomask.cluster_shares import TrainingResources
from anatomask.data.samples import LoaderConfig
from anatomask.errors import Stopped, UserError
from anatomask.ray_watch import RayGone
from anatomask.training.journal import JOURNAL
from anatomask.training.parallel import Workers
from anatomask.training.ray_train import FailureCallback, fit
from anatomask.training.worker import run_share
from tests.training.witness import job


def test_gradients_that_torch_gets_wrong_are_refused(tmp_path: Path) -> None:
    whole = job(tmp_path / "run", "")
    training = replace(whole.training, precision="bf16")
    broken = replace(whole, training=training, loader=LoaderConfig(patch_size=(32, 48, 48)))
    resources = TrainingResources(1, 1, False, worker_cpus=0.5, readers=1, reader_cpus=0.5, threads=1)
    with pytest.raises(UserError, match="patch-size 48"):
        run_share(broken, resources, Workers(), torch.device("cpu"))


def test_a_controller_that_died_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(trainer: TorchTrainer) -> None:
        raise ActorDiedError

    monkeypatch.setattr(TorchTrainer, "fit", die)
    resources = TrainingResources(1, 1, False, worker_cpus=0.5, readers=1, reader_cpus=0.5, threads=1)
    with pytest.raises(RayGone, match=r"controller of the training .* the same command goes on"):
        fit(job(tmp_path / "run", ""), resources, max_failures=1)


def lost(preempted: bool) -> WorkerHealthCheckFailedError:
    """What Ray Train says of a worker that is gone."""
    death = RayActorError("01" * 16, "The actor died.\n\tclass_name: RayTrainWorker", preempted=preempted)
    return WorkerHealthCheckFailedError("A worker health check failed.", death)


def test_workers_of_machines_that_were_taken_away_are_told_from_failures(tmp_path: Path) -> None:
    FailureCallback(tmp_path).after_exception(None, {0: lost(preempted=True), 1: lost(preempted=False)})
    first, second = (tmp_path / JOURNAL).read_text().splitlines()
    assert first.endswith("worker 0 lost, with a machine that was taken away: The actor died.")
    assert second.endswith("worker 1 failed: The actor died.")


def test_machines_that_were_taken_away_do_not_use_up_the_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ray's own policy, given our settings; then one message."""
    decisions: list[FailureDecision] = []

    def fail(trainer: TorchTrainer) -> None:
        assert trainer.run_config.failure_config is not None
        policy = create_failure_policy(trainer.run_config.failure_config)
        for preempted in (True, True, True, False, True, False):
            error = WorkerGroupError("", {0: lost(preempted)})
            decisions.append(policy.make_decision(error))
        raise error

    monkeypatch.setattr(TorchTrainer, "fit", fail)
    resources = TrainingResources(1, 1, False, worker_cpus=0.5, readers=1, reader_cpus=0.5, threads=1)
    with pytest.raises(UserError, match=r"workers were lost more than 1 times .*because The actor died\.\. What"):
        fit(job(tmp_path / "run", ""), resources, max_failures=1)
    assert decisions == [FailureDecision.RETRY] * 5 + [FailureDecision.RAISE]


def test_workers_go_to_gpus_of_their_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaling = []
    monkeypatch.setattr(TorchTrainer, "fit", lambda trainer: scaling.append(trainer.scaling_config))
    anywhere = TrainingResources(2, 2, True, worker_cpus=0.0, readers=1, reader_cpus=0.5, threads=1)
    for kind in ("", "H100"):
        with suppress(Stopped):  # nothing is trained
            fit(job(tmp_path / "run", ""), replace(anywhere, gpu_type=kind), max_failures=1)
    needs = [one._resources_per_worker_not_none for one in scaling]
    assert needs == [{"GPU": 1.0}, {"GPU": 1.0, "accelerator_type:H100": 0.001}]
