"""STU-Net: sizes as published, shapes, and names that let a pretrained encoder transfer."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from anatomask.nn.backbones.operations import NEGATIVE_SLOPE
from anatomask.nn.backbones.stunet import ResidualBlock, STUNet, STUNetConfig, STUNetEncoder


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


@pytest.mark.parametrize("bad", [{"base": 0}, {"depth": 0}, {"in_channels": 0}, {"widths": (1, 2, 3)}])
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
    ],
)
def test_a_network_is_called_by_its_published_size_where_it_has_one(config: STUNetConfig, label: str) -> None:
    assert config.label() == label
