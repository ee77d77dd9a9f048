"""STU-Net: sizes as published, shapes, and names that let a pretrained encoder transfer."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from anatomask.config import PretrainConfig
from anatomask.nn.backbones.operations import NEGATIVE_SLOPE
from anatomask.nn.backbones.stunet import POOLING, ResidualBlock, STUNet, STUNetConfig, STUNetEncoder

THICK = (*POOLING[:4], (1, 2, 2))
"""Strides of thick slices across axis 0."""


def _millions(module: torch.nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 2)


@pytest.mark.parametrize(
    ("base", "depth", "segmentation", "encoder"),
    [(16, 1, 14.60, 3.58), (32, 1, 58.26, 14.31), (64, 2, 440.30, 132.66), (96, 3, 1457.33, 468.19)],
)
def test_parameter_counts_are_the_published_ones(base: int, depth: int, segmentation: float, encoder: float) -> None:
    config = STUNetConfig(base=base, depth=depth)
    with torch.device("meta"):
        assert _millions(STUNet(config, classes=104)) == segmentation
        assert _millions(STUNetEncoder(config, stages=5)) == encoder


def test_deep_supervision_answers_at_every_level() -> None:
    network = STUNet(STUNetConfig(in_channels=2, base=4), classes=3)
    volume = torch.randn(1, 2, 32, 48, 32)
    logits = network(volume)
    assert [tuple(level.shape) for level in logits] == [
        (1, 4, 32 // s, 48 // s, 32 // s) for s in (1, 2, 4, 8, 16)
    ]  # fmt: skip


def test_every_parameter_gets_a_gradient() -> None:
    network = STUNet(STUNetConfig(base=4, depth=2), classes=2)
    sum(level.square().mean() for level in network(torch.randn(1, 1, 32, 32, 32))).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_block_is_the_sum_of_its_layers(stride: int, channels_last: bool) -> None:
    """Outputs and gradients, in float64; the gradient of a bias that a norm takes away is zero."""
    torch.manual_seed(0)
    block = ResidualBlock(3, 4 if stride == 2 else 3, stride, projection=stride == 2).double()
    for norm in (block.norm1, block.norm2):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 4, 6, 8, dtype=torch.float64, requires_grad=True)
    given = x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x

    hidden = functional.leaky_relu(block.norm1(block.conv1(given)), NEGATIVE_SLOPE)
    skip = given if block.shortcut is None else block.shortcut(given)
    expected = functional.leaky_relu(block.norm2(block.conv2(hidden)) + skip, NEGATIVE_SLOPE)
    output, weights = block(given), [x, *block.parameters()]
    torch.testing.assert_close(output, expected)
    grad = torch.randn_like(expected)
    for mine, theirs in zip(*(torch.autograd.grad(y, weights, grad) for y in (output, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_convolving_before_upsampling_is_the_same() -> None:
    convolution = torch.nn.Conv3d(6, 3, 1)
    x = torch.randn(1, 6, 4, 4, 4)
    torch.testing.assert_close(
        functional.interpolate(convolution(x), scale_factor=2), convolution(functional.interpolate(x, scale_factor=2))
    )


def test_pretrained_encoder_is_the_beginning_of_the_segmentation_encoder() -> None:
    config = STUNetConfig(base=4, depth=2)
    pretrained, network = STUNetEncoder(config, stages=5), STUNet(config, classes=2)
    shapes = {name: tensor.shape for name, tensor in network.encoder.state_dict().items()}
    assert {name: tensor.shape for name, tensor in pretrained.state_dict().items()}.items() <= shapes.items()
    network.encoder.load_state_dict(pretrained.state_dict(), strict=False)
    volume = torch.randn(1, 1, 32, 32, 32)
    for mine, theirs in zip(pretrained(volume), network.encoder(volume), strict=False):
        torch.testing.assert_close(mine, theirs)


def test_widths_override_base() -> None:
    encoder = STUNetEncoder(STUNetConfig(widths=(4, 6, 8, 8, 12, 12)))
    assert [x.shape[1] for x in encoder(torch.randn(1, 1, 32, 32, 32))] == [4, 6, 8, 8, 12, 12]


def test_strides_of_its_own_per_axis() -> None:
    config = STUNetConfig(base=2, pooling=((2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 1)))
    assert config.strides == (1, 2, 4, 8, 16, 32) and config.crop_steps() == (4, 32, 16)
    assert [tuple(one.shape[2:]) for one in config.encoder()(torch.randn(1, 1, 16, 64, 32))] == [
        (16, 64, 32), (8, 32, 16), (4, 16, 8), (4, 8, 4), (4, 4, 2), (4, 2, 2)
    ]  # fmt: skip
    assert [tuple(one.shape[2:]) for one in STUNet(config, 2)(torch.randn(1, 1, 16, 32, 32))][-1] == (4, 2, 2)
    config.check_crop((16, 64, 48))
    with pytest.raises(ValueError, match=r"multiples of \(4, 32, 16\), .*choose \(20, 64, 16\)"):
        config.check_crop((20, 48, 16))
    assert config.fitting_crop((1, 32, 16)) == (8, 64, 32)


def test_pretraining_takes_other_strides_of_the_last_stage_alone() -> None:
    assert STUNetConfig(pooling=THICK).pretrained_stages(16) == STUNetConfig().pretrained_stages(16) == 5
    with pytest.raises(ValueError, match=r"network\.pooling must begin with 2 2 2 four times in pretraining"):
        PretrainConfig(data="x", network=STUNetConfig(pooling=((1, 2, 2), *POOLING[1:])))


@pytest.mark.parametrize(
    "bad",
    [
        {"base": 0},
        {"depth": 0},
        {"in_channels": 0},
        {"widths": (1, 2, 3)},
        {"pooling": ((2, 2, 2),)},
        {"pooling": ((2, 2, 0),) * 5},
    ],
)
def test_impossible_sizes_are_refused_by_name(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        STUNetConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "label"),
    [
        (STUNetConfig(in_channels=2, base=32), "STU-Net-B"),
        (STUNetConfig(base=96, depth=3), "STU-Net-H"),
        (STUNetConfig(base=32, depth=2), "STU-Net (base 32, depth 2)"),
        (STUNetConfig(widths=(64, 128, 256, 512, 1024, 1024), depth=2), "STU-Net-L"),
        (STUNetConfig(widths=(4, 6, 8, 8, 12, 12)), "STU-Net (widths 4, 6, 8, 8, 12, 12, depth 1)"),
        (STUNetConfig(pooling=POOLING), "STU-Net-B"),
        (STUNetConfig(pooling=THICK), "STU-Net-B (strides 1, 2, 4, 8, 16, 16x32x32)"),
        (STUNetConfig(base=8, pooling=THICK), "STU-Net (base 8, depth 1, strides 1, 2, 4, 8, 16, 16x32x32)"),
    ],
)
def test_a_network_is_called_by_its_published_size_where_it_has_one(config: STUNetConfig, label: str) -> None:
    assert config.label() == label
