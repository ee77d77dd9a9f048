"""Swin UNETR: MONAI's numbers, under names that begin with `encoder.` where they are the encoder's."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import SwinUNETR as Network
from torch import Tensor

from anatomask.nn.backbones.swin_unetr import SwinUNETRConfig
from anatomask.nn.recompute import recompute_activations

pytest.importorskip("einops", reason="MONAI's Swin transformer needs it")


def test_same_logits_as_monai_with_its_tensors() -> None:
    torch.manual_seed(0)
    theirs = Network(2, 4, feature_size=12).eval()
    network = SwinUNETRConfig(2, 12).segmenter(3).eval()
    ours = {name.removeprefix("encoder."): tensor for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }
    state = theirs.state_dict()
    network.load_state_dict({name: state[name.removeprefix("encoder.")] for name in network.state_dict()})
    volume = torch.randn(1, 2, 64, 32, 32)
    with torch.no_grad():
        (level,) = network(volume)
        torch.testing.assert_close(level, theirs(volume))


def test_the_published_transformer_has_its_parameters() -> None:
    with torch.device("meta"):
        network = SwinUNETRConfig().segmenter(1)
    assert sum(parameter.numel() for parameter in network.encoder.get_submodule("swinViT").parameters()) == 8_062_002


def test_blocks_that_are_computed_again_change_nothing_and_keep_less() -> None:
    config = SwinUNETRConfig(feature_size=6, depths=(1, 1, 1, 1), window=4)
    usual = config.encoder()
    again = copy.deepcopy(usual)
    recompute_activations(again)
    volume, kept = torch.randn(1, 1, 64, 32, 32), []
    for encoder in (usual, again):
        sizes: dict[int, int] = {}

        def pack(x: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            maps = encoder(volume)
        kept.append(sum(sizes.values()))
        torch.stack([encoded.square().sum() for encoded in maps]).sum().backward()
    for mine, theirs in zip(usual.parameters(), again.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None and torch.equal(mine.grad, theirs.grad)
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("size", [0, 13])
def test_impossible_sizes_are_refused_by_name(size: int) -> None:
    with pytest.raises(ValueError, match="feature_size must be"):
        SwinUNETRConfig(feature_size=size)
