"""The example of `docs/methods.md`, run as it stands there, on a real scan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from anatomask.cli.main import main
from anatomask.data.samples import LoaderConfig, SampleSequence
from anatomask.data.shards import PreparedDataset
from anatomask.methods import method_config, method_names
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.plugins import load_module
from anatomask.training.fixed_scans import FixedCases
from anatomask.training.loop import to_device
from anatomask.training.parallel import Workers
from anatomask.training.pretraining import PretrainingTask
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.training.state import TrainingState
from anatomask.training.update import Update

CPU = torch.device("cpu")


@pytest.fixture
def plugin(plugin_of: Callable[[str], Path]) -> Path:
    return plugin_of("methods.md")


def test_the_example_learns_on_a_real_scan(plugin: Path, head_scan: PreparedDataset) -> None:
    load_module(plugin, "--plugin")
    assert "denoising" in method_names()
    settings, loader = method_config("denoising")(), LoaderConfig(patch_size=(32, 32, 48))
    fixed = FixedCases(("one",), held_out=False)
    task = PretrainingTask(settings, STUNetConfig(base=2), loader, {}, head_scan.path, fixed, 0, CPU)
    state = TrainingState.of(task, OptimiserConfig(lr=1e-2), CPU)
    update = Update(state, task, Workers(), TrainingConfig(batch_size=2), 12.0, CPU)
    draw, sequence, losses = settings.draw(loader), SampleSequence(("one",), 0), []
    for step in range(20):
        drawn = [{"sample": np.asarray(k), **draw(head_scan, "one", sequence.rng(k))} for k in (2 * step, 2 * step + 1)]
        batch = to_device({name: np.stack([sample[name] for sample in drawn]) for name in drawn[0]}, CPU)
        losses.append(float(update(batch, step / 20, [1e-2] * len(state.optimiser.param_groups))["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_its_plan(plugin: Path, head_scan: PreparedDataset, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--recipe", "tiny", "--data", head_scan.path, "--splits", "train", "--loader.patch-size", "32", "32", "48"]
    assert main(["pretrain", "--method", "denoising", *argv, "--dry-run"]) == 1
    assert "--plugin FILE.py adds more" in capsys.readouterr().err.replace("\n", " ")
    argv += ["--plugin", str(plugin), "--method", "denoising", "--method.noise", "0.25", "--dry-run"]
    assert main(["pretrain", *argv]) == 0
    assert "parameters" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
def test_it_is_trained_and_finetuned_from(
    plugin: Path,
    head_scan: PreparedDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    forget_plugins: Callable[[], None],
) -> None:
    """In Ray's processes, which have to load the file too; another file is another run."""
    argv = [
        "--recipe",
        "tiny",
        "--data",
        head_scan.path,
        "--splits",
        "train",
        "--loader.patch-size",
        "32",
        "32",
        "48",
        "--name",
        "run",
    ]
    argv += ["--network.base", "2", "--training.epochs", "2", "--training.steps-per-epoch", "1"]
    argv += ["--runs", str(tmp_path / "runs"), "--plugin", str(plugin)]
    command = ["pretrain", "--method", "denoising", *argv]
    assert main(command) == 0
    assert "name: denoising" in (tmp_path / "runs/run/config.yaml").read_text()
    forget_plugins()
    plugin.write_text(plugin.read_text() + "# changed\n")
    capsys.readouterr()
    assert main(command) == 1
    assert "--plugin changed since" in capsys.readouterr().err.replace("\n", " ")
