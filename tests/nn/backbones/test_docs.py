"""The example of `docs/backbones.md`, run as it stands there, on a real scan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from anatomask.cli.arguments import parse
from anatomask.cli.main import main
from anatomask.config import FinetuneConfig
from anatomask.data.samples import LoaderConfig, stacked
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.predictor import Predictor
from anatomask.nn.backbones import backbone_config, backbone_names
from anatomask.plugins import load_module
from anatomask.recipes import RECIPES
from anatomask.stages.finetune import build_job
from anatomask.training.loop import to_device
from anatomask.training.parallel import Workers
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.training.state import TrainingState
from anatomask.training.update import Update
from anatomask.weights.files import read_weights, write_weights

CPU = torch.device("cpu")


@pytest.fixture
def plugin(plugin_of: Callable[[str], Path]) -> Path:
    return plugin_of("backbones.md")


def test_the_example_learns_on_a_real_scan_and_predicts(plugin: Path, head: PreparedDataset, tmp_path: Path) -> None:
    load_module(plugin, "--plugin")
    assert "two_stages" in backbone_names()
    config = FinetuneConfig(
        data=head.path,
        runs=str(tmp_path / "runs"),
        network=backbone_config("two_stages")(),
        loader=LoaderConfig(patch_size=(32, 32, 32), foreground=1),
        optimiser=OptimiserConfig(warmup_epochs=0),
        training=TrainingConfig(epochs=1, batch_size=2),
    )
    job = build_job(config)
    task = job.build_task(CPU)
    state = TrainingState.of(task, config.optimiser, CPU)
    update, losses = Update(state, task, Workers(), config.training, 12.0, CPU), []
    for step in range(12):
        drawn = [
            {"sample": np.asarray(k), **job.draw(head, job.sequence.case(k), job.sequence.rng(k))}
            for k in (2 * step, 2 * step + 1)
        ]
        batch = to_device(stacked(drawn), CPU)
        losses.append(float(update(batch, step / 12, [1e-2] * len(state.optimiser.param_groups))["loss"]))
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    write_weights(tmp_path / "weights", task.trainable().state_dict(), task.header)
    weights = read_weights(tmp_path / "weights")
    assert weights.header["architecture"] == {"name": "two_stages", "in_channels": 1, "width": 16, "classes": 5}
    logits = Predictor.of(weights).logits(torch.randn(1, 40, 32, 32))
    assert logits.shape == (6, 40, 32, 32) and logits.isfinite().all()


def test_its_plan(plugin: Path, head: PreparedDataset, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["finetune", "--recipe", "tiny", "--data", head.path, "--network", "two_stages", "--dry-run"]
    assert main(argv) == 1
    assert "--plugin FILE.py adds more" in capsys.readouterr().err.replace("\n", " ")
    assert main([*argv, "--plugin", str(plugin), "--network.width", "8"]) == 0
    assert "parameters" in capsys.readouterr().out


def test_pretraining_it_is_refused(plugin: Path) -> None:
    load_module(plugin, "--plugin")
    with pytest.raises(UserError, match="two_stages cannot be pretrained by AnatoMask"):
        parse("pretrain", ["--recipe", "tiny", "--network", "two_stages", "--data", "x"], RECIPES)
