"""The dense masked autoencoder: what it hides, its loss, and the transfer of encoder and decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anatomask.config import FinetuneConfig, ImportWeightsConfig, PretrainConfig
from anatomask.data.samples import LoaderConfig
from anatomask.data.shards import PreparedDataset
from anatomask.methods.mae import MAE, MAEConfig, reconstructor
from anatomask.methods.masked import MaskedBatch
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.nn.backbones.swin_unetr import SwinUNETRConfig
from anatomask.stages import finetune, pretrain
from anatomask.stages.import_weights import describe, read_file
from anatomask.training.settings import TrainingConfig
from anatomask.weights.axes import turned
from anatomask.weights.files import Weights, describe_architecture, initialise, write_weights
from tests.methods.drawn import drawn_batch

SETTINGS = MAEConfig(patch=8)
STUNET = STUNetConfig(base=2)
RESENC = ResEncConfig(widths=(4, 8, 8), blocks=(1, 1, 1))


def test_three_of_four_blocks_are_hidden_and_alone_are_scored() -> None:
    torch.manual_seed(0)
    method = MAE(reconstructor(STUNET), SETTINGS)
    batch = MaskedBatch(torch.randn(2, 1, 32, 32, 16), torch.rand(2, 2, 32))
    reconstruction, hidden = method.reconstruct(batch)
    assert reconstruction.shape == batch.volume.shape
    blocks = hidden[:, 0].reshape(2, 4, 8, 4, 8, 2, 8)
    assert (blocks.amax((2, 4, 6)) == blocks.float().mean((2, 4, 6))).all()  # whole blocks
    assert blocks[:, :, 0, :, 0, :, 0].flatten(1).sum(1).tolist() == [24, 24]
    error = torch.nn.functional.mse_loss(reconstruction[hidden], batch.volume[hidden])
    torch.testing.assert_close(method.training_step(batch, 0.0).loss, error)
    elsewhere = MaskedBatch(torch.where(hidden, torch.randn(hidden.shape), batch.volume), batch.noise)
    torch.testing.assert_close(method.reconstruct(elsewhere)[0], reconstruction)  # hidden voxels are not read
    views = method.views(batch)
    assert list(views) == ["scan", "visible", "reconstruction"]
    assert torch.equal(views["reconstruction"][~hidden[0]], batch.volume[0][~hidden[0]])


@pytest.mark.parametrize("network", [STUNET, RESENC])
def test_every_parameter_gets_a_gradient(network: BackboneConfig) -> None:
    """As distributed training needs."""
    method = SETTINGS.build(network)
    method.training_step(MaskedBatch(torch.randn(1, 1, 32, 32, 32), torch.rand(1, 2, 64)), 0.0).loss.backward()
    assert all(parameter.grad is not None for parameter in method.trainable().parameters())


@pytest.mark.parametrize("network", [STUNET, RESENC])
def test_encoder_and_decoder_start_a_segmentation_network(network: BackboneConfig) -> None:
    weights = SETTINGS.build(network).state_dict()
    header = {
        "kind": "pretraining",
        "architecture": describe_architecture(network),
        "encoder": SETTINGS.encoder,
        "whole": SETTINGS.whole,
        "stages": SETTINGS.stages(network),
    }
    whole, encoder = network.segmenter(3), network.segmenter(3)
    fresh = initialise(whole, Weights(weights, header))
    assert fresh and all(name.startswith(network.heads) for name in fresh)
    for name, tensor in whole.state_dict().items():
        assert name in fresh or torch.equal(tensor, weights[SETTINGS.whole + name]), name
    left = initialise(encoder, Weights(weights, header), "encoder")
    assert set(left) == {name for name in encoder.state_dict() if not name.startswith("encoder.")}


def test_a_finetuning_takes_over_what_a_run_trained(head: PreparedDataset, tmp_path: Path) -> None:
    """From the job of a pretraining to that of a finetuning, without training."""
    common: dict[str, Any] = {"data": head.path, "network": STUNET, "loader": LoaderConfig((32, 32, 32)), "seed": 1}
    training = TrainingConfig(epochs=30, batch_size=1)
    config = PretrainConfig(**common, method=SETTINGS, training=training, runs=str(tmp_path), splits=("train",))
    task = pretrain.build_job(config).build_task(torch.device("cpu"))
    write_weights(tmp_path / "weights", task.kept().state_dict(), task.header)
    finetuning = FinetuneConfig(**common, training=training, runs=str(tmp_path), init=str(tmp_path / "weights"))
    started = finetune.build_job(finetuning).build_task(torch.device("cpu"))
    ours, theirs = started.kept().state_dict(), task.kept().state_dict()
    taken = [name for name in ours if not name.startswith("heads.")]
    assert all(torch.equal(ours[name], theirs[f"network.{name}"]) for name in taken)
    assert started.header["loaded"]["tensors"] == len(taken)
    assert started.header["initialisation"]["method"] == "MAE"


def test_the_loss_falls_on_a_real_scan(head_scan: PreparedDataset) -> None:
    torch.manual_seed(0)
    method = SETTINGS.build(STUNET)
    draw = SETTINGS.draw(LoaderConfig(patch_size=(32, 32, 32)))
    optimiser = torch.optim.AdamW(method.trainable().parameters(), 1e-2)
    losses = []
    for step in range(16):
        optimiser.zero_grad()
        loss = method.training_step(method.batch(drawn_batch(head_scan, draw, (step,))), 0.0).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_published_weights_of_nnssl_start_a_network(tmp_path: Path) -> None:
    """Their file has second names for many tensors, and a head of one output at every level."""
    state = SETTINGS.build(RESENC).state_dict()
    ours = {name.removeprefix(SETTINGS.whole): tensor for name, tensor in state.items()}
    encoder = {name: tensor for name, tensor in ours.items() if name.startswith("encoder.")}
    heads = {name: tensor[:1] for name, tensor in RESENC.segmenter(1).state_dict().items() if "seg_layers" in name}
    published = {**ours, **{f"decoder.{name}": tensor for name, tensor in encoder.items()}, **heads}
    file = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": published, "nnssl_adaptation_plan": {"key_to_encoder": "encoder.stages"}}, file)
    weights = read_file(ImportWeightsConfig(str(file), str(tmp_path / "out")))
    assert weights.header["kind"] == "pretraining"
    assert len(weights.header["not_transferred"]) == len(heads)
    assert describe(weights)[1][0] == "pretrained encoder and decoder"
    network = RESENC.segmenter(3)
    fresh = initialise(network, weights)
    assert len(fresh) == len(heads)
    for name, tensor in network.state_dict().items():
        assert name in fresh or torch.equal(tensor, turned(ours)[name]), name


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {"network": SwinUNETRConfig(), "loader": LoaderConfig((64, 64, 64))},
            "swin_unetr cannot be pretrained by",
        ),
        ({"network": ResEncConfig(), "loader": LoaderConfig((48, 48, 48))}, "multiples of 32, .* the network resenc"),
        ({"method": MAEConfig(patch=32), "loader": LoaderConfig((48, 48, 48))}, "multiples of method.patch 32"),
    ],
)
def test_what_does_not_go_with_it_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PretrainConfig(data="x", **{"method": MAEConfig(), **fields})
