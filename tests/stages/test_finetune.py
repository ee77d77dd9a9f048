"""What a finetuning starts from, and how it learns, without training it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from anatomask.config import FinetuneConfig
from anatomask.data.samples import LoaderConfig
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.predictor import Predictor
from anatomask.evaluation.settings import InferenceConfig
from anatomask.nn.backbones import backbone_config
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig, STUNetEncoder
from anatomask.nn.backbones.unetr import UNETRConfig
from anatomask.stages.finetune import build_job, plan
from anatomask.training.finetuning import FinetuningTask
from anatomask.training.job import TrainingJob
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.training.state import TrainingState
from anatomask.weights.files import describe_architecture, read_weights, write_weights

CPU = torch.device("cpu")
NETWORK = STUNetConfig(base=2)


@pytest.fixture
def config(head: PreparedDataset, tmp_path: Path) -> FinetuneConfig:
    return FinetuneConfig(
        data=head.path,
        runs=str(tmp_path / "runs"),
        network=NETWORK,
        loader=LoaderConfig(patch_size=(48, 48, 48)),
        optimiser=OptimiserConfig(warmup_epochs=0),
        training=TrainingConfig(epochs=4),
    )


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """Weights of a pretraining whose encoder has five stages."""
    encoder = STUNetEncoder(NETWORK, stages=5)
    tensors = {f"student.encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    header = {
        "kind": "pretraining",
        "architecture": describe_architecture(NETWORK),
        "method": {"name": "AnatoMask", "patch": 16},
        "dataset": "scans",
    }
    write_weights(tmp_path / "pretrained", tensors, header)
    return tmp_path / "pretrained"


def network_task(job: TrainingJob) -> FinetuningTask:
    task = job.build_task(CPU)
    assert isinstance(task, FinetuningTask)
    return task


def test_nothing_is_loaded_from_scratch(config: FinetuneConfig) -> None:
    job = build_job(config)
    loaded = job.build_task(CPU).header["loaded"]
    network = STUNet(NETWORK, 5)
    assert loaded == {
        "tensors": 0,
        "of_tensors": len(network.state_dict()),
        "parameters": 0,
        "of_parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    assert job.origin == "starts from random weights"
    assert ("from", job.origin) in plan(config)


@pytest.mark.parametrize("transfer", ["", "encoder:", "permuted:"])
def test_what_is_loaded_is_counted_before_training_and_stands_in_the_header(
    transfer: str, config: FinetuneConfig, pretrained: Path
) -> None:
    job = build_job(dataclasses.replace(config, init=f"{transfer}{pretrained}"))
    task = network_task(job)
    twin = network_task(build_job(config)).network.state_dict()
    changed = {n: t for n, t in task.network.state_dict().items() if not torch.equal(t, twin[n])}
    transferred = [name for name in twin if name not in task.header["not_transferred"]]
    assert changed.keys() <= set(transferred)  # norms begin alike
    assert all(name.startswith("encoder.") and not name.startswith("encoder.stages.5.") for name in transferred)
    loaded = task.header["loaded"]
    assert loaded["tensors"] == len(transferred) == 5 * 10
    assert loaded["parameters"] == sum(twin[name].numel() for name in transferred)
    share = 100 * loaded["parameters"] / loaded["of_parameters"]
    assert job.origin.startswith(f"loaded 50 of {len(twin)} tensors, ")
    assert f" M parameters ({share:.0f} %) from {transfer}{pretrained}" in job.origin


def test_weights_that_do_not_fit_are_refused_before_anything_starts(config: FinetuneConfig, pretrained: Path) -> None:
    (pretrained / "model.safetensors").unlink()
    header = {
        "kind": "pretraining",
        "architecture": describe_architecture(NETWORK),
        "method": {"name": "AnatoMask", "patch": 16},
        "dataset": "scans",
    }
    write_weights(pretrained, {"student.encoder.stages.0.0.conv1.weight": torch.zeros(2, 1, 3, 3, 3)}, header)
    with pytest.raises(UserError, match="shortcut"):
        build_job(dataclasses.replace(config, init=str(pretrained)))


def test_an_encoder_that_never_learns_computes_no_gradient(config: FinetuneConfig) -> None:
    """Frozen for the whole training it is left out of the optimiser; frozen for a part of it, it waits there."""
    whole = dataclasses.replace(config, optimiser=OptimiserConfig(warmup_epochs=0, freeze=4))
    part = dataclasses.replace(config, optimiser=OptimiserConfig(warmup_epochs=0, freeze=3))
    for given, starts in ((whole, [0]), (part, [3, 0])):
        task = network_task(build_job(given))
        wanted = {parameter.requires_grad for parameter in task.network.encoder.parameters()}
        assert wanted == {given is part}
        heads = [task.network.get_parameter(f"heads.{level}.weight") for level in (0, 1)]
        assert [weight.requires_grad for weight in heads] == [False, True]
        groups = TrainingState.of(task, given.optimiser, CPU).optimiser.param_groups
        assert [group["start"] for group in groups] == starts


UNETR: dict[str, Any] = {"patch_size": (64, 32, 32), "width": 12, "depth": 4, "attention_heads": 2, "feature_size": 2}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resenc", {"widths": (4, 8, 8), "blocks": (1, 1, 2)}),
        ("swin_unetr", {"feature_size": 12}),
        ("unetr", UNETR),
    ],
)
def test_other_networks_are_planned_trained_and_built_again_from_their_header(
    name: str, sizes: dict[str, Any], config: FinetuneConfig, tmp_path: Path
) -> None:
    if name == "swin_unetr":
        pytest.importorskip("einops")
    config = dataclasses.replace(
        config, network=backbone_config(name)(**sizes), loader=LoaderConfig(patch_size=(64, 32, 32))
    )
    rows = dict(plan(config))
    assert float(rows["parameters"].split()[0]) > 0 and any("memory" in row for row in rows)
    job = build_job(config)
    task = job.build_task(CPU)
    dataset = PreparedDataset.open(config.data)
    sample = job.draw(dataset, job.sequence.case(0), job.sequence.rng(0))
    loss, _ = task({key: torch.as_tensor(value)[None] for key, value in sample.items()}, 0.0)
    loss.backward()
    assert loss.isfinite() and job.largest_stride == max(config.network.strides)
    write_weights(tmp_path / "weights", task.trainable().state_dict(), task.header)
    predictor = Predictor.of(read_weights(tmp_path / "weights"), InferenceConfig(mirror=False))
    assert type(predictor.network) is type(task.trainable())
    volume = torch.randn(1, 64, 32, 32)
    with torch.no_grad():
        finest = task.trainable().eval()(volume[None])[0]
    torch.testing.assert_close(predictor.logits(volume), finest[0], rtol=1e-4, atol=1e-4)


def test_blocks_are_skipped_by_the_seed_and_the_samples(config: FinetuneConfig) -> None:
    """So that a run that goes on skips the same, whatever the state of the generator."""
    network = UNETRConfig(**UNETR, drop_path=0.5)
    config = dataclasses.replace(config, network=network, loader=LoaderConfig(patch_size=(64, 32, 32)))
    job = build_job(config)
    task, dataset = job.build_task(CPU), PreparedDataset.open(config.data)
    drawn = job.draw(dataset, job.sequence.case(0), job.sequence.rng(0))
    sample = {key: torch.as_tensor(value)[None] for key, value in drawn.items()}
    numbers = [torch.tensor([number]) for number in (0, 1, 2, 3, 4, 5)]
    first = [float(task({**sample, "sample": number}, 0.0)[0].detach()) for number in numbers]
    torch.manual_seed(77)
    assert [float(task({**sample, "sample": number}, 0.0)[0].detach()) for number in numbers[::-1]] == first[::-1]
    assert len(set(first)) > 1


def test_a_frozen_encoder_and_sgd_take_less_memory_in_the_plan(config: FinetuneConfig) -> None:
    def memory(optimiser: OptimiserConfig) -> str:
        rows = dict(plan(dataclasses.replace(config, optimiser=optimiser)))
        return next(value for name, value in rows.items() if "memory" in name)

    shown = [memory(OptimiserConfig(warmup_epochs=0, **more)) for more in ({}, {"name": "sgd"}, {"freeze": 4})]
    assert len(set(shown)) == 3
