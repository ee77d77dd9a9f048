"""nnU-Net's residual encoder U-Net: the package's names and numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.nn.backbones.operations import NEGATIVE_SLOPE
from anatomask.nn.backbones.resenc import ConvNorm, ResEncConfig, ResidualBlock

GOLDEN = Path(__file__).parents[2] / "golden" / "resenc"


def names(state: Mapping[str, Tensor]) -> str:
    """Digest of the names and shapes of a state."""
    return hashlib.sha256(
        "\n".join(f"{name} {tuple(state[name].shape)}" for name in sorted(state)).encode()
    ).hexdigest()


def test_golden_names_and_logits_of_the_published_implementation() -> None:
    settings = json.loads((GOLDEN / "settings.json").read_text())
    config = ResEncConfig(settings["in_channels"], tuple(settings["widths"]), tuple(settings["blocks"]))
    network = config.segmenter(settings["classes"]).double()
    state, rng = network.state_dict(), np.random.default_rng(0)
    assert names(state) == settings["names"]
    weights = {name: torch.from_numpy(rng.normal(0, 0.3, tuple(state[name].shape))) for name in sorted(state)}
    network.load_state_dict(weights)
    with torch.no_grad():
        levels = network(torch.from_numpy(np.random.default_rng(1).normal(size=(1, 2, 64, 32, 32))))
    golden = np.load(GOLDEN / "logits.npz")
    for index, (level, step) in enumerate(zip(levels, (8, 4, 2, 1, 1), strict=True)):
        expected = torch.from_numpy(golden[f"level{index}"])
        torch.testing.assert_close(level[:, :, ::step, ::step, ::step], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(level.sum().item(), float(golden["sums"][index]), rtol=1e-8, atol=1e-6)


def test_the_published_size_has_its_tensors() -> None:
    large = json.loads((GOLDEN / "settings.json").read_text())["large"]
    with torch.device("meta"):
        state = ResEncConfig().segmenter(large["classes"]).state_dict()
    assert names(state) == large["names"]
    assert sum(tensor.numel() for tensor in state.values()) == large["parameters"]
    assert ResEncConfig().label() == "ResEnc-L"


@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (4, 1), (3, 2), (4, 2)])
def test_a_residual_block_is_the_sum_of_its_layers(channels: int, stride: int) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(3, channels, stride).double()
    for part in block.modules():
        if isinstance(part, nn.InstanceNorm3d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    x = torch.randn(2, 3, 4, 6, 8, dtype=torch.float64, requires_grad=True)
    skip = x if stride == 1 else functional.avg_pool3d(x, 2, 2)
    for projection in block.skip.values():
        assert isinstance(projection, ConvNorm)
        skip = projection.norm(projection.conv(skip))
    hidden = functional.leaky_relu(block.conv1.norm(block.conv1.conv(x)), NEGATIVE_SLOPE)
    expected = functional.leaky_relu(block.conv2.norm(block.conv2.conv(hidden)) + skip, NEGATIVE_SLOPE)
    output, weights = block(x), [x, *block.parameters()]
    torch.testing.assert_close(output, expected)
    upstream = torch.randn_like(expected)
    for mine, theirs in zip(*(torch.autograd.grad(y, weights, upstream) for y in (output, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "bad", [{"widths": (8,)}, {"blocks": (1, 1)}, {"widths": (8, 0, 8, 8, 8, 8)}, {"blocks": (1, 1, 1, 1, 1, 0)}]
)
def test_impossible_sizes_are_refused_by_name(bad: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        ResEncConfig(**bad)  # type: ignore[arg-type]
