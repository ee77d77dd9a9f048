"""What holds for every method: it is resumed exactly, computes in half precision, is watched, and starts a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anatomask.config import PretrainConfig
from anatomask.data.samples import LoaderConfig
from anatomask.data.shards import PreparedDataset
from anatomask.methods.base import MethodConfig
from anatomask.methods.byol import BYOLConfig
from anatomask.methods.mae import MAEConfig
from anatomask.methods.moco import MoCoConfig
from anatomask.methods.selfmedmae import SelfMedMAEConfig
from anatomask.methods.swinunetr_ssl import SwinUNETRSSLConfig
from anatomask.methods.unimiss import UniMiSSMethodConfig
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.nn.backbones.swin_unetr import SwinUNETRConfig
from anatomask.nn.backbones.unetr import UNETRConfig
from anatomask.nn.backbones.unimiss import UniMiSSConfig
from anatomask.stages.costs import pretraining_update, worker_cost
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.fixed_scans import FixedCases
from anatomask.training.parallel import Workers
from anatomask.training.pretraining import PretrainingTask
from anatomask.training.recorder import RunRecorder
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.training.state import TrainingState
from anatomask.training.update import Update
from anatomask.weights.files import Weights, describe_architecture, initialise
from tests.methods.drawn import drawn_batch

CPU = torch.device("cpu")
LOADER = LoaderConfig(patch_size=(64, 32, 32))
STUNET = STUNetConfig(base=2)
RESENC = ResEncConfig(widths=(4, 8, 8), blocks=(1, 1, 1))
MIT = UniMiSSConfig(
    widths=(4, 8, 16, 32),
    depths=(1, 1, 1, 1),
    decoder_depths=(1, 1, 1),
    decoder_heads=(4, 2, 1),
    stem_width=8,
    patch_size=LOADER.patch_size,
    slice_size=64,
)
METHODS: list[tuple[MethodConfig, BackboneConfig]] = [
    (BYOLConfig(hidden=16, projection=8), STUNET),
    (MoCoConfig(hidden=16, projection=8, queue=8), STUNET),
    (MAEConfig(patch=8), STUNET),
    (MAEConfig(patch=8), RESENC),
    (SwinUNETRSSLConfig(), SwinUNETRConfig(feature_size=6, depths=(1, 1, 1, 1), window=4)),
    (UniMiSSMethodConfig(hidden=16, bottleneck=8, outputs=32), MIT),
    (
        SelfMedMAEConfig(decoder_width=12, decoder_depth=1, decoder_heads=2),
        UNETRConfig(patch_size=LOADER.patch_size, width=12, depth=4, attention_heads=2, feature_size=2),
    ),
]

every_method = pytest.mark.parametrize(
    ("method", "network"), METHODS, ids=[f"{method.name}-{network.name}" for method, network in METHODS]
)


def header(method: MethodConfig, network: BackboneConfig) -> dict[str, Any]:
    return {
        "kind": "pretraining",
        "architecture": describe_architecture(network),
        "encoder": method.encoder,
        "stages": method.stages(network),
    }


def task(method: MethodConfig, network: BackboneConfig, dataset: PreparedDataset) -> PretrainingTask:
    fixed = FixedCases(("one",), held_out=False)
    return PretrainingTask(method, network, LOADER, header(method, network), dataset.path, fixed, 0, CPU)


def train(
    new: PretrainingTask, method: MethodConfig, dataset: PreparedDataset, run: Path, last: int, **fields: Any
) -> list[float]:
    """Train a task from the last checkpoint in `run` to update `last`; losses."""
    losses = []
    with Checkpoints(run) as checkpoints:
        start = checkpoints.step()
        checkpoints.load(start, new)
        state = TrainingState.of(new, OptimiserConfig(), CPU)
        checkpoints.load_moments(start, state)
        update = Update(state, new, Workers(), TrainingConfig(batch_size=2, **fields), 12.0, CPU)
        draw = method.draw(LOADER)
        for step in range(start, last):
            batch = drawn_batch(dataset, draw, (2 * step, 2 * step + 1))
            losses.append(float(update(batch, step / 6, [1e-3] * len(state.optimiser.param_groups))["loss"]))
        checkpoints.save(last, state, None)
    return losses


@every_method
def test_a_run_that_was_stopped_goes_on_exactly(
    method: MethodConfig, network: BackboneConfig, head_scan: PreparedDataset, tmp_path: Path
) -> None:
    whole, first, second = (task(method, network, head_scan) for _ in range(3))
    losses = train(whole, method, head_scan, tmp_path / "whole", 3)
    parts = train(first, method, head_scan, tmp_path / "parts", 2)
    parts += train(second, method, head_scan, tmp_path / "parts", 3)
    assert parts == losses and len(set(losses)) == 3
    assert second.kept().state_dict().keys() == whole.kept().state_dict().keys()
    for name, tensor in whole.kept().state_dict().items():
        assert torch.equal(second.kept().state_dict()[name], tensor), name


@every_method
def test_half_precision_computes_about_the_same_loss(
    method: MethodConfig, network: BackboneConfig, head_scan: PreparedDataset, tmp_path: Path
) -> None:
    full, half = (
        train(task(method, network, head_scan), method, head_scan, tmp_path / precision, 1, precision=precision)
        for precision in ("fp32", "bf16")
    )
    assert half != full
    assert half == pytest.approx(full, rel=0.1)


@every_method
def test_what_is_recorded_changes_no_weight(
    method: MethodConfig, network: BackboneConfig, head_scan: PreparedDataset, tmp_path: Path
) -> None:
    watched = task(method, network, head_scan)
    before = {name: tensor.clone() for name, tensor in watched.kept().state_dict().items()}
    recorder = RunRecorder(tmp_path, 0)
    assert watched.validate(recorder, 1) is None
    watched.after_step(0.0)
    recorder.close()
    for name, tensor in watched.kept().state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-6, atol=1e-7)
    assert all(module.training for module in watched.method.modules())
    assert '"val/loss"' in (tmp_path / "metrics.jsonl").read_text()
    assert (tmp_path / "pictures" / "views.png").is_file()


@every_method
def test_its_encoder_starts_a_segmentation_network(method: MethodConfig, network: BackboneConfig) -> None:
    weights: dict[str, Tensor] = method.build(network).state_dict()
    started = network.segmenter(classes=2)
    initialise(started, Weights(weights, header(method, network)))
    encoder = {name.removeprefix(method.encoder): weights[name] for name in weights if name.startswith(method.encoder)}
    taken = network.fitted({f"encoder.{name}": tensor for name, tensor in encoder.items()})
    for name, tensor in started.encoder.state_dict().items():
        if method.encoder + name in weights:
            assert torch.equal(tensor, taken[f"encoder.{name}"]), name
    assert sum(name.startswith(method.encoder) for name in weights) > 20


@every_method
def test_the_dry_run_counts_what_an_update_costs(method: MethodConfig, network: BackboneConfig) -> None:
    one = PretrainConfig(data="x", method=method, network=network, loader=LOADER)
    two = replace(one, cluster=replace(one.cluster, workers=2))
    alone, shared = (worker_cost(config, *pretraining_update(config)) for config in (one, two))
    assert shared.flops == pytest.approx(alone.flops / 2, rel=0.01)
    assert 0 < shared.activation_bytes < alone.activation_bytes
