"""Export of weights to the files that nnU-Net's STU-Net trainers, the published scripts and MONAI read.

Those programs choose by a file's ending what they look for in it, so endings matter here:

    nnunet       .pth    `network_weights`, STU-Net's names: what STU-Net's and AnatoMask's nnU-Net (version 2) load.
                         They refuse a file without every tensor but the heads, so a pretrained encoder is completed
                         with freshly drawn ones, which are listed in the file.
                 .pt     of a pretrained encoder, for `load_stunet_ssl_weights` of the published AnatoMask code
    stunet       .model  `state_dict`, STU-Net's names: the form of its released weights (nnU-Net version 1)
    nnssl        .pth    `network_weights` of a pretrained ResEnc-L with `nnssl_adaptation_plan`, from which nnU-Net's
                         `nnUNetv2_train_pretrained` finetunes
    monai        .pt     a plain state dict of the network
    safetensors          the same under the names of our checkpoints, with the header
    huggingface          a folder of it: `model.safetensors`, `model.json`, and the model card `README.md`
    monai-bundle         a folder of a finetuned network that `python -m monai.bundle run` executes

nnU-Net's arrays have the axes (z, y, x), so kernels and strides are turned in its three formats, and a key says so.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anatomask.errors import Note, UserError
from anatomask.files import replacing
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.names import Form
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.stunet import AUTOENCODER, PUBLISHED_STUNET, STUNetConfig
from anatomask.weights.axes import AXES, Axes, turned, turned_strides
from anatomask.weights.files import (
    beyond_encoder,
    encoder_prefix,
    encoder_tensors,
    network_of,
    repeat_stem,
    run_name,
    trained_stages,
)
from anatomask.weights.foreign import FRESH, NNSSL
from anatomask.weights.matching import load_matching
from anatomask.weights.tensor_files import Weights, write_described

ExportFormat = Literal["nnunet", "stunet", "nnssl", "monai", "safetensors", "huggingface", "monai-bundle"]
FOLDERS: tuple[ExportFormat, ...] = ("huggingface", "monai-bundle")
"""Formats that are folders and no files: of our own format and what describes it."""

ENDINGS: Mapping[str, tuple[str, ...]] = {
    "nnunet": (".pth", ".pt"),
    "stunet": (".model",),
    "nnssl": (".pth",),
    "monai": (".pt", ".pth"),
    "safetensors": (".safetensors",),
}
"""Endings that files of each format may have; the first is the usual one. Those in `FOLDERS` have none."""
TURNED: tuple[ExportFormat, ...] = ("nnunet", "stunet", "nnssl")
"""Formats of nnU-Net's programs, whose arrays have the axes (z, y, x)."""
UNKNOWN = "unknown"
"""Licence, in the terms of the Hugging Face hub, that nobody has stated."""
CONFIGURATION = "3d_fullres"
"""Name, in exported plans, of the configuration with the network's strides."""


LAYERS = {"conv": "all_modules.0", "norm": "all_modules.1"}
"""Second names that nnU-Net's ResEnc has for the layers of a block; files of its weights hold both."""


@dataclass(frozen=True)
class Export:
    """Content of a file to be written, and what it leaves out."""

    content: dict[str, Any]
    """Content of a PyTorch file; tensors alone for safetensors."""
    header: dict[str, Any]
    """Header of our own format."""
    exported: int
    """Number of tensors that come from the run."""
    fresh: tuple[str, ...]
    """Names, in the other program, of the tensors that were drawn to complete a network."""
    left_out: tuple[str, ...]
    """Names, in our checkpoint, of the tensors that are not exported."""
    strides: str
    """Strides of the network's stages relative to the input, which no tensor shows, in the order `axes`."""
    axes: Axes = "xyz"
    """Order of the axes of kernels and strides."""


def export_weights(weights: Weights, format: ExportFormat, ending: str, in_channels: int | None = None) -> Export:
    """Convert weights to a format: the network of a finetuning run, or the encoder of a pretraining run.

    Args:
        weights: as they were read from a checkpoint.
        format: format of the file.
        ending: ending of the file, one of `ENDINGS`; of a folder none.
        in_channels: input channels of the stem, whose weights are repeated, unscaled. Default: as many as they have.

    Raises:
        UserError: the weights are of no known kind, or of a network that the format does not hold, or the stem cannot
            be repeated to `in_channels`.
    """
    kind = weights.header.get("kind")
    network = network_of(weights.header)
    if format in ("nnunet", "stunet") and not isinstance(network, STUNetConfig):
        raise UserError(
            f"--format {format} is for STU-Net, these weights are of the network {network.name}: choose --format monai "
            "or safetensors, whose tensors have the names of docs/backbones.md"
        )
    if format == "nnssl" and (kind != "pretraining" or replace(network, in_channels=1) != ResEncConfig()):
        raise UserError(
            "--format nnssl is for a pretrained ResEnc-L, the only network here that nnU-Net builds for such a file; "
            f"these weights are of {kind}, {network.label()}: choose another --format"
        )
    channels = in_channels or network.in_channels
    fitted = replace(network, in_channels=channels)
    if format == "monai-bundle" and kind != "segmentation":
        raise UserError(
            f"--format monai-bundle is for a finetuned network, which segments; these weights are of {kind}: finetune "
            "from them first, or choose --format monai"
        )
    if kind == "pretraining":
        tensors, prefix = encoder_tensors(weights, fitted), encoder_prefix(weights.header).removesuffix("encoder.")
    elif kind == "segmentation":
        tensors, prefix = repeat_stem(weights.tensors, network, channels), ""
    else:
        raise UserError(f"weights of kind {kind!r} cannot be exported, only those of `pretrain` and `finetune`")
    with torch.device("meta"):  # a header may describe a network that no memory holds
        may_lack = (*weights.header.get("missing", ()), *(beyond_encoder(weights.header) if prefix else ()))
        load_matching(fitted.segmenter(weights.header["architecture"].get("classes", 1)), tensors, may_lack)
    left_out = tuple(sorted(weights.tensors.keys() - {prefix + name for name in tensors}))
    architecture = {**weights.header["architecture"], "in_channels": channels}
    header = {**without_paths(weights.header), "architecture": architecture}
    header.pop("whole", None)  # the decoder of a pretraining stays behind
    fresh: dict[str, Tensor] = {}
    content: dict[str, Any]
    axes: Axes = "zyx" if format in TURNED else "xyz"
    if axes == "zyx":
        tensors = turned(tensors)
        if isinstance(fitted, STUNetConfig):
            fitted = fitted.with_strides(turned_strides(fitted.stage_strides))
    if format == "safetensors" or format in FOLDERS:
        content = {prefix + name: tensor for name, tensor in tensors.items()}
    elif format == "monai":
        content = dict(tensors) if network.exported is None else _renamed(tensors, network.exported)
        if network.exported_note:
            warnings.warn(Note(f"--format monai: {network.exported_note}"), stacklevel=2)
    elif format == "nnssl":
        if trained_stages(weights.header) < len(network.strides):
            beyond = _untrained(weights)
            fresh = {name: beyond[name] for name in beyond if name.startswith("encoder.") and name not in tensors}
        content = {
            "network_weights": {name: tensor for one, tensor in (tensors | fresh).items() for name in _both_names(one)},
            NNSSL: _adaptation_plan(header, fitted),
        }
    elif format == "stunet":
        content = {
            "epoch": 0,
            "state_dict": _renamed(tensors, PUBLISHED_STUNET),
            "optimizer_state_dict": None,
            "lr_scheduler_state_dict": None,
            "plot_stuff": ([], [], [], []),
        }
    elif ending == ".pt" and kind != "pretraining":
        raise UserError(
            "--format nnunet writes .pt for pretraining runs alone: AnatoMask's load_stunet_ssl_weights, which reads "
            "it, takes an encoder and would load nothing of this network. Choose an --output that ends in .pth, for "
            "its load_stunet_pretrained_weights"
        )
    elif ending == ".pt":
        published = _renamed(tensors, AUTOENCODER)
        content = {"network_weights": {f"module.{name}": tensor for name, tensor in published.items()}}
    else:
        if kind == "pretraining":
            fresh = _renamed(_untrained(weights), PUBLISHED_STUNET)
        content = {"network_weights": _renamed(tensors, PUBLISHED_STUNET) | fresh}
    if fresh:
        content = {**content, FRESH: sorted(fresh)}
    if isinstance(fitted, STUNetConfig) and format in ("nnunet", "stunet"):
        content = {**content, "init_args": _init_args(fitted)}
    if axes == "zyx":
        content = {**content, AXES: axes}
    return Export(content, header, len(tensors), tuple(sorted(fresh)), left_out, fitted.strides_in_words(), axes)


def write_export(path: Path, format: ExportFormat, export: Export) -> None:
    """Write an export atomically.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "safetensors":
        write_described(path, export.content, export.header)
        return
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(export.content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # a full disk, which torch does not say
                raise error.__context__ from error
            raise


def _init_args(network: STUNetConfig) -> dict[str, Any]:
    """Describe the strides where nnU-Net's own checkpoints do, and `import-weights` looks for them."""
    strides = [list(axes) for axes in network.stage_strides]
    plans = {"configurations": {CONFIGURATION: {"pool_op_kernel_sizes": strides}}}
    return {"plans": plans, "configuration": CONFIGURATION}


def _both_names(name: str) -> list[str]:
    """Return a tensor's name and, in a block of a ResEnc, its second one."""
    return [name, re.sub(r"\b(conv|norm)(?=\.\w+$)", lambda layer: LAYERS[layer[1]], name)]


def without_paths(header: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a header without what leads to places of this machine: weights that are passed on tell nothing of them."""
    kept = {name: value for name, value in header.items() if name != "data"}
    start = header.get("initialisation") or {}
    if start.get("run"):
        kept["initialisation"] = {**start, "run": run_name(start["run"])}
    return kept


def _adaptation_plan(header: Mapping[str, Any], network: BackboneConfig) -> dict[str, Any]:
    """Describe a pretrained ResEnc-L as nnssl does, for nnU-Net, which lays out data and network like the pretraining.

    Fields: those that nnU-Net's `preprocess_like_nnssl` reads; axes (z, y, x).
    """
    patch = list(header["patch_size"])[::-1]
    configuration = {
        "spacing": list(header["spacing"])[::-1],
        "patch_size": patch,
        "normalization_schemes": ["ZScoreNormalization"] * network.in_channels,
        "use_mask_for_norm": [False] * network.in_channels,
    }
    projections = _both_names("encoder.stem.convs.0.conv.weight")
    return {
        "architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None},
        "pretrain_plan": {"dataset_name": header.get("dataset"), "configurations": {CONFIGURATION: configuration}},
        "pretrain_num_input_channels": network.in_channels,
        "recommended_downstream_patchsize": patch,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": [name.removesuffix(".weight") for name in projections],
        "key_to_lpe": None,
    }


def _renamed(tensors: Mapping[str, Tensor], form: Form) -> dict[str, Tensor]:
    names = {name: form.theirs(name) for name in tensors}
    unknown = [name for name, theirs in names.items() if theirs is None]
    if unknown:
        raise UserError(f"the weights hold {', '.join(unknown[:4])}, for which there is no name in: {form.title}")
    return {str(theirs): tensors[name] for name, theirs in names.items()}


def _untrained(weights: Weights) -> dict[str, Tensor]:
    """Draw what a pretrained encoder lacks of a segmentation network, except the heads, as finetuning would."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = network_of(weights.header).segmenter(classes=1)
    trained = tuple(f"encoder.stages.{stage}." for stage in range(trained_stages(weights.header)))
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith((*trained, "heads."))}
