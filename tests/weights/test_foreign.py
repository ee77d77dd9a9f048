"""Published weights: what is read is what was written, and what does not fit is refused by name."""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from anatomask.errors import UserError
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.stunet import AUTOENCODER, PUBLISHED_STUNET, STUNet, STUNetConfig
from anatomask.nn.masked_autoencoder import MaskedAutoencoder
from anatomask.weights.foreign import import_anatomask_checkpoint, read_foreign_weights
from tests.weights.checkpoints import forge, same, save_stunet

TINY = STUNetConfig(base=2)
SIZES = [TINY, STUNetConfig(2, 4, 2), STUNetConfig(base=2, widths=(2, 4, 4, 8, 8, 8))]
SPCNN = "module.sparse_encoder.sp_cnn.conv_blocks_context."


def published_autoencoder(model: MaskedAutoencoder, prefix: str = "module.") -> dict[str, Tensor]:
    """The model's tensors under the published names, with the full-resolution ones that nothing reads."""
    names = {
        "encoder.stages": "sparse_encoder.sp_cnn.conv_blocks_context",
        "shortcut": "conv3",
        "decoder.levels": "dense_decoder.dec",
        "upsample": "up_sample",
        "decoder.head": "dense_decoder.proj",
    }
    published = {}
    for name, tensor in model.state_dict().items():
        for mine, theirs in names.items():
            name = name.replace(mine, theirs)
        if name.startswith("dense_decoder.dec"):
            for mine, theirs in {"conv1": "conv.0", "norm1": "conv.1", "conv2": "conv.3", "norm2": "conv.4"}.items():
                name = name.replace(mine, theirs)
        if name.startswith("densify"):
            _, scale, part, *rest = name.split(".")
            part = {"norm": "densify_norms", "projection": "densify_projs", "token": "mask_tokens"}[part]
            name = ".".join([part, scale, *rest])
        published[prefix + name] = tensor
    for name in ("densify_norms.4.weight", "densify_norms.4.bias", "densify_projs.4.weight", "mask_tokens.4"):
        published[prefix + name] = torch.zeros(1)
    return published


def published_stunet(network: STUNet) -> OrderedDict[str, Tensor]:
    """The network's tensors under the names of STU-Net's released weights."""
    published = OrderedDict()
    for name, tensor in network.state_dict().items():
        if name.startswith("upsample"):
            _, level, part = name.split(".")
            name = f"upsample_layers.{level}.conv.{part}"
        name = name.replace("shortcut", "conv3").replace("encoder.stages", "conv_blocks_context")
        name = name.replace("decoder", "conv_blocks_localization").replace("heads", "seg_outputs")
        published[name] = tensor
    return published


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", ""])
@pytest.mark.parametrize(("network", "width"), zip(SIZES, (32, 16, 64), strict=True))
def test_autoencoders_of_any_size_are_read(tmp_path: Path, network: STUNetConfig, width: int, prefix: str) -> None:
    model = MaskedAutoencoder(network, decoder_width=width).eval()
    tensors = published_autoencoder(model, prefix)
    torch.save({"network_weights": tensors, "current_epoch": 3}, tmp_path / "c.pt")
    imported = import_anatomask_checkpoint(tmp_path / "c.pt", norm_scope="batch").eval()
    assert imported.network == network and imported.norm_scope == "batch"
    assert same(imported.state_dict(), model.state_dict())

    foreign = read_foreign_weights(tmp_path / "c.pt")
    assert (foreign.kind, foreign.network, foreign.classes, foreign.missing) == ("pretraining", network, None, ())
    assert same(foreign.tensors, model.state_dict())
    assert [name for name, _ in foreign.left_out] == sorted(prefix + name for name in (
        "densify_norms.4.weight", "densify_norms.4.bias", "densify_projs.4.weight", "mask_tokens.4"
    ))  # fmt: skip
    assert {why for _, why in foreign.left_out} == {"read by nothing"}


@pytest.mark.parametrize("file", ["base_ep4k.model", "checkpoint_final.pth"])
@pytest.mark.parametrize("network", SIZES)
def test_segmentation_networks_of_any_size_are_read(tmp_path: Path, network: STUNetConfig, file: str) -> None:
    model = STUNet(network, classes=3)
    foreign = read_foreign_weights(save_stunet(tmp_path / file, published_stunet(model)))
    assert (foreign.kind, foreign.network, foreign.classes) == ("segmentation", network, 3)
    assert foreign.missing == () and foreign.left_out == ()
    assert same(foreign.tensors, model.state_dict())


def test_the_golden_checkpoint_is_read_by_both_ways(golden: Path) -> None:
    path = golden / "b1_depth1_checkpoint.pt"
    foreign = read_foreign_weights(path)
    assert same(foreign.tensors, import_anatomask_checkpoint(path).state_dict())
    assert foreign.network.size()["widths"] == (8, 16, 32, 64, 64, 64)
    published = torch.load(path, weights_only=True)["network_weights"]
    assert len(foreign.tensors) + len(foreign.left_out) == len(published)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (AUTOENCODER, MaskedAutoencoder(STUNetConfig(base=2, depth=2)).state_dict()),
        (PUBLISHED_STUNET, STUNet(STUNetConfig(base=2, depth=2), 2).state_dict()),
    ],
)
def test_names_go_there_and_back(form: Any, names: dict[str, Tensor]) -> None:
    theirs = {form.theirs(name) for name in names}
    assert None not in theirs and len(theirs) == len(names)
    assert [form.ours(form.theirs(name)) for name in names] == list(names)


CONVOLUTION = SPCNN + "2.0.conv2.weight"
FORGED_AUTOENCODERS: dict[str, dict[str, Any]] = {
    "module.projector.weight is unknown": {"module.projector.weight": torch.zeros(1)},
    "conv_blocks_context.2.0.conv2.weight is missing": {CONVOLUTION: None},
    r"2.0.conv2.weight is of shape (2,), not (8, 8, 3, 3, 3)": {CONVOLUTION: torch.zeros(2)},
    "2.0.conv2.weight is of type torch.int64": {CONVOLUTION: torch.zeros(8, 8, 3, 3, 3, dtype=torch.int64)},
    "2.0.conv2.weight is not finite": {CONVOLUTION: torch.full((8, 8, 3, 3, 3), float("nan"))},
    "2.0.conv2.weight is no plain tensor": {CONVOLUTION: "weights"},
    "2.0.conv2.bias is no plain tensor": {SPCNN + "2.0.conv2.bias": torch.zeros(8).to_sparse()},
    "2.0.conv2.bias is module.": {SPCNN.removeprefix("module.") + "2.0.conv2.bias": torch.zeros(8)},
    "5.0.conv1.weight is unknown": {SPCNN + "5.0.conv1.weight": torch.zeros(1)},
    "dense_decoder.proj.weight is missing": {"module.dense_decoder.proj.weight": None},
    "conv_blocks_context.2.0.conv1.weight is missing": {SPCNN + "2.0.conv1.weight": None},
    "lacks the tensor sparse_encoder.sp_cnn.conv_blocks_context.0.0.conv1.weight and": {
        SPCNN + "0.0.conv1.weight": None,
        SPCNN + "0.0.conv3.weight": None,
    },
    "stages of different depth": {SPCNN + "2.1.conv1.weight": torch.zeros(8, 8, 3, 3, 3)},
    "decoder_width must be a multiple of 16": {
        "module.dense_decoder.dec.0.up_sample.weight": torch.zeros(3, 3, 4, 4, 4)
    },
}


@pytest.mark.parametrize("message", FORGED_AUTOENCODERS)
def test_forged_autoencoders_are_refused_by_name(tmp_path: Path, message: str) -> None:
    right = published_autoencoder(MaskedAutoencoder(TINY, decoder_width=16))
    torch.save({"network_weights": forge(right, FORGED_AUTOENCODERS[message])}, tmp_path / "c.pt")
    for read in (read_foreign_weights, import_anatomask_checkpoint):
        with pytest.raises(UserError) as refusal:
            read(tmp_path / "c.pt")
        assert message in str(refusal.value) and "c.pt" in str(refusal.value)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("conv_blocks_localization.3.0.conv3.bias is missing", {"conv_blocks_localization.3.0.conv3.bias": None}),
        ("conv_blocks_context.5.0.norm1.bias is missing", {"conv_blocks_context.5.0.norm1.bias": None}),
        ("seg_outputs.0.weight is of shape (4, 32), not (3, 32", {"seg_outputs.0.weight": torch.zeros(4, 32)}),
        ("upsample_layers.9.conv.bias is unknown", {"upsample_layers.9.conv.bias": torch.zeros(1)}),
        ("extra.bias is unknown", {"extra.bias": torch.zeros(1)}),
        ("no class besides", {"seg_outputs.4.weight": torch.zeros(1, 2, 1, 1, 1)}),
        ("conv_blocks_context.5.0.conv1.weight is missing", {"conv_blocks_context.5.0.conv1.weight": None}),
    ],
)
def test_forged_segmentation_networks_are_refused_by_name(tmp_path: Path, message: str, changes: Any) -> None:
    right = published_stunet(STUNet(TINY, 2))
    with pytest.raises(UserError) as refusal:
        read_foreign_weights(save_stunet(tmp_path / "s.model", forge(right, changes)))
    assert message in str(refusal.value)


def test_only_a_whole_autoencoder_becomes_a_model(tmp_path: Path) -> None:
    encoder = {n: t for n, t in published_autoencoder(MaskedAutoencoder(TINY)).items() if "sparse_encoder" in n}
    torch.save({"network_weights": encoder}, tmp_path / "c.pt")
    read_foreign_weights(tmp_path / "c.pt")
    for path in (tmp_path / "c.pt", save_stunet(tmp_path / "s.pth", published_stunet(STUNet(TINY, 2)))):
        with pytest.raises(UserError, match="has no decoder"):
            import_anatomask_checkpoint(path)


def test_another_decoder_stays_behind_when_it_is_named(tmp_path: Path) -> None:
    """SparK-3D's two-step decoder: convolutions straight under `dec`, which nothing here is called."""
    model = MaskedAutoencoder(TINY, decoder_width=16)
    tensors = {n: t for n, t in published_autoencoder(model).items() if "dense_decoder.dec" not in n}
    tensors |= {f"module.dense_decoder.dec.{layer}.weight": torch.zeros(3) for layer in (0, 1, 3, 4)}
    torch.save({"network_weights": tensors}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"dense_decoder\.dec\.0\.weight is unknown.*more.*--allow-missing"):
        read_foreign_weights(tmp_path / "c.pt")
    with pytest.raises(UserError, match="densify_norms"):
        read_foreign_weights(tmp_path / "c.pt", ("dense_decoder",))
    foreign = read_foreign_weights(tmp_path / "c.pt", ("dense_decoder", "densify_*", "module.mask_tokens"))
    encoder = {f"encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    assert same(foreign.tensors, encoder) and foreign.missing == ()
    assert {name for name, _ in foreign.left_out} == {name for name in tensors if "sparse_encoder" not in name}


def test_an_allowed_tensor_is_left_out_and_only_it(tmp_path: Path) -> None:
    model = MaskedAutoencoder(TINY, decoder_width=16)
    tensors = {**published_autoencoder(model), CONVOLUTION: torch.zeros(2)}
    torch.save({"network_weights": tensors}, tmp_path / "c.pt")
    ours = "encoder.stages.2.0.conv2.weight"
    for name in (CONVOLUTION, CONVOLUTION.removeprefix("module."), ours):
        foreign = read_foreign_weights(tmp_path / "c.pt", (name,))
        assert foreign.missing == (ours,)
        assert (CONVOLUTION, "of shape (2,), not (8, 8, 3, 3, 3)") in foreign.left_out
        assert same(foreign.tensors, {name: tensor for name, tensor in model.state_dict().items() if name != ours})


@pytest.mark.parametrize("stage", [0, 2, 5])
def test_a_first_convolution_may_be_missing_if_it_is_named(tmp_path: Path, stage: int) -> None:
    network = STUNetConfig(in_channels=2, base=2)
    tensors, name = published_stunet(STUNet(network, 2)), f"conv_blocks_context.{stage}.0.conv1.weight"
    del tensors[name]
    path = save_stunet(tmp_path / "s.pth", tensors)
    foreign = read_foreign_weights(path, (name,))
    assert foreign.network == network and foreign.missing == (f"encoder.stages.{stage}.0.conv1.weight",)
    theirs = dict(ResEncConfig(widths=(4, 8, 8), blocks=(1, 1, 1)).segmenter(2).state_dict())
    del theirs["encoder.stages.1.blocks.0.conv1.conv.weight"]
    torch.save({"network_weights": theirs}, tmp_path / "r.pth")
    assert read_foreign_weights(tmp_path / "r.pth", ("encoder.stages.1",)).network.size()["widths"] == (4, 8, 8)


ISOTROPIC = [[1, 1, 1], *[[2, 2, 2]] * 4]


@pytest.mark.parametrize(
    ("strides", "pooling"),
    [
        (ISOTROPIC, None),
        ([*ISOTROPIC, [1, 1, 1]], None),
        ([*ISOTROPIC, [1, 2, 2]], ((2, 2, 2),) * 4 + ((1, 2, 2),)),
        ([*ISOTROPIC, [2, 1, 1], [1, 2, 2]], ((2, 2, 2),) * 4 + ((2, 1, 1),)),  # a seventh stage is cut off
        ([[1, 1, 1], [1, 2, 2], [2, 2, 2]], ((1, 2, 2), (2, 2, 2)) + ((1, 1, 1),) * 3),
        ([1, 2, 2, 2, 2, 2], ((2, 2, 2),) * 5),
    ],
)
@pytest.mark.parametrize("version", ["2.2", "2.8"])
def test_strides_are_those_of_the_plans(tmp_path: Path, strides: Any, pooling: Any, version: str) -> None:
    new = {"architecture": {"arch_kwargs": {"strides": strides}}}
    base = {"pool_op_kernel_sizes": strides} if version == "2.2" else new
    plans = {"configurations": {"3d_base": base, "3d_fullres": {"inherits_from": "3d_base", "batch_size": 2}}}
    foreign = read_foreign_weights(save_stunet(tmp_path / "s.pth", published_stunet(STUNet(TINY, 2)), plans))
    assert foreign.network == STUNetConfig(base=2, pooling=pooling) and foreign.planned
    assert not read_foreign_weights(save_stunet(tmp_path / "s.pth", published_stunet(STUNet(TINY, 2)))).planned


@pytest.mark.parametrize("axes", ["zyx", "usual"])
def test_kernels_of_nnu_nets_programs_are_turned(axes: Literal["zyx", "usual"], tmp_path: Path) -> None:
    """The network computes of (x, y, z) what that in the file computes of (z, y, x)."""
    strides = [*ISOTROPIC, [1, 2, 2]]
    theirs = STUNetConfig(base=2).with_strides(strides).segmenter(2).eval()
    plans = {"configurations": {"3d_fullres": {"pool_op_kernel_sizes": strides}}, "transpose_forward": [0, 1, 2]}
    path = save_stunet(tmp_path / "s.pth", published_stunet(theirs), plans)
    assert same(read_foreign_weights(path).tensors, theirs.state_dict()) and read_foreign_weights(path).axes == "xyz"
    foreign = read_foreign_weights(path, axes=axes)
    assert foreign.axes == "zyx" and foreign.network == STUNetConfig(base=2, pooling=((2, 2, 2),) * 4 + ((2, 2, 1),))
    ours = foreign.network.segmenter(2).eval()
    ours.load_state_dict(foreign.tensors)
    volume = torch.randn(1, 1, 64, 32, 48)
    with torch.no_grad():
        there = theirs(volume.transpose(2, 4))[0].transpose(2, 4)
        torch.testing.assert_close(ours(volume)[0], there, rtol=1e-4, atol=1e-4)
    plans["transpose_forward"] = [2, 0, 1]
    with pytest.raises(UserError, match=r"s\.pth: its plans exchange the axes of arrays .*give --axes xyz"):
        read_foreign_weights(save_stunet(path, published_stunet(theirs), plans), axes=axes)
    assert read_foreign_weights(path, axes="xyz").axes == "xyz"


@pytest.mark.parametrize(
    ("configurations", "message"),
    [
        ({"2d": {}}, "init_args.plans of .*s.pth lacks '3d_fullres'"),
        ({"3d_fullres": {"pool_op_kernel_sizes": [[1, 1], [2, 2]]}}, r"strides \[\[1, 1\].* are not understood"),
        ({"3d_fullres": {"pool_op_kernel_sizes": 2}}, "strides 2 of the plans are not understood"),
        ({"3d_fullres": {"pool_op_kernel_sizes": [[1, 1, 1], [0, 2, 2]]}}, "are not understood"),
        ({"3d_fullres": {"inherits_from": "3d_fullres"}}, "is not understood"),
        ({"3d_fullres": 5}, "is not understood"),
    ],
)
def test_plans_that_are_not_understood_are_refused(tmp_path: Path, configurations: Any, message: str) -> None:
    path = save_stunet(tmp_path / "s.pth", published_stunet(STUNet(TINY, 2)), {"configurations": configurations})
    with pytest.raises(UserError, match=message):
        read_foreign_weights(path)


def test_plans_whose_strides_a_network_cannot_have_are_refused(tmp_path: Path) -> None:
    network = ResEncConfig(widths=(4, 8, 8), blocks=(1, 1, 1))
    for last, refused in (([2, 2, 2], False), ([1, 2, 2], True)):
        plans = {"configurations": {"3d_fullres": {"pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], last]}}}
        path = save_stunet(tmp_path / "r.pth", network.segmenter(2).state_dict(), plans)
        if refused:
            with pytest.raises(UserError, match="strides 1x1x1, 2x2x2, 1x2x2, with which it would compute something"):
                read_foreign_weights(path)
        else:
            assert read_foreign_weights(path).network == network


def test_a_file_without_an_encoder_is_refused(tmp_path: Path) -> None:
    for content in ({"network_weights": {"a": torch.zeros(1)}}, {"epoch": 3}, {}):
        torch.save(content, tmp_path / "c.pt")
        with pytest.raises(UserError, match="of no network that is known here"):
            read_foreign_weights(tmp_path / "c.pt")
    for other in ([torch.zeros(1)], torch.zeros(1), {1: torch.zeros(1)}):
        torch.save(other, tmp_path / "c.pt")
        with pytest.raises(UserError, match="no dictionary"):
            read_foreign_weights(tmp_path / "c.pt")


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


class _Hidden(_Malicious):
    """The same behind a numpy number, which is let through."""

    def __reduce__(self) -> tuple[object, ...]:
        make = np.float64(0).__reduce__()[0]
        return make, (np.dtype("O"), _Malicious(self.marker))


@pytest.mark.parametrize("kind", [_Malicious, _Hidden])
@pytest.mark.parametrize("place", ["instead", "beside", "within"])
@pytest.mark.parametrize("file", ["c.pt", "c.pth", "c.model"])
def test_a_malicious_file_is_refused_and_runs_nothing(tmp_path: Path, kind: Any, place: str, file: str) -> None:
    marker, path = tmp_path / "it-ran", tmp_path / file
    tensors: dict[str, Any] = dict(published_stunet(STUNet(TINY, 2)))
    key = "state_dict" if path.suffix == ".model" else "network_weights"
    content: dict[str, Any] = {
        "instead": {key: kind(marker)},
        "beside": {key: tensors, "plot_stuff": [kind(marker)]},
        "within": {key: {**tensors, "seg_outputs.0.weight": kind(marker)}},
    }[place]
    torch.save(content, path)
    for read in (read_foreign_weights, import_anatomask_checkpoint):
        with pytest.raises(UserError, match=r"is refused: it holds (posix\.mkdir|more than plain tensors)") as refusal:
            read(path)
        assert "posix.mkdir" in str(refusal.value) or kind is _Hidden
    assert not marker.exists()
    with suppress(TypeError):
        torch.load(path, weights_only=False)
    assert marker.exists()  # so there was something to refuse


def test_what_a_file_may_hold_is_allowed_while_it_is_read_only(tmp_path: Path) -> None:
    path = save_stunet(tmp_path / "s.pth", published_stunet(STUNet(TINY, 2)))
    before = set(torch.serialization.get_safe_globals())
    read_foreign_weights(path)
    assert set(torch.serialization.get_safe_globals()) == before


def test_truncated_missing_and_other_files_are_refused(tmp_path: Path) -> None:
    path = save_stunet(tmp_path / "s.model", published_stunet(STUNet(TINY, 2)))
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        for read in (read_foreign_weights, import_anatomask_checkpoint):
            with pytest.raises(UserError, match=r"s\.model"):
                read(path)
    path.write_text("conv_blocks_context")
    with pytest.raises(UserError, match=r"s\.model is refused"):
        read_foreign_weights(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_foreign_weights(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_foreign_weights(tmp_path / "nowhere.pt")
