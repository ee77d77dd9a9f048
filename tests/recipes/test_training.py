"""Small recipes learn from a real scan: their crops, batches and learning rates go together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anatomask.data.samples import stacked
from anatomask.data.shards import PreparedDataset
from anatomask.recipes import HEAD_AND_NECK, RECIPES
from anatomask.stages import finetune, pretrain
from anatomask.training.job import TrainingJob
from anatomask.training.loop import to_device
from anatomask.training.parallel import Workers
from anatomask.training.state import TrainingState
from anatomask.training.update import Update

CPU = torch.device("cpu")
SMALL = [name for name, recipe in RECIPES.items() if recipe.target is HEAD_AND_NECK]


def losses(job: TrainingJob, dataset: PreparedDataset, updates: int, device: torch.device = CPU) -> list[float]:
    """The losses of the first updates of a job, at its peak learning rate, on the same samples each time."""
    task = job.build_task(device)
    state = TrainingState.of(task, job.optimiser, device)
    update = Update(state, task, Workers(), job.training, job.optimiser.clip, device, job.optimiser.clip_of)
    samples = range(job.training.batch_size)
    drawn = [{"sample": np.asarray(k), **job.draw(dataset, job.sequence.case(k), job.sequence.rng(k))} for k in samples]
    rates = [job.optimiser.lr] * len(state.optimiser.param_groups)
    batches = [to_device(stacked(drawn), device) for _ in range(updates)]
    return [float(update(batch, step / updates, rates)["loss"]) for step, batch in enumerate(batches)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in SMALL if RECIPES[name].method not in (None, "moco", "unimiss")])
def test_a_small_recipe_pretrains_on_a_real_scan(name: str, head: PreparedDataset, tmp_path: Path) -> None:
    """But for MoCo and UniMiSS, whose losses rise while queue and centre fill; see tests/methods."""
    config = replace(RECIPES[name].settings("pretrain"), data=head.path, runs=str(tmp_path), splits=("train",))
    # An epoch of one case would be one update.
    config = replace(config, training=replace(config.training, steps_per_epoch=50))
    first, *_, last = losses(pretrain.build_job(config), head, 6)
    assert last < 0.98 * first


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["small", "resenc-small", "swin-unetr-small", "unetr-small", "mit-small"])
def test_a_small_network_is_finetuned_on_a_real_scan(name: str, head: PreparedDataset, tmp_path: Path) -> None:
    config = replace(RECIPES[name].settings("finetune"), data=head.path, runs=str(tmp_path))
    first, *_, last = losses(finetune.build_job(config), head, 6)
    assert last < 0.98 * first
