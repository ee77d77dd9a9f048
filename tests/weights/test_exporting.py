"""Exported weights go through what the programs they are for demand of a file, and compute the same there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR
from monai.networks.utils import copy_model_state
from torch import Tensor, nn
from torch.nn import functional

from anatomask.errors import Note, UserError
from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.nn.backbones.swin_unetr import SwinUNETRConfig
from anatomask.weights.axes import turned
from anatomask.weights.exporting import ENDINGS, export_weights, write_export
from anatomask.weights.files import describe_architecture, initialise
from anatomask.weights.foreign import read_foreign_weights
from anatomask.weights.tensor_files import Weights, read_described

POOLING = ((2, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 1), (1, 2, 2))
OF_STUNET = {format: endings for format, endings in ENDINGS.items() if format != "nnssl"}
SIZES = [STUNetConfig(base=2), STUNetConfig(base=2, depth=2), STUNetConfig(in_channels=2, base=2)]
STRIDED = [*SIZES, STUNetConfig(base=2, pooling=POOLING)]


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: Any = 1, projection: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, width, 3, stride, 1)
        self.norm1 = nn.InstanceNorm3d(width, affine=True)
        self.conv2 = nn.Conv3d(width, width, 3, 1, 1)
        self.norm2 = nn.InstanceNorm3d(width, affine=True)
        self.conv3 = nn.Conv3d(inputs, width, 1, stride) if projection else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(functional.leaky_relu(self.norm1(self.conv1(x)))))
        return functional.leaky_relu(y + (x if self.conv3 is None else self.conv3(x)))


class Published(nn.Module):
    """STU-Net with the published names, which enlarges before it convolves."""

    def __init__(self, config: STUNetConfig, classes: int) -> None:
        super().__init__()
        widths = config.stage_widths
        inputs = (config.in_channels, *widths)

        def stage(before: int, width: int, stride: Any = 1) -> nn.Sequential:
            first = Block(before, width, stride, projection=True)
            return nn.Sequential(first, *(Block(width, width) for _ in range(config.depth - 1)))

        self.factors: tuple[Any, ...] = config.pooling or (2, 2, 2, 2, 1)
        strides = (1, *self.factors)
        self.conv_blocks_context = nn.ModuleList(map(stage, inputs, widths, strides))
        self.upsample_layers = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv3d(widths[5 - u], widths[4 - u], 1)}) for u in range(5)
        )
        self.conv_blocks_localization = nn.ModuleList(stage(2 * widths[4 - u], widths[4 - u]) for u in range(5))
        self.seg_outputs = nn.ModuleList(nn.Conv3d(widths[4 - u], classes + 1, 1) for u in range(5))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            skips.append(x)
        for u, factor in enumerate(reversed(self.factors)):
            x = functional.interpolate(x, scale_factor=factor, mode="nearest")
            x = self.upsample_layers[u].get_submodule("conv")(x)
            x = self.conv_blocks_localization[u](torch.cat((x, skips[4 - u]), 1))
        return self.seg_outputs[-1](x)


def load_into_nnunet(network: nn.Module, path: Path, without: str, endings: tuple[str, ...] = (".pth",)) -> list[str]:
    """What nnU-Net's `-pretrained_weights` does: every tensor of the network but some is demanded, in its shape.

    STU-Net's trainers leave out `seg_outputs`, nnU-Net's own code `.seg_layers.`; names that the network has not are
    passed over. Both read `network_weights` of `.pth`; STU-Net's also `state_dict` of `.model`.
    """
    assert path.suffix in (*endings, ".model")
    content = torch.load(path)["state_dict" if path.suffix == ".model" else "network_weights"]
    state = network.state_dict()
    for name, tensor in state.items():
        if without not in name:
            assert name in content, f"{name} is missing"
            assert tensor.shape == content[name].shape, f"{name} has another shape"
    used = {name: tensor for name, tensor in content.items() if name in state and without not in name}
    network.load_state_dict({**state, **used})
    return sorted(used)


def load_into_anatomask(network: nn.Module, path: Path) -> list[str]:
    """What the published finetuning script does with pretrained weights: names with `encoder`, cut behind `sp_cnn.`."""
    assert path.name.endswith("pt"), "it knows no other ending"
    content = torch.load(path)["network_weights"]
    encoder = {name.split("sp_cnn.")[-1]: tensor for name, tensor in content.items() if "encoder" in name}
    return sorted(encoder.keys() - set(network.load_state_dict(encoder, strict=False).unexpected_keys))


def pretrained(network: STUNetConfig) -> Weights:
    method = AnatoMask(AnatoMaskConfig(decoder_width=16), network)
    with torch.no_grad():
        for tensor in method.student.parameters():  # student and teacher differ
            tensor.add_(torch.randn_like(tensor))
    header = {"kind": "pretraining", "architecture": describe_architecture(network), "spacing": [1.5, 1.5, 1.5]}
    return Weights(method.state_dict(), header)


def finetuned(network: STUNetConfig, classes: int = 2) -> Weights:
    header = {"kind": "segmentation", "architecture": describe_architecture(network, classes)}
    return Weights(STUNet(network, classes).state_dict(), header)


def write(path: Path, weights: Weights, format: Any, in_channels: int | None = None) -> Path:
    write_export(path, format, export_weights(weights, format, path.suffix, in_channels))
    return path


def test_a_finetuned_network_is_not_written_for_a_loader_of_encoders(tmp_path: Path) -> None:
    """AnatoMask's would pass over every tensor without a word."""
    with pytest.raises(UserError, match=r"load nothing of this network. Choose an --output that ends in \.pth"):
        export_weights(finetuned(SIZES[0]), "nnunet", ".pt")


def student(weights: Weights) -> dict[str, Tensor]:
    prefix = "student.encoder."
    return {
        name.removeprefix("student."): tensor for name, tensor in weights.tensors.items() if name.startswith(prefix)
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("network", STRIDED)
@pytest.mark.parametrize(("format", "file"), [("nnunet", "w.pth"), ("stunet", "w.model")])
def test_the_published_network_computes_the_same(tmp_path: Path, network: STUNetConfig, format: str, file: str) -> None:
    weights = finetuned(network)
    path = write(tmp_path / file, weights, format)
    pooling = network.pooling and tuple((c, b, a) for a, b, c in network.pooling)
    theirs, ours = Published(replace(network, pooling=pooling), 2), STUNet(network, 2)
    load_into_nnunet(theirs, path, without="nothing is left out")
    ours.load_state_dict(weights.tensors)
    volume = torch.randn(1, network.in_channels, 32, 64, 48)
    with torch.no_grad():  # nnU-Net's arrays have the axes z, y, x
        there = theirs(volume.transpose(2, 4)).transpose(2, 4)
        torch.testing.assert_close(there, ours(volume)[0], rtol=1e-4, atol=1e-4)
    assert read_foreign_weights(path).network == network
    assert set(torch.load(path)["state_dict" if format == "stunet" else "network_weights"]) == set(theirs.state_dict())


@pytest.mark.parametrize(("without", "classes"), [("seg_outputs", 7), (".seg_layers.", 2)])
def test_a_finetuned_network_starts_another_in_nnunet(tmp_path: Path, without: str, classes: int) -> None:
    """With other classes by STU-Net's loader, with the same by nnU-Net's own."""
    path = write(tmp_path / "w.pth", finetuned(SIZES[1]), "nnunet")
    used = load_into_nnunet(Published(SIZES[1], classes), path, without)
    names = set(Published(SIZES[1], classes).state_dict())
    assert set(used) == {name for name in names if without not in name}


@pytest.mark.parametrize("network", SIZES)
def test_a_pretrained_encoder_starts_a_network_in_nnunet(tmp_path: Path, network: STUNetConfig) -> None:
    weights = pretrained(network)
    path = write(tmp_path / "w.pth", weights, "nnunet")
    target = Published(network, 5)
    load_into_nnunet(target, path, "seg_outputs")
    state = target.state_dict()
    for name, tensor in student(weights).items():
        theirs = name.replace("encoder.stages", "conv_blocks_context").replace("shortcut", "conv3")
        assert torch.equal(state.pop(theirs), turned({"": tensor})[""])
    fresh = torch.load(path)["fresh"]
    assert set(fresh) == {name for name in state if "seg_outputs" not in name}
    again = torch.load(write(tmp_path / "again.pth", weights, "nnunet"))["network_weights"]
    assert same(torch.load(path)["network_weights"], again)


@pytest.mark.parametrize("network", SIZES)
def test_a_pretrained_encoder_goes_through_the_published_finetuning_script(
    tmp_path: Path, network: STUNetConfig
) -> None:
    weights = pretrained(network)
    path = write(tmp_path / "w.pt", weights, "nnunet")
    target = Published(network, 5)
    used = load_into_anatomask(target, path)
    assert used == sorted(
        name for name in target.state_dict() if name.startswith(tuple(f"conv_blocks_context.{s}." for s in range(5)))
    )
    stem = student(weights)["encoder.stages.0.0.shortcut.weight"]
    assert torch.equal(target.get_parameter("conv_blocks_context.0.0.conv3.weight"), stem)


@pytest.mark.parametrize("kind", [pretrained, finetuned])
def test_monai_loads_a_plain_state_dict(tmp_path: Path, kind: Any) -> None:
    weights = kind(SIZES[1])
    path = write(tmp_path / "w.pt", weights, "monai")
    network = STUNet(SIZES[1], 2)
    state, changed, _ = copy_model_state(network, torch.load(path, weights_only=True))
    sources = student(weights) if kind is pretrained else weights.tensors
    assert sorted(changed) == sorted(sources)
    assert all(torch.equal(state[name], tensor) for name, tensor in sources.items())


@pytest.mark.parametrize("network", SIZES)
@pytest.mark.parametrize(
    ("kind", "format", "ending"),
    [
        (kind, format, ending)
        for format, endings in OF_STUNET.items()
        for ending in endings
        for kind in (pretrained, finetuned)
        if (kind, format, ending) != (finetuned, "nnunet", ".pt")
    ],
)
def test_what_went_out_comes_back_bit_by_bit(
    tmp_path: Path, network: STUNetConfig, kind: Any, format: str, ending: str
) -> None:
    weights = kind(network)
    path = write(tmp_path / f"w{ending}", weights, format)
    if format == "safetensors":
        ours = read_described(path)
        sources = {name: t for name, t in weights.tensors.items() if kind is finetuned or "student.encoder." in name}
        assert same(ours.tensors, sources) and ours.header == weights.header
        return
    foreign = read_foreign_weights(path)
    assert (foreign.kind, foreign.network) == (weights.header["kind"], network)
    assert same(foreign.tensors, student(weights) if kind is pretrained else dict(weights.tensors))
    assert foreign.missing == ()


@pytest.mark.parametrize("format", OF_STUNET)
def test_a_file_tells_nothing_of_this_machine(tmp_path: Path, format: Any) -> None:
    weights = finetuned(SIZES[0])
    start = {"method": "AnatoMask", "run": "/home/me/runs/first", "dataset": "mine"}
    header = {**weights.header, "data": "/home/me/shards", "initialisation": start}
    path = write(tmp_path / f"w{ENDINGS[format][0]}", replace(weights, header=header), format)
    assert b"/home/me" not in path.read_bytes()
    if format == "safetensors":
        assert read_described(path).header["initialisation"] == {**start, "run": "first"}


@pytest.mark.parametrize("format", OF_STUNET)
@pytest.mark.parametrize("kind", [pretrained, finetuned])
def test_the_stem_is_repeated_over_two_channels(tmp_path: Path, format: Any, kind: Any) -> None:
    weights, name = kind(SIZES[0]), "encoder.stages.0.0.conv1.weight"
    path = write(tmp_path / f"w{ENDINGS[format][0]}", weights, format, in_channels=2)
    one = weights.tensors[f"student.{name}" if kind is pretrained else name]
    if format == "safetensors":
        given = read_described(path)
        assert given.header["architecture"]["in_channels"] == 2
        network = STUNet(SIZES[2], 2)
        initialise(network, given)
        two = network.state_dict()[name]
    else:
        foreign = read_foreign_weights(path)
        assert foreign.network == SIZES[2]
        two = foreign.tensors[name]
    assert torch.equal(two, torch.cat((one, one), 1))
    with pytest.raises(UserError, match="cannot be repeated to 3"):
        export_weights(kind(SIZES[2]), format, ENDINGS[format][0], in_channels=3)


def test_a_file_holds_no_more_than_its_tensors(tmp_path: Path) -> None:
    """Tensors that were read from a larger file must not take it along."""
    path = write(tmp_path / "a.safetensors", pretrained(STUNetConfig(base=8)), "safetensors")
    weights = read_described(path)
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.tensors.values())
    assert write(tmp_path / "b.pt", weights, "monai").stat().st_size < 1.1 * size


def test_what_stays_behind_is_named() -> None:
    weights = pretrained(SIZES[0])
    export = export_weights(weights, "monai", ".pt")
    assert set(export.left_out) == {name for name in weights.tensors if not name.startswith("student.encoder.")}
    assert export_weights(finetuned(SIZES[0]), "nnunet", ".pth").left_out == ()
    with pytest.raises(UserError, match="kind 'other' cannot be exported"):
        export_weights(Weights({}, {**weights.header, "kind": "other"}), "monai", ".pt")
    unknown = Weights({**finetuned(SIZES[0]).tensors, "gate.bias": torch.zeros(1)}, finetuned(SIZES[0]).header)
    with pytest.raises(UserError, match=r"gate\.bias"):
        export_weights(unknown, "stunet", ".model")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "w.pth", finetuned(SIZES[0]), "nnunet")
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="No space left"):
        write(path, finetuned(SIZES[1]), "nnunet")
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["w.pth"]


def test_a_pretrained_swin_transformer_leaves_under_the_names_of_monais_network() -> None:
    pytest.importorskip("einops")
    network = SwinUNETRConfig(feature_size=12)
    tensors = {f"network.encoder.{name}": tensor for name, tensor in network.encoder().state_dict().items()}
    header = {"kind": "pretraining", "architecture": describe_architecture(network), "stages": 5}
    weights = Weights(tensors, {**header, "encoder": "network.encoder."})
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        content = export_weights(weights, "monai", ".pt").content
    theirs = SwinUNETR(1, 4, feature_size=12)
    assert len(content) == 126 and not theirs.load_state_dict(content, strict=False).unexpected_keys
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in content.items())
    repeated = describe_architecture(replace(network, patch_merging="repeated"))
    weights = Weights(tensors, {**weights.header, "architecture": repeated})
    with pytest.warns(Note, match=r"--format monai: .* is repeated, .* MONAI from 1\.5 on .* computes something else"):
        export_weights(weights, "monai", ".pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        export_weights(weights, "safetensors", ".safetensors")


def resenc_l(stages: int, in_channels: int = 1) -> Weights:
    """An encoder of zeros, which take no memory, trained up to a stage."""
    network = ResEncConfig(in_channels=in_channels)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in network.encoder(stages).state_dict().items()}
    tensors = {f"student.encoder.{name}": torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    facts = {"stages": stages, "patch_size": [112, 112, 128], "spacing": [1.5, 1.5, 3.0], "dataset": "scans"}
    return Weights(tensors, {"kind": "pretraining", "architecture": describe_architecture(network), **facts})


def test_a_pretrained_resenc_l_leaves_with_the_plan_that_nnu_net_reads() -> None:
    content = export_weights(resenc_l(6), "nnssl", ".pth", in_channels=2).content
    plan = content["nnssl_adaptation_plan"]
    assert plan["architecture_plans"] == {
        "arch_class_name": "ResEncL",
        "arch_kwargs": None,
        "arch_kwargs_requiring_import": None,
    }
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    assert configuration["patch_size"] == plan["recommended_downstream_patchsize"] == [128, 112, 112]
    assert configuration["spacing"] == [3.0, 1.5, 1.5] and plan["pretrain_num_input_channels"] == 2
    assert content["axes"] == "zyx"
    names = content["network_weights"].keys()
    assert all(name.startswith((plan["key_to_encoder"] + ".", plan["key_to_stem"] + ".")) for name in names)
    stem = [content["network_weights"][f"{key}.weight"] for key in plan["keys_to_in_proj"]]
    assert len(stem) == 2 and all(weight.shape[1] == 2 for weight in stem)
    assert plan["key_to_lpe"] is None and "untrained" not in str(content.keys())
    for weights in (pretrained(SIZES[0]), finetuned(SIZES[0])):
        with pytest.raises(UserError, match=r"nnssl is for a pretrained ResEnc-L.*these weights are of (pre|seg)"):
            export_weights(weights, "nnssl", ".pth")


READS = """
import sys, numpy, torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet as Network
content = torch.load(str(numpy.load(sys.argv[1])["path"]), weights_only=True)
widths, blocks, strides = [32, 64, 128, 256, 320, 320], [1, 3, 4, 6, 6, 6], [1, 2, 2, 2, 2, 2]
norm = {"norm_op": torch.nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "conv_bias": True}
network = Network(1, 6, widths, torch.nn.Conv3d, 3, strides, blocks, 2, [1] * 5, nonlin=torch.nn.LeakyReLU, **norm)
encoder = {name.removeprefix("encoder."): tensor for name, tensor in content["network_weights"].items()}
network.encoder.load_state_dict(encoder)
numpy.savez(sys.argv[2], loaded=len(encoder))
"""


@pytest.mark.slow
def test_nnu_nets_resenc_l_takes_every_tensor_of_it(
    nnunet: Callable[..., dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """The last stage, which has a stride of 32, is not pretrained with patches of 16 voxels: it is drawn."""
    export = export_weights(resenc_l(5), "nnssl", ".pth")
    assert export.fresh and all(name.startswith("encoder.stages.5.") for name in export.fresh)
    write_export(tmp_path / "w.pth", "nnssl", export)
    (tmp_path / "reads.py").write_text(READS)
    found = nnunet(tmp_path / "reads.py", path=np.array(str(tmp_path / "w.pth")))
    assert found["loaded"] == len(export.content["network_weights"])


def test_other_networks_leave_as_plain_tensors_and_not_under_the_names_of_an_stunet(tmp_path: Path) -> None:
    network = ResEncConfig(widths=(4, 8, 8), blocks=(1, 1, 2))
    tensors = network.segmenter(2).state_dict()
    weights = Weights(tensors, {"kind": "segmentation", "architecture": describe_architecture(network, 2)})
    assert same(export_weights(weights, "monai", ".pt").content, tensors)
    assert same(export_weights(weights, "safetensors", ".safetensors").content, tensors)
    for format, ending in (("nnunet", ".pth"), ("stunet", ".model")):
        with pytest.raises(UserError, match=f"--format {format} is for STU-Net.*choose --format monai"):
            export_weights(weights, format, ending)  # type: ignore[arg-type]
