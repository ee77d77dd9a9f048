"""Weights that others have published: the names of their tensors, and reading them without running any code.

The `forms` of each backbone describe the files that it knows. Tensors are looked for in the file itself, in
`network_weights` (nnU-Net's version 2, the published AnatoMask and SparK-3D code), in `state_dict` (nnU-Net's
version 1) and in `student` (UniMiSS). Strides show in no tensor: they are those of the plans in `init_args`, where a
file has them.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from anatomask.data.plans import find_configuration, stage_strides
from anatomask.errors import Note, UserError
from anatomask.files import refuse_pipe
from anatomask.nn.backbones import backbone_config, backbone_names
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.names import Form
from anatomask.nn.backbones.stunet import AUTOENCODER
from anatomask.nn.masked_autoencoder import MaskedAutoencoder
from anatomask.nn.norms import NormScope
from anatomask.parsing import entry_of
from anatomask.weights.axes import AXES, Axes, turned, turned_strides
from anatomask.weights.matching import describe_faults, find_faults, is_named

FRESH = "fresh"
"""Key of the names of those tensors in an exported encoder that were drawn only to complete the network."""
NNSSL = "nnssl_adaptation_plan"
"""Key in the files of nnssl, whose networks reconstruct images where they have a decoder."""
TENSOR_KEYS = ("network_weights", "state_dict", "student")
"""Keys of the tensors in what nnU-Net's version 2 writes, version 1, and UniMiSS, beside whose student is a teacher."""


@dataclass(frozen=True)
class ForeignWeights:
    """Content of another program's file of weights."""

    form: Form
    kind: str
    """Kind of the weights. segmentation: a whole network; pretraining: an encoder, perhaps with the decoder of its
    pretraining."""
    network: BackboneConfig
    stages: int | None
    """Number of stages of a pretrained encoder; None for a whole network."""
    classes: int | None
    """Number of classes of a whole network, without the background; None without heads."""
    planned: bool
    """True if the strides are those of nnU-Net plans in the file. False: those published, for the file has none."""
    tensors: dict[str, Tensor]
    """Tensors by our names: of a `Segmenter`, of an encoder, or of a `MaskedAutoencoder`."""
    missing: tuple[str, ...]
    """Names (ours) of tensors that the file lacks, as far as it describes the network; the user allowed them."""
    left_out: tuple[tuple[str, str], ...]
    """Names in the file of tensors that were not transferred, and why."""
    whole: bool = False
    """True for a pretraining whose decoder is that of the segmentation network."""
    axes: Axes = "xyz"
    """Order of the axes of kernels in the file; here it is (x, y, z)."""
    assumed: tuple[str, ...] = ()
    """Fields of the network that no tensor shows and that the user did not give."""


def read_foreign_weights(
    path: str | Path,
    allow_missing: Sequence[str] = (),
    unseen: Mapping[str, Any] = MappingProxyType({}),
    axes: Axes | Literal["usual"] | None = None,
) -> ForeignWeights:
    """Read a file in any of the known forms; sizes are inferred from the tensors.

    Args:
        path: `.pt`, `.pth` or `.model`.
        allow_missing: names (the file's or ours), prefixes that end at a dot, or patterns that need not match.
        unseen: fields of the network that no tensor shows. Default: those that are published.
        axes: order of the axes along which kernels lie in the file, which become (x, y, z). Default: what the file says
            itself, as those of `export-weights` do, else `xyz`, so that axes stay as they are. usual: what the file
            says, else that of the program which writes such files.

    Raises:
        UserError: the file cannot be read safely, is of no known form, holds tensors (named) that do not fit, or plans
            with strides that the network cannot have; or the network has no such field in `unseen`.
    """
    content = _load(Path(path))
    held = next((content[key] for key in TENSOR_KEYS if isinstance(content.get(key), Mapping)), content)
    given = {str(name): value for name, value in held.items()}
    backbone, form = _form_of(given, path)
    for field in unseen.keys() - set(backbone.unseen):
        raise UserError(f"--{field.replace('_', '-')} is not for {backbone.name}, which {path} is of: leave it out")
    if form.note:
        warnings.warn(Note(f"{path}: {form.note}"), stacklevel=2)
    fresh = [name for name in given if name in content[FRESH]] if isinstance(content.get(FRESH), list) else []
    left_out: dict[str, str] = {}
    faults: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    called: dict[str, str] = {}
    for name, value in given.items():
        native = form.ours(_strip(name))
        if re.match(form.unread, _strip(name)):
            left_out[name] = "read by nothing"
        elif name in fresh:
            left_out[name] = "drawn by the export, not trained"
        elif NNSSL in content and is_named(native or "", backbone.heads):
            left_out[name] = "of the reconstruction"
        elif not _is_plain(value):
            faults[name] = "no plain tensor"
        elif native is None:
            faults[name] = "unknown"
        elif form.aliases and native in tensors and _equal(tensors[native], value):
            continue  # one of the second names that this form has for it
        elif native in tensors:
            faults[name] = f"{called[native]} once more"
        else:
            tensors[native], called[native] = form.converted(native, value), name
            if value.is_floating_point() and not value.isfinite().all():
                faults[name] = "not finite"
    strides, axes = _planned_strides(content, path), _axes_of(content, backbone, form, axes, path)
    if axes == "zyx":
        tensors, strides = turned(tensors), None if strides is None else turned_strides(strides)
    network, stages, classes, own = _match_network(backbone, form, tensors, unseen, strides, path)
    tensors |= (computed := _computed(network, own.keys() - tensors.keys()))
    called |= {native: native for native in computed}
    whole = form.whole or (NNSSL in content and stages is None)
    if whole and not form.whole:
        stages, own = len(network.strides), {name: t for name, t in own.items() if not is_named(name, backbone.heads)}
    for native, fault in find_faults(own, tensors).items():
        faults[called.get(native) or form.theirs(native) or native] = fault
    refused = {name: fault for name, fault in faults.items() if not _is_allowed(name, form, allow_missing)}
    if refused:
        raise UserError(
            f"{path} ({form.title}) does not fit the network {network.name}: {describe_faults(refused)}. "
            "To go without them, name them in --allow-missing"
        )
    left_out |= {name: fault for name, fault in faults.items() if name in given}
    kept = {native: tensor.clone() for native, tensor in tensors.items() if called[native] not in faults}
    missing = tuple(sorted(own.keys() - kept.keys()))
    kind = "segmentation" if stages is None else "pretraining"
    dropped, planned = tuple(sorted(left_out.items())), strides is not None
    assumed = tuple(field for field in network.unseen if field not in unseen)
    return ForeignWeights(form, kind, network, stages, classes, planned, kept, missing, dropped, whole, axes, assumed)


def import_anatomask_checkpoint(path: str | Path, norm_scope: NormScope = "sample") -> MaskedAutoencoder:
    """Read a pretraining network from a checkpoint of the published AnatoMask (SparK-3D) code; infer its size.

    Args:
        path: the `.pt` file; `network_weights` inside, with or without the prefix `module.`.
        norm_scope: whether InstanceNorm's statistics are per sample, or over the batch as in that code.

    Raises:
        UserError: as `read_foreign_weights`, or the file holds no such network.
    """
    foreign = read_foreign_weights(path)
    upsample = foreign.tensors.get(_DECODER_WIDTH)
    if foreign.form is not AUTOENCODER or upsample is None:
        raise UserError(
            f"{path} ({foreign.form.title}) has no decoder dense_decoder.dec: not a complete checkpoint; get it again"
        )
    model = _autoencoder(foreign.network, upsample, path, norm_scope)
    model.load_state_dict(foreign.tensors)
    return model


_DECODER_WIDTH = "decoder.levels.0.upsample.weight"
_MAKE_NUMBER: Any = np.float64(0).__reduce__()[0]
"""Function that a pickle calls to make a numpy number of its type and its bytes."""
_PLAIN: list[Any] = [
    *((_MAKE_NUMBER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # in numpy 1, in numpy 2
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "?efd"},
    argparse.Namespace,
]
"""Types that checkpoints hold beside tensors (nnU-Net's scores are numpy numbers, UniMiSS's settings a namespace); they
cannot run code."""


def _load(path: Path) -> dict[str, Any]:
    """Load the dictionary in a PyTorch file without running anything that it contains."""
    refuse_pipe(path)
    try:
        with torch.serialization.safe_globals(_PLAIN):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        what = f"{foreign[1]}, which could run code" if foreign else "more than plain tensors, or is no PyTorch file"
        raise UserError(
            f"{path} is refused: it holds {what}. Ask its author for the tensors alone: a file that "
            "torch.load(path, weights_only=True) reads"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path} cannot be read as a PyTorch file ({type(error).__name__}: {error}); get it again"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} holds no dictionary of tensors: not a checkpoint; give one")
    return content


def _is_plain(value: Any) -> bool:
    """Return whether `value` is an ordinary tensor, with all its numbers in memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are alike in type, shape and values."""
    return one.dtype == other.dtype and torch.equal(one, other)


def _strip(name: str) -> str:
    """Remove from a tensor's name what parallel and compiled modules put before it."""
    return re.sub(r"^((module|_orig_mod)\.)+", "", name)


def _form_of(names: Mapping[str, Any], path: str | Path) -> tuple[type[BackboneConfig], Form]:
    """Find the backbone and the form that a file is of."""
    backbones = [backbone_config(name) for name in backbone_names()]
    known = [(backbone, form) for backbone in backbones for form in backbone.forms]
    for backbone, form in known:
        if any(_strip(name).startswith(form.encoder) for name in names):
            return backbone, form
    begins = ", ".join(f"{form.encoder}*" for _, form in known)
    raise UserError(f"{path} holds no tensor named {begins}: of no network that is known here; give weights of one")


def _is_allowed(name: str, form: Form, allow_missing: Sequence[str]) -> bool:
    bare = _strip(name)
    return any(is_named(alias, allow_missing) for alias in (name, bare, form.ours(bare)) if alias is not None)


def _planned_strides(content: Mapping[str, Any], path: str | Path) -> tuple[tuple[int, int, int], ...] | None:
    """Read the strides in the plans of a checkpoint; return None where it has no plans.

    Raises:
        UserError: the plans are not understood.
    """
    arguments = content.get("init_args")
    plans = arguments.get("plans") if isinstance(arguments, Mapping) else None
    if not isinstance(arguments, Mapping) or not isinstance(plans, Mapping) or "configurations" not in plans:
        return None
    where = f"init_args.plans of {path}"
    return stage_strides(find_configuration(plans, entry_of(arguments, "configuration", where), where), where)


def _axes_of(
    content: Mapping[str, Any],
    backbone: type[BackboneConfig],
    form: Form,
    axes: Axes | Literal["usual"] | None,
    path: str | Path,
) -> Axes:
    """Find the order of the axes of kernels; see `read_foreign_weights`.

    Raises:
        UserError: the network is of another kind, or nnU-Net exchanged the axes of its arrays once more.
    """
    if axes in ("xyz", "zyx") and not backbone.convolutional:
        raise UserError(f"--axes is for convolutional networks, and {path} is of {backbone.name}: leave it out")
    if axes is None or axes == "usual":
        said = content.get(AXES)
        axes = "zyx" if said == "zyx" else form.axes if said is None and axes == "usual" else "xyz"
    arguments = content.get("init_args")
    plans = arguments.get("plans") if isinstance(arguments, Mapping) else None
    order = plans.get("transpose_forward", [0, 1, 2]) if isinstance(plans, Mapping) else [0, 1, 2]
    if axes == "zyx" and order not in ([0, 1, 2], (0, 1, 2)):
        raise UserError(
            f"{path}: its plans exchange the axes of arrays (transpose_forward is {order}), which is not undone here: "
            "give --axes xyz, which leaves the kernels as they are"
        )
    return axes


def _match_network(
    backbone: type[BackboneConfig],
    form: Form,
    tensors: Mapping[str, Tensor],
    unseen: Mapping[str, Any],
    strides: Sequence[Sequence[int]] | None,
    path: str | Path,
) -> tuple[BackboneConfig, int | None, int | None, Mapping[str, Tensor]]:
    """Find the network of tensors (by our names), its encoder's stages, its classes and its empty state."""
    try:
        infer: Callable[..., tuple[BackboneConfig, int | None, int | None]] = backbone.of_tensors
        network, stages, classes = infer(form, tensors, **unseen)
        network = network if strides is None else network.with_strides(strides)
    except KeyError as error:
        name = form.theirs(error.args[0]) or error.args[0]
        raise UserError(
            f"{path} lacks the tensor {name} and all others that tell its size: not complete; get it again"
        ) from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: {error}") from error
    if form.whole:
        with torch.device("meta"):
            return network, stages, None, network.trunk().state_dict()
    if classes is not None and classes < 1:
        raise UserError(f"{path}: heads of {classes + 1} output(s) have no class besides the background")
    width = tensors.get(_DECODER_WIDTH)
    with torch.device("meta"):
        if stages is None:
            return network, None, classes, network.segmenter(classes or 1).state_dict()
        if form is AUTOENCODER and width is not None:
            return network, stages, None, _autoencoder(network, width, path).state_dict()
        encoder = network.encoder(stages).state_dict()
    return network, stages, None, {f"encoder.{name}": tensor for name, tensor in encoder.items()}


def _computed(network: BackboneConfig, absent: Collection[str]) -> dict[str, Tensor]:
    """Compute those of the `absent` tensors that follow from the size of a network alone."""
    names = [name for name in absent if re.match(network.computed, name)]
    encoder = network.encoder().state_dict() if names else {}
    return {name: encoder[name.removeprefix("encoder.")] for name in names}


def _autoencoder(
    network: BackboneConfig, upsample: Tensor, path: str | Path, norm_scope: NormScope = "sample"
) -> MaskedAutoencoder:
    """Build the network with the decoder whose first transposed convolution has the weight `upsample`."""
    try:
        return MaskedAutoencoder(network, "hierarchical", upsample.shape[0], norm_scope)
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: {error}") from error
