"""UNETR: sizes, positions, how fast its parts learn, and the blocks that are skipped in training."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomask.nn.backbones.unetr import UNETRConfig
from anatomask.nn.recompute import recompute_activations
from anatomask.nn.transformer import Block, fixed_positions, grid_of
from anatomask.training.optimiser import parameter_groups
from anatomask.training.settings import OptimiserConfig
from anatomask.weights.files import describe_architecture, initialise
from anatomask.weights.matching import is_named
from anatomask.weights.tensor_files import Weights

NETWORK = UNETRConfig(patch_size=(64, 32, 32), width=24, depth=4, attention_heads=2, feature_size=4)


def test_the_published_network_has_its_parameters() -> None:
    with torch.device("meta"):
        network = UNETRConfig(patch_size=(96, 96, 96)).segmenter(13)
    assert sum(parameter.numel() for parameter in network.parameters()) == 92_813_230
    assert sum(parameter.numel() for parameter in network.encoder.parameters()) == 88_369_920


def test_layers_learn_as_fast_and_decay_as_published() -> None:
    """Block i times 0.75^(12 - i), what is before the blocks times 0.75^13, norm and decoder times 1."""
    with torch.device("meta"):
        network = UNETRConfig(width=24).segmenter(2)
    config = OptimiserConfig(layer_decay=0.75, weight_decay=0.05, decayed="matrices", freeze=3)
    groups = parameter_groups(network, config, network.encoder.depths(), network.encoder.tokens())
    found = {id(each): group for group in groups for each in group["params"]}
    for name, parameter in network.named_parameters():
        part, *rest = name.removeprefix("encoder.").split(".")
        exponent = 0 if part in ("norm", "decoder") else 12 - int(rest[0]) if part == "blocks" else 13
        group = found[id(parameter)]
        assert group["factor"] == pytest.approx(0.75**exponent), name
        spared = parameter.ndim == 1 or part in ("cls_token", "pos_embed")
        assert group["weight_decay"] == (0.0 if spared else 0.05), name
        assert group["start"] == (0 if part == "decoder" else 3), name


@settings(max_examples=8, deadline=None)
@given(st.tuples(*[st.integers(1, 4)] * 3), st.sampled_from([12, 24, 48]))
def test_positions_are_sines_and_cosines_that_tell_their_grid(grid: tuple[int, int, int], width: int) -> None:
    """Against a loop over patches; a little learning does not hide the grid."""
    table = fixed_positions(grid, width)
    parts = width // 6
    for number, place in enumerate(torch.cartesian_prod(*(torch.arange(side) for side in grid)).view(-1, 3).tolist()):
        expected = []
        for index in place:
            angles = torch.tensor([index * 10000 ** (-i / parts) for i in range(parts)], dtype=torch.float64)
            expected += [angles.sin(), angles.cos()]
        torch.testing.assert_close(table[0, number].double(), torch.cat(expected), rtol=0, atol=1e-5)
    generator = torch.Generator().manual_seed(0)
    assert grid_of(table[0] + 0.02 * torch.randn(table[0].shape, generator=generator)) == grid
    with pytest.raises(ValueError, match="positions are those of no grid"):
        grid_of(0.02 * torch.randn(table[0].shape, generator=generator))


def test_positions_are_interpolated_in_space() -> None:
    table = torch.randn(1, 1 + 16, 24)
    torch.testing.assert_close(NETWORK.resized(table, NETWORK.patch_size), table)
    larger = NETWORK.resized(table, (128, 32, 32))
    assert larger.shape == (1, 1 + 32, 24) and torch.equal(larger[:, 0], table[:, 0])
    maps, before = (each[0, 1:].unflatten(0, (-1, 2, 2)) for each in (larger, table))
    torch.testing.assert_close(maps[3], 0.75 * before[1] + 0.25 * before[2])
    torch.testing.assert_close(maps[0], before[0])


def test_a_block_that_is_skipped_does_nothing_for_a_sample_and_is_scaled_else() -> None:
    torch.manual_seed(0)
    block, x = Block(12, 2, drop_path=0.5), torch.randn(64, 3, 12)
    with torch.no_grad():
        first = x + 2 * block.attn(block.norm1(x))
        both = [x, first, x + 2 * block.mlp(block.norm2(x)), first + 2 * block.mlp(block.norm2(first))]
        found = block(x)
    kinds = torch.stack([(found - each).abs().amax((1, 2)) < 1e-5 for each in both])
    assert kinds.sum(0).tolist() == [1] * 64 and (kinds.sum(1) > 4).all()
    block.eval()
    with torch.no_grad():
        first = x + block.attn(block.norm1(x))
        torch.testing.assert_close(block(x), first + block.mlp(block.norm2(first)))


def test_the_rate_rises_linearly_from_the_first_block_on() -> None:
    rates = [block.get_submodule("").drop_path for block in replace(NETWORK, drop_path=0.3).encoder().blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_blocks_that_are_computed_again_are_skipped_for_the_same_samples() -> None:
    usual = replace(NETWORK, drop_path=0.5).encoder()
    again = copy.deepcopy(usual)
    recompute_activations(again)
    volume = torch.randn(4, 1, *NETWORK.patch_size)
    for encoder in (usual, again):
        torch.manual_seed(1)
        torch.stack([encoded.square().sum() for encoded in encoder(volume)]).sum().backward()
    for mine, theirs in zip(usual.parameters(), again.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None and torch.equal(mine.grad, theirs.grad)


def test_blocks_that_the_decoder_reads() -> None:
    assert [replace(NETWORK, depth=depth).read_blocks for depth in (4, 8, 12, 24)] == [
        (1, 2, 3), (2, 4, 6), (3, 6, 9), (3, 6, 9)
    ]  # fmt: skip


def test_as_many_channels_as_features_start_a_network_too() -> None:
    config = replace(NETWORK, in_channels=4)
    state = config.segmenter(2).state_dict()
    assert set(config.stem) == {name for name in NETWORK.stem if name in state} and len(config.stem) == 2
    header = {"kind": "segmentation", "architecture": describe_architecture(config, 2)}
    assert initialise(config.segmenter(3), Weights(state, header)) == sorted(
        name for name in state if is_named(name, config.heads)
    )


def test_a_volume_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"positions for \(64, 32, 32\) voxels, not for \(64, 64, 32\)"):
        NETWORK.encoder()(torch.zeros(1, 1, 64, 64, 32))


@pytest.mark.parametrize(
    ("named", "fields"),
    [
        ("width must be a multiple of 6", {"width": 64}),
        ("width must be a multiple of .* the 5 attention_heads", {"attention_heads": 5}),
        ("patch_size must be three multiples of 16", {"patch_size": (64, 40, 32)}),
        ("depth must be at least 4", {"depth": 3}),
        ("drop_path must lie", {"drop_path": 1.0}),
    ],
)
def test_impossible_sizes_are_refused_by_name(named: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=named):
        replace(NETWORK, **fields)
