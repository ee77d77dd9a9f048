"""MiT: parameters as published, sizes that are refused, positions that are interpolated, and names of the authors."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from anatomask.config import ImportWeightsConfig
from anatomask.errors import Note, UserError
from anatomask.nn.backbones.unimiss import PRETRAINING, SEGMENTATION, UniMiSSConfig
from anatomask.nn.mit import Attention, fitting_positions, resized_rows
from anatomask.stages.import_weights import describe, read_file
from anatomask.weights.files import network_of
from anatomask.weights.foreign import read_foreign_weights

SMALL = UniMiSSConfig(
    widths=(4, 8, 16, 32),
    depths=(1, 1, 1, 1),
    decoder_depths=(1, 1, 1),
    stem_width=8,
    patch_size=(64, 64, 32),
    slice_size=96,
)


def parameters(module: nn.Module, part: str = "") -> int:
    return sum(parameter.numel() for name, parameter in module.named_parameters() if part in name)


def test_the_published_size_has_its_parameters() -> None:
    with torch.device("meta"):
        trunk = UniMiSSConfig(patch_size=(96, 96, 16)).trunk()
        found = [parameters(trunk), parameters(trunk, "3D"), parameters(trunk, "2D")]
        assert found == [43_942_944, 20_138_240, 6_946_944]
        assert parameters(trunk.encoder) == 28_523_888
        network = UniMiSSConfig().segmenter(13)
        assert parameters(network) == 45_047_462 and parameters(network, "positions") == 8_978_432
        assert parameters(UniMiSSConfig().segmenter(14)) - 45_047_462 == 501
        assert parameters(UniMiSSConfig(patch_size=(192, 192, 48)).segmenter(13)) == 43_644_582
    assert UniMiSSConfig().label() == "MiT"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("widths", (4, 8, 16, 0)),
        ("attention_heads", (1, 3, 4, 8)),
        ("decoder_heads", (8, 3, 2)),
        ("reduction", (6, 4, 2, 9)),
        ("decoder_reduction", (2, 9, 6)),
        ("patch_size", (64, 64, 24)),
        ("patch_size", (64, 48, 32)),
        ("slice_size", 100),
        ("depths", (1, 0, 1, 1)),
    ],
)
def test_impossible_sizes_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        replace(SMALL, **{field: value})


def test_a_volume_of_another_size_than_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has positions for \(64, 64, 32\) voxels, not \(64, 96, 32\)"):
        SMALL.encoder()(torch.zeros(1, 1, 64, 96, 32))


def test_positions_of_slices_are_interpolated_and_the_cls_tokens_stays() -> None:
    table = torch.randn(1, 1 + 24 * 24, 4)
    assert fitting_positions(table, (24, 24)) is table
    other = fitting_positions(table, (16, 8))
    assert other.shape == (1, 1 + 16 * 8, 4) and torch.equal(other[:, 0], table[:, 0])
    smooth = torch.cat(
        (table[:, :1], torch.linspace(0, 1, 24).repeat_interleave(24)[None, :, None].expand(-1, -1, 4)), 1
    )
    rows = fitting_positions(smooth, (12, 24))[:, 1:].view(12, 24, 4)
    assert torch.all(rows[1:] > rows[:-1]) and (rows - rows[:, :1]).abs().max() < 1e-5


@pytest.mark.parametrize("rows", [7, 33, 50])
def test_rows_are_interpolated_between_the_first_and_the_last(rows: int) -> None:
    table = torch.randn(1, 33, 5)
    places = np.linspace(0, 32, rows)
    expected = np.stack([np.interp(places, np.arange(33), column) for column in table[0].T.numpy()], 1)
    np.testing.assert_allclose(resized_rows(table, rows)[0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    attention, theirs = Attention(8, 2, 1, True, ("3D",)), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        for name, mine in (("weight", "weight"), ("bias", "bias")):
            joined = torch.cat((getattr(attention.q, mine), getattr(attention.kv, mine)))
            getattr(theirs, f"in_proj_{name}").copy_(joined)
        theirs.out_proj.load_state_dict(attention.proj.state_dict())
        tokens = torch.randn(3, 9, 8)
        torch.testing.assert_close(attention(tokens, (2, 2, 2)), theirs(tokens, tokens, tokens)[0])


def test_the_authors_names_lead_to_ours_and_back() -> None:
    with torch.device("meta"):
        network, trunk = SMALL.segmenter(2), SMALL.trunk()
    for form, module in ((SEGMENTATION, network), (PRETRAINING, trunk)):
        for name in module.state_dict():
            theirs = form.theirs(name)
            assert theirs is not None and form.ours(theirs) == name, name


def test_a_checkpoint_with_its_settings_and_optimiser_is_read(tmp_path: Path) -> None:
    """A namespace beside the tensors runs no code."""
    trunk = SMALL.trunk()
    student = {f"module.{PRETRAINING.theirs(name)}": tensor for name, tensor in trunk.state_dict().items()}
    content = {"student": student, "optimizer": {"state": {}}, "args": argparse.Namespace(epochs=200), "epoch": 20}
    torch.save(content, tmp_path / "checkpoint.pth")
    foreign = read_foreign_weights(tmp_path / "checkpoint.pth")
    assert foreign.whole and foreign.network.size() == SMALL.size()
    assert all(torch.equal(foreign.tensors[name], tensor) for name, tensor in trunk.state_dict().items())


def test_heads_that_no_tensor_shows_are_said_and_can_be_given(tmp_path: Path) -> None:
    network = replace(SMALL, attention_heads=(2, 2, 2, 2), decoder_heads=(4, 2, 1))
    theirs = {f"module.{PRETRAINING.theirs(name)}": t for name, t in network.trunk().state_dict().items()}
    path = tmp_path / "checkpoint.pth"
    torch.save({"student": theirs}, path)
    usual = ImportWeightsConfig(str(path), output="x")
    assumed = read_file(usual)
    assert assumed.header["imported"]["assumed"] == ["attention_heads 1 2 4 8", "decoder_heads 8 4 2"]
    assert [text for title, text in describe(assumed) if title.startswith("assumed")] == [
        "attention_heads 1 2 4 8 (--attention-heads sets another)",
        "decoder_heads 8 4 2 (--decoder-heads sets another)",
    ]
    given = read_file(replace(usual, attention_heads=(2, 2, 2, 2), decoder_heads=(4, 2, 1)))
    assert given.header["imported"]["assumed"] == [] and network_of(given.header).size() == network.size()
    with pytest.raises(UserError, match=r"attention_heads, and \(2, 2\) do not divide .* give --attention-heads"):
        read_file(replace(usual, attention_heads=(2, 2)))


def test_widths_among_which_the_published_heads_do_not_divide_are_refused(tmp_path: Path) -> None:
    network = replace(SMALL, widths=(4, 6, 18, 36), attention_heads=(1, 2, 3, 4), decoder_heads=(3, 2, 1))
    theirs = {str(SEGMENTATION.theirs(name)): tensor for name, tensor in network.segmenter(2).state_dict().items()}
    torch.save({"state_dict": theirs}, tmp_path / "network.model")
    message = r"\(1, 2, 4, 8\), those published, do not divide the widths \(4, 6, 18, 36\): give --attention-heads"
    with pytest.warns(Note), pytest.raises(UserError, match=message):
        read_foreign_weights(tmp_path / "network.model")


def test_a_whole_network_of_the_authors_is_read_and_starts_one_of_another_patch(tmp_path: Path) -> None:
    network = SMALL.segmenter(3)
    theirs = {str(SEGMENTATION.theirs(name)): tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": theirs}, tmp_path / "network.model")
    with pytest.warns(match="--network.patch-size sets it"):
        foreign = read_foreign_weights(tmp_path / "network.model")
    assert (foreign.kind, foreign.classes, foreign.network.size()) == ("segmentation", 3, SMALL.size())
    wider = replace(SMALL, patch_size=(96, 64, 32))
    fitted = wider.fitted(foreign.tensors)
    assert {name: tensor.shape for name, tensor in wider.segmenter(3).state_dict().items()} == {
        name: tensor.shape for name, tensor in fitted.items()
    }
