"""Published weights of nnU-Net's residual encoder U-Net and of Swin transformers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anatomask.config import ImportWeightsConfig
from anatomask.errors import Note, UserError
from anatomask.methods.swinunetr_ssl import SwinUNETRSSLConfig
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.swin_unetr import PatchMerging, SwinUNETRConfig
from anatomask.nn.backbones.unetr import POSITIONS, UNETRConfig
from anatomask.nn.transformer import fixed_positions
from anatomask.stages.import_weights import read_file
from anatomask.weights.files import initialise
from anatomask.weights.foreign import read_foreign_weights
from tests.weights.checkpoints import forge, same, save_stunet

RESENC = ResEncConfig(2, (4, 8, 8), (1, 1, 2))
FIRST = "encoder.stages.0.blocks.0.conv1.conv.weight"


def nnunet_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `ResidualEncoderUNet` names them: layers again as `all_modules`, the encoder again within the decoder."""
    named = dict(state)
    for name, tensor in state.items():
        for layer, index in ((".conv.", "0"), (".norm.", "1")):
            if layer in name:
                named[name.replace(layer, f".all_modules.{index}.")] = tensor
    return named | {f"decoder.{name}": tensor for name, tensor in named.items() if name.startswith("encoder.")}


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_checkpoints_of_nnunets_residual_encoder_are_read(tmp_path: Path, prefix: str) -> None:
    state = RESENC.segmenter(3).state_dict()
    given = {prefix + name: tensor for name, tensor in nnunet_state(state).items()}
    assert len(given) > 3 * len(state)
    foreign = read_foreign_weights(save_stunet(tmp_path / "checkpoint_final.pth", given))
    assert (foreign.kind, foreign.network, foreign.stages, foreign.classes) == ("segmentation", RESENC, None, 3)
    assert same(foreign.tensors, state) and foreign.missing == () and foreign.left_out == ()


def test_an_encoder_alone_of_nnunets_is_a_pretrained_one(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in RESENC.segmenter(3).state_dict().items() if name.startswith("encoder.")}
    foreign = read_foreign_weights(save_stunet(tmp_path / "c.pth", dict(state)))
    assert (foreign.kind, foreign.network, foreign.stages) == ("pretraining", RESENC, 3)
    assert same(foreign.tensors, state)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("conv1.conv.weight once more", {f"decoder.{FIRST}": torch.zeros(4, 4, 3, 3, 3)}),
        ("decoder.transpconvs.0.weight is of shape", {"decoder.transpconvs.0.weight": torch.zeros(8, 8, 1, 2, 2)}),
        ("encoder.stages.1.blocks.0.conv2.norm.bias is missing", {"encoder.stages.1.blocks.0.conv2.norm.bias": None}),
        ("lacks the tensor encoder.stem.convs.0.conv.weight", {"encoder.stem.convs.0.conv.weight": None}),
        (
            "lacks the tensor encoder.stages.3.blocks.0.conv1",
            {FIRST.replace("0", "9", 1): torch.zeros(1)},
        ),
    ],
)
def test_forged_residual_encoders_are_refused_by_name(tmp_path: Path, message: str, changes: dict[str, Any]) -> None:
    right = RESENC.segmenter(3).state_dict()
    with pytest.raises(UserError) as refusal:
        read_foreign_weights(save_stunet(tmp_path / "c.pth", forge(right, changes)))
    assert message in str(refusal.value)


@pytest.mark.parametrize(("prefix", "merging"), [("", "repeated"), ("swin_vit.", "repeated"), ("swinViT.", "all")])
def test_published_swin_transformers_are_read_in_every_form(tmp_path: Path, prefix: str, merging: PatchMerging) -> None:
    """`model_swinvit.pt` has no prefix, other names in MLPs, and a norm that nothing reads; checkpoints have heads."""
    pytest.importorskip("einops")
    network = SwinUNETRConfig(feature_size=6, depths=(1, 1, 2, 1), window=3)
    own = network.encoder().state_dict()
    theirs = {prefix + name.removeprefix("swinViT."): tensor for name, tensor in own.items()}
    if not prefix:
        theirs = {re.sub(r"mlp\.linear", "mlp.fc", name): tensor for name, tensor in theirs.items()}
        theirs |= {"norm.weight": torch.ones(96), "norm.bias": torch.zeros(96)}
    theirs |= {"rotation_head.weight": torch.zeros(4, 96), "conv.0.bias": torch.zeros(48)}
    held = {f"module.{name}": tensor for name, tensor in theirs.items()}
    path = tmp_path / "model_swinvit.pt"
    torch.save({"epoch": 1, "state_dict": held, "optimizer": {}}, path)
    with pytest.warns(Note, match="before 1.5"):
        foreign = read_foreign_weights(path)
    expected = replace(network, patch_merging=merging)
    assert (foreign.kind, foreign.network, foreign.stages, foreign.missing) == ("pretraining", expected, 5, ())
    assert same({name.removeprefix("encoder."): tensor for name, tensor in foreign.tensors.items()}, own)
    assert len(foreign.left_out) == (4 if not prefix else 2)
    assert {why for _, why in foreign.left_out} == {"read by nothing"}
    with pytest.warns(Note):
        weights = read_file(ImportWeightsConfig(str(path), output="x", patch_merging="repeated"))
    assert weights.header["architecture"]["patch_merging"] == "repeated"
    assert weights.header["method"] == {"name": SwinUNETRSSLConfig().label()}
    with pytest.raises(UserError, match=r"network\.patch_merging alike"):
        initialise(replace(network, patch_merging="all").segmenter(3), weights)
    started = replace(network, in_channels=2, patch_merging="repeated").segmenter(3)
    initialise(started, weights)
    assert torch.equal(
        started.encoder.state_dict()["swinViT.layers1.0.blocks.0.norm1.bias"],
        own["swinViT.layers1.0.blocks.0.norm1.bias"],
    )


def test_monais_swin_unetr_is_read_with_a_note_on_its_versions(tmp_path: Path) -> None:
    pytest.importorskip("einops")
    from monai.networks.nets import SwinUNETR as Network

    theirs = Network(1, 4, feature_size=12).state_dict()
    torch.save(theirs, tmp_path / "swin.pt")
    with pytest.warns(Note), pytest.raises(UserError, match=r"--axes is for convolutional networks, and .* swin_unetr"):
        read_foreign_weights(tmp_path / "swin.pt", axes="zyx")
    with pytest.warns(Note, match="before 1.5"):
        foreign = read_foreign_weights(tmp_path / "swin.pt")
    assert (foreign.kind, foreign.network, foreign.classes) == ("segmentation", SwinUNETRConfig(feature_size=12), 3)
    assert same({name.removeprefix("encoder."): tensor for name, tensor in foreign.tensors.items()}, theirs)
    torch.save(foreign.tensors, tmp_path / "own.pt")
    assert same(read_foreign_weights(tmp_path / "own.pt").tensors, foreign.tensors)


def test_a_unetr_of_ours_is_read_again_where_its_positions_tell_its_crop(tmp_path: Path) -> None:
    """That is, where they were learned from fixed ones."""
    network = UNETRConfig(patch_size=(64, 32, 48), width=192, depth=4, attention_heads=3, feature_size=4)
    state = network.segmenter(3).state_dict()
    torch.save(state, tmp_path / "own.pt")
    with pytest.raises(UserError, match="positions are those of no grid"):
        read_foreign_weights(tmp_path / "own.pt")
    state[POSITIONS][:, 1:] += fixed_positions(network.grid, 192)
    torch.save(state, tmp_path / "own.pt")
    foreign = read_foreign_weights(tmp_path / "own.pt")
    assert (foreign.kind, foreign.network, foreign.classes) == ("segmentation", network, 3)
    assert same(foreign.tensors, state) and foreign.missing == () and foreign.left_out == ()
    torch.save({name: tensor for name, tensor in state.items() if name.startswith("encoder.")}, tmp_path / "encoder.pt")
    encoder = read_foreign_weights(tmp_path / "encoder.pt")
    assert (encoder.kind, encoder.stages) == ("pretraining", 4)
