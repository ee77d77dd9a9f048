from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.train.torch import TorchTrainer

from anatomask.cluster import TrainingResources
from anatomask.data.samples import LoaderConfig
from anatomask.errors import UserError
from anatomask.ray_watch import RayGone
from anatomask.training.parallel import Workers
from anatomask.training.ray_train import fit
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
