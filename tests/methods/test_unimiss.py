"""UniMiSS: the published code's numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anatomask.nn.backbones.unimiss import PRETRAINING, SEGMENTATION, UniMiSSConfig, UniMiSSNet
from anatomask.nn.mit import ConvNorm, Stage
from anatomask.weights.files import Weights, describe_architecture, initialise
from anatomask.weights.foreign import read_foreign_weights
from tests.published import Published


def network_of(numbers: Published, **fields: Any) -> UniMiSSConfig:
    """The network of a case; the authors' first axis is the last one here."""
    encoder, decoder = numbers.sizes["encoder"], numbers.sizes["decoder"]
    slices, *plane = numbers.sizes["size3d"]
    network = UniMiSSConfig(
        widths=tuple(encoder["widths"]),
        depths=tuple(encoder["depths"]),
        attention_heads=tuple(encoder["heads"]),
        reduction=tuple(encoder["reduction"]),
        decoder_depths=tuple(decoder["depths"]),
        decoder_heads=tuple(decoder["heads"]),
        decoder_reduction=tuple(decoder["reduction"]),
        stem_width=numbers.sizes["stem"],
        **{"patch_size": (*plane, slices), "slice_size": numbers.sizes["size2d"], **fields},
    )
    assert list(network.decoder_widths) == decoder["widths"]
    return network


def outputs_of(module: nn.Module) -> dict[str, Any]:
    """What the stem and each stage will compute, by its name."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda part, given, output: found.update({name: output})

    for name, part in module.named_modules():
        if isinstance(part, Stage) or (name.startswith("encoder.stem") and isinstance(part, ConvNorm)):
            part.register_forward_hook(keep(name[:12] if "stem" in name else name))
    return found


def check_stages(numbers: Published, start: str, found: dict[str, Any], tolerance: float) -> None:
    """Compare what stem and stages computed: maps, or tokens with the cls token first."""

    def tokens(encoded: Tensor, cls: Tensor) -> Tensor:
        return torch.cat((cls, encoded.flatten(2).mT), 1)

    stem = found["encoder.stem"]
    every = (slice(None), slice(None), *[slice(None, None, 4)] * (stem.dim() - 2))
    numbers.agrees(f"{start}encoder_stage0", stem[every], tolerance)
    for stage in (1, 2, 3):
        numbers.agrees(f"{start}encoder_stage{stage}", found[f"encoder.stages.{stage}"][0], tolerance)
    numbers.agrees(f"{start}encoder_stage4", tokens(*found["encoder.stages.4"]), tolerance)
    for stage in (0, 1, 2):
        numbers.agrees(f"{start}decoder_stage{stage}_tokens", tokens(*found[f"decoder.stages.{stage}"]), tolerance)


def check_trunk(numbers: Published, dtype: torch.dtype, tolerance: float) -> None:
    """Encoder and decoder on a volume and on images."""
    trunk = network_of(numbers).trunk()
    theirs: Any = numbers.weights("_ssl_checkpoint.pt")
    ours = {PRETRAINING.ours(name.removeprefix("module.")): tensor for name, tensor in theirs["student"].items()}
    trunk.load_state_dict({name: tensor for name, tensor in ours.items() if name})
    trunk.to(dtype)
    found = outputs_of(trunk)
    for start, name in (("vol_", "view0"), ("img_", "image2D")):
        numbers.agrees(f"{start}embedding", trunk(numbers.given(name, dtype)), tolerance)
        check_stages(numbers, start, found, tolerance)
    other = numbers.given("image2D_other_size", dtype)
    assert other.shape[-1] == numbers.sizes["other_size2d"]
    numbers.agrees("img_other_size_embedding", trunk(other), tolerance)


def check_segmentation(numbers: Published, network: UniMiSSNet, dtype: torch.dtype, tolerance: float) -> None:
    """The segmentation network after the transfer, in our order of axes."""
    rest = {str(SEGMENTATION.ours(name)): tensor for name, tensor in numbers.weights("_seg_rest.pt").items()}
    state = network.state_dict()
    assert rest.keys() < state.keys()
    network.load_state_dict({**state, **rest})
    network.to(dtype)
    found = outputs_of(network)
    levels = [level.movedim(-1, 2) for level in network(numbers.given("seg_input", dtype).movedim(2, -1))]
    check_stages(numbers, "seg_", found, tolerance)
    numbers.agrees("seg_full", levels[0][..., ::2, ::2, ::2], tolerance)
    for level, name in zip(levels[1:], ("seg_ds3", "seg_ds2", "seg_ds1", "seg_ds0"), strict=True):
        numbers.agrees(name, level, tolerance)
    loss = torch.stack([level.square().mean() for level in levels]).sum()
    loss.backward()
    numbers.agrees("seg_mean_square_loss", loss, tolerance)
    norms = [parameter.grad.norm() for parameter in network.parameters() if parameter.grad is not None]
    assert len(norms) == len(list(network.parameters()))
    numbers.agrees("seg_grad_norm", torch.stack(norms).norm(), tolerance)


def transferred(numbers: Published) -> UniMiSSNet:
    """The segmentation network that the published checkpoint starts; compares what was taken over."""
    slices, *plane = numbers.sizes["segmentation"]["patch"]
    foreign = read_foreign_weights(numbers.folder / f"{numbers.sizes['prefix']}_ssl_checkpoint.pt")
    pretrained = network_of(numbers)
    assert isinstance(foreign.network, UniMiSSConfig) and foreign.network.size() == pretrained.size()
    assert foreign.network.slice_size == pretrained.slice_size
    assert (foreign.kind, foreign.whole, foreign.stages) == ("pretraining", True, 5) and not foreign.missing
    assert {name.removeprefix("module.").split(".")[0] for name, _ in foreign.left_out} == {"head"}
    network = network_of(numbers, patch_size=(*plane, slices)).segmenter(numbers.sizes["segmentation"]["classes"] - 1)
    header = {"kind": "pretraining", "architecture": describe_architecture(foreign.network), "whole": "network."}
    tensors = {f"network.{name}": tensor for name, tensor in foreign.tensors.items()}
    left_out = initialise(network, Weights(tensors, header))
    theirs = {name: str(SEGMENTATION.theirs(name)).removeprefix("model.") for name in network.state_dict()}
    for name, names in (
        ("not_transferred", {theirs[name] for name in left_out}),
        ("transferred", set(theirs.values()) - {theirs[name] for name in left_out}),
    ):
        assert names == set(map(str, numbers.arrays[name]))
        numbers.unread.discard(name)
    state = {theirs[name]: tensor for name, tensor in network.state_dict().items()}
    for name in numbers.names("after_transfer__"):
        numbers.agrees(f"after_transfer__{name}", state[name], 1e-6)
    return network


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_golden_numbers_of_the_published_code(
    published: Callable[[str], AbstractContextManager[Published]], dtype: torch.dtype, tolerance: float
) -> None:
    with published("unimiss") as numbers:
        check_trunk(numbers, dtype, tolerance)
        check_segmentation(numbers, transferred(numbers), dtype, tolerance)
        numbers.unread.clear()
