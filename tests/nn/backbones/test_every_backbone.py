"""What holds for every backbone: shapes, names, gradients, crops, and what a header says of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from anatomask.errors import UserError
from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.methods.base import MethodConfig
from anatomask.methods.byol import BYOLConfig
from anatomask.nn.backbones import BACKBONES, backbone_config
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.nn.backbones.unetr import UNETRConfig
from anatomask.nn.backbones.unimiss import UniMiSSConfig
from anatomask.training.finetuning import prepare_gradients
from anatomask.training.losses import segmentation_loss
from anatomask.weights.files import describe_architecture, initialise, network_of, require_same_size
from anatomask.weights.header import parse_header
from anatomask.weights.matching import is_named
from anatomask.weights.tensor_files import Weights

SMALL: dict[str, dict[str, Any]] = {
    "stunet": {"base": 2},
    "resenc": {"widths": (4, 4, 8, 8, 8, 8), "blocks": (1, 1, 1, 2, 1, 1)},
    "swin_unetr": {"feature_size": 12},
    "unimiss": {
        "widths": (4, 8, 16, 32),
        "depths": (1, 1, 1, 1),
        "decoder_depths": (1, 1, 1),
        "decoder_heads": (4, 2, 1),
        "stem_width": 8,
        "patch_size": (64, 32, 32),
    },
    "unetr": {"patch_size": (64, 32, 32), "width": 24, "depth": 4, "attention_heads": 2, "feature_size": 4},
}
CROP = (64, 32, 32)


@pytest.fixture(params=BACKBONES)
def config(request: pytest.FixtureRequest) -> BackboneConfig:
    if request.param == "swin_unetr":
        pytest.importorskip("einops")
    return backbone_config(request.param)(**SMALL[request.param])


def test_logits_have_the_strides_that_the_loss_takes(config: BackboneConfig) -> None:
    network, volume = config.segmenter(3), torch.randn(1, 1, *CROP)
    prepare_gradients(network, frozen=False)
    levels = network(volume)
    assert levels[0].shape == (1, 4, *CROP)
    for level in levels:
        stride = CROP[0] // level.shape[2]
        axes = next(axes for axes in ((1, 1, 1), *config.axis_strides) if axes[0] == stride)
        assert level.shape == (1, 4, *np.floor_divide(CROP, axes))
    segmentation_loss(levels, torch.randint(0, 4, (1, 1, *CROP))).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    left = {name for part in network.without_loss() for name, _ in part.named_parameters()}
    assert sum(not parameter.requires_grad for parameter in network.parameters()) == len(left)


def test_the_last_head_reads_what_comes_before_it(config: BackboneConfig) -> None:
    network, volume = config.segmenter(3).eval(), torch.randn(1, 1, *CROP)
    with torch.no_grad():
        head, before = network.last_head, network.before_head(volume)
        assert head is not None and before.shape == (1, head.in_channels, *CROP) and set(head.kernel_size) == {1}
        torch.testing.assert_close(head(before), network(volume)[0])


def test_the_encoder_is_as_it_says_and_has_the_same_names_in_both(config: BackboneConfig) -> None:
    encoder, network = config.encoder(), config.segmenter(3)
    maps = encoder(torch.randn(1, 1, *CROP))
    assert encoder.strides == config.strides and len(encoder.widths) == len(maps)
    for encoded, width, strides in zip(maps, encoder.widths, config.axis_strides, strict=True):
        assert encoded.shape == (1, width, *np.floor_divide(CROP, strides))
    shapes = {name: tensor.shape for name, tensor in network.encoder.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    parts = [parameter for part in encoder.parts() for parameter in part.parameters()]
    assert len(parts) == len(set(parts)) == len(list(encoder.parameters()))


def test_names_of_stem_heads_and_what_stays_fresh(config: BackboneConfig) -> None:
    network = config.segmenter(3)
    state, wider, more = (
        one.state_dict()
        for one in (network, type(config)(**{**SMALL[config.name], "in_channels": 2}).segmenter(3), config.segmenter(5))
    )
    assert {name for name in state if state[name].shape != wider[name].shape} == set(config.stem)
    assert {name for name in state if state[name].shape != more[name].shape} == {
        name for name in state if is_named(name, config.heads)
    }
    fresh = config.fresh(len(config.strides))
    assert all(name.startswith("encoder.") != is_named(name, fresh) for name in state)


def test_a_header_describes_it(config: BackboneConfig) -> None:
    header = json.loads(json.dumps({"architecture": describe_architecture(config, 3)}))
    assert header["architecture"]["name"] == config.name and network_of(header) == config


def test_strides_are_in_the_header_where_they_are_not_the_published_ones() -> None:
    assert "pooling" not in describe_architecture(STUNetConfig())
    config = STUNetConfig(base=2, pooling=((2, 2, 2),) * 5)
    header = json.loads(json.dumps({"architecture": describe_architecture(config)}))
    assert network_of(parse_header(json.dumps(header))) == config
    with pytest.raises(UserError, match=r"depth 1, the network has widths .*pooling.*set .*network\.pooling alike"):
        require_same_size({"architecture": describe_architecture(STUNetConfig(base=2))}, config)


def test_a_finetuned_network_starts_one_of_more_channels_and_classes(config: BackboneConfig) -> None:
    source = config.segmenter(2).state_dict()
    header = {"kind": "segmentation", "architecture": describe_architecture(config, 2)}
    network = type(config)(**{**SMALL[config.name], "in_channels": 2}).segmenter(4)
    left_out = initialise(network, Weights(source, header))
    assert left_out == sorted(name for name in source if is_named(name, config.heads))
    for name, tensor in network.state_dict().items():
        if name in config.stem:
            assert torch.equal(tensor[:, :1], source[name]) and torch.equal(tensor[:, 1:], source[name])
        elif name not in left_out:
            assert torch.equal(tensor, source[name])


@pytest.mark.parametrize("method", [AnatoMaskConfig(decoder_width=16), BYOLConfig(hidden=8, projection=8)])
def test_what_pretraining_leaves_fresh_in_finetuning(config: BackboneConfig, method: MethodConfig) -> None:
    if not config.convolutional:
        with pytest.raises(ValueError, match=f"network {config.name} cannot be pretrained"):
            method.check_network(config)
        return
    stages = method.stages(config)
    header = {"kind": "pretraining", "architecture": describe_architecture(config), "stages": stages}
    weights = Weights(method.build(config).state_dict(), {**header, "encoder": method.encoder})
    network = config.segmenter(2)
    left_out = initialise(network, weights)
    assert sum(stride <= 16 for stride in config.strides) >= stages == 5
    for name, tensor in network.state_dict().items():
        taken = weights.tensors.get(f"{method.encoder}{name.removeprefix('encoder.')}")
        trained = name.startswith("encoder.") and taken is not None
        assert (name in left_out) != trained
        assert not trained or torch.equal(tensor, taken)  # type: ignore[arg-type]
    assert any(name.startswith("encoder.stages.5.") for name in left_out)


def test_one_step_of_every_method_trains_every_parameter(config: BackboneConfig) -> None:
    if not config.convolutional:
        return
    methods: list[MethodConfig] = [AnatoMaskConfig(decoder_width=16, r0=0.5), BYOLConfig(hidden=8, projection=8)]
    for settings in methods:
        method = settings.build(config)
        batch = method.dummy_batch(2, CROP)
        for part in batch if isinstance(batch, tuple) else (batch.volume, batch.noise):
            part.copy_(torch.rand(part.shape))
        method.training_step(batch, 0.5).loss.backward()
        assert all(parameter.grad is not None for parameter in method.trainable().parameters())


def test_crops_that_do_not_fit_are_refused_with_one_that_does(config: BackboneConfig) -> None:
    if isinstance(config, UniMiSSConfig | UNETRConfig):
        assert config.fitting_crop((96, 96, 96)) == config.patch_size
        config.check_crop(config.patch_size)
        with pytest.raises(ValueError, match=r"set --network.patch-size 96 96 96, too .* --loader.patch-size 64 32 32"):
            config.check_crop((96, 96, 96))
        return
    stride = max(config.strides)
    for size in ((3 * stride, 2 * stride, 2 * stride + 8), (stride, stride, stride)):
        with pytest.raises(ValueError, match=f"patch_size .* multiples of {stride}") as error:
            config.check_crop(size)
        fitting = config.fitting_crop(size)
        assert str(fitting) in str(error.value)
        config.check_crop(fitting)
        assert all(edge >= asked for edge, asked in zip(fitting, size, strict=True))
    config.check_crop((2 * stride, stride, stride))
