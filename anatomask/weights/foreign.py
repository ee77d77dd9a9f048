"""Weights that others have published: what their tensors are called, and how they are read without running anything.

Three forms are known. Checkpoints of the published AnatoMask and SparK-3D code (`network_weights`, names below
`module.sparse_encoder.sp_cnn`), STU-Net's supervised weights and those of its nnU-Net trainers (`state_dict` or
`network_weights`), and a plain state dict under our own names.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anatomask.errors import UserError
from anatomask.nn.backbones.stunet import STAGE_STRIDES, STUNet, STUNetConfig, STUNetEncoder
from anatomask.nn.masked_autoencoder import MaskedAutoencoder
from anatomask.nn.norms import NormScope
from anatomask.weights.matching import describe_faults, find_faults, is_named

FRESH = "fresh"
"""Beside an exported pretrained encoder's tensors: the names of those that were drawn only to complete the network."""
STUNET_KEYS = ("network_weights", "state_dict")
"""Where the tensors are in what nnU-Net's version 2 writes, and version 1."""


@dataclass(frozen=True)
class Form:
    """How somebody calls the tensors of an STU-Net."""

    title: str
    encoder: str
    """What the names of the encoder begin with."""
    renames: tuple[tuple[str, str], ...]
    """Beginnings of names, theirs and ours; `{}` is a number. The first that fits holds."""
    unread: str = "$."
    """Pattern of the names that their own network does not read."""

    def ours(self, name: str) -> str | None:
        """Our name for theirs; None if there is none."""
        return _rename(name, self.renames)

    def theirs(self, name: str) -> str | None:
        """Their name for ours; None if there is none."""
        return _rename(name, [(ours, theirs) for theirs, ours in self.renames])


AUTOENCODER = Form(
    "AnatoMask or SparK-3D checkpoint",
    "sparse_encoder.sp_cnn.conv_blocks_context.",
    (
        ("sparse_encoder.sp_cnn.conv_blocks_context.{}.{}.conv3.", "encoder.stages.{}.{}.shortcut."),
        ("sparse_encoder.sp_cnn.conv_blocks_context.", "encoder.stages."),
        ("dense_decoder.dec.{}.up_sample.", "decoder.levels.{}.upsample."),
        ("dense_decoder.dec.{}.conv.0.", "decoder.levels.{}.conv1."),
        ("dense_decoder.dec.{}.conv.1.", "decoder.levels.{}.norm1."),
        ("dense_decoder.dec.{}.conv.3.", "decoder.levels.{}.conv2."),
        ("dense_decoder.dec.{}.conv.4.", "decoder.levels.{}.norm2."),
        ("dense_decoder.proj.", "decoder.head."),
        ("densify_norms.{}.", "densify.{}.norm."),
        ("densify_projs.{}.", "densify.{}.projection."),
        ("mask_tokens.{}", "densify.{}.token"),
    ),
    unread=r"(densify_norms|densify_projs|mask_tokens)\.4(\.|$)",  # full resolution
)
PUBLISHED_STUNET = Form(
    "STU-Net's weights",
    "conv_blocks_context.",
    (
        ("conv_blocks_context.{}.{}.conv3.", "encoder.stages.{}.{}.shortcut."),
        ("conv_blocks_context.", "encoder.stages."),
        ("upsample_layers.{}.conv.", "upsample.{}."),
        ("conv_blocks_localization.{}.{}.conv3.", "decoder.{}.{}.shortcut."),
        ("conv_blocks_localization.", "decoder."),
        ("seg_outputs.", "heads."),
    ),
)
OWN_NAMES = Form("state dict of anatomask.nn.backbones.stunet.STUNet", "encoder.stages.", (("", ""),))
FORMS = (AUTOENCODER, PUBLISHED_STUNET, OWN_NAMES)
PUBLISHED_STAGES = STUNetConfig().pretrained_stages(patch=16)
"""Number of encoder stages in the weights of a published pretraining."""


@dataclass(frozen=True)
class ForeignWeights:
    """What was read of somebody else's file."""

    form: Form
    kind: str
    """segmentation: a whole network; pretraining: an encoder of five stages, perhaps with its decoder."""
    network: STUNetConfig
    classes: int | None
    """Of a whole network, without the background."""
    tensors: dict[str, Tensor]
    """By our names: of an `STUNet`, or of a `MaskedAutoencoder`."""
    missing: tuple[str, ...]
    """Ours that the file does not give, as far as it describes the network; allowed by the user."""
    left_out: tuple[tuple[str, str], ...]
    """Names in the file that were not transferred, and why."""


def read_foreign_weights(path: str | Path, allow_missing: Sequence[str] = ()) -> ForeignWeights:
    """Read a file in any of the known forms; sizes are inferred from the tensors.

    Args:
        path: `.pt`, `.pth` or `.model`.
        allow_missing: names (the file's or ours), prefixes that end at a dot, or patterns that need not match.

    Raises:
        UserError: the file cannot be read safely, is of no known form, or holds tensors that do not fit, by name.
    """
    content = _load(Path(path))
    held = next((content[key] for key in STUNET_KEYS if isinstance(content.get(key), Mapping)), content)
    given = {str(name): value for name, value in held.items()}
    form = _form_of(given, path)
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
        elif not _is_plain(value):
            faults[name] = "no plain tensor"
        elif native is None:
            faults[name] = "unknown"
        elif native in tensors:
            faults[name] = f"{called[native]} once more"
        else:
            tensors[native], called[native] = value, name
            if value.is_floating_point() and not value.isfinite().all():
                faults[name] = "not finite"
    kind, network, classes, own = _match_network(form, tensors, path)
    for native, fault in find_faults(own, tensors).items():
        faults[called.get(native) or form.theirs(native) or native] = fault
    refused = {name: fault for name, fault in faults.items() if not _is_allowed(name, form, allow_missing)}
    if refused:
        raise UserError(
            f"{path} ({form.title}) does not fit an STU-Net: {describe_faults(refused)}. "
            "To go without them, name them in --allow-missing"
        )
    left_out |= {name: fault for name, fault in faults.items() if name in given}
    kept = {native: tensor.clone() for native, tensor in tensors.items() if called[native] not in faults}
    missing = tuple(sorted(own.keys() - kept.keys()))
    return ForeignWeights(form, kind, network, classes, kept, missing, tuple(sorted(left_out.items())))


def import_anatomask_checkpoint(path: str | Path, norm_scope: NormScope = "sample") -> MaskedAutoencoder:
    """A pretraining network from a checkpoint in the published AnatoMask (SparK-3D) format; sizes are inferred.

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
"""What a pickle calls to make a numpy number of its type and its bytes."""
_PLAIN_NUMBERS: list[Any] = [
    *((_MAKE_NUMBER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # in numpy 1, in numpy 2
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "?efd"},
]
"""What nnU-Net's checkpoints hold beside tensors (scores as numpy numbers): values that cannot run anything."""


def _load(path: Path) -> dict[str, Any]:
    """The dictionary in a PyTorch file, read without running anything that it contains."""
    try:
        with torch.serialization.safe_globals(_PLAIN_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
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
    """Whether `value` is an ordinary tensor, with all its numbers in memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _strip(name: str) -> str:
    """A tensor's name without what parallel and compiled modules put before it."""
    return re.sub(r"^((module|_orig_mod)\.)+", "", name)


def _rename(name: str, renames: Sequence[tuple[str, str]]) -> str | None:
    for old, new in renames:
        match = re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), name)
        if match:
            return new.format(*match.groups()) + name[match.end() :]
    return None


def _form_of(names: Mapping[str, Any], path: str | Path) -> Form:
    for form in FORMS:
        if any(_strip(name).startswith(form.encoder) for name in names):
            return form
    begins = ", ".join(f"{form.encoder}*" for form in FORMS)
    raise UserError(f"{path} holds no tensor named {begins}: not an STU-Net; give weights of one")


def _is_allowed(name: str, form: Form, allow_missing: Sequence[str]) -> bool:
    bare = _strip(name)
    return any(is_named(alias, allow_missing) for alias in (name, bare, form.ours(bare)) if alias is not None)


def _match_network(
    form: Form, tensors: Mapping[str, Tensor], path: str | Path
) -> tuple[str, STUNetConfig, int | None, Mapping[str, Tensor]]:
    """Kind, size, classes and empty state of the network that the tensors (by our names) are of."""
    pretrained = tuple(f"encoder.stages.{stage}." for stage in range(PUBLISHED_STAGES))
    if form is not AUTOENCODER and not all(name.startswith(pretrained) for name in tensors):
        network = _infer_network(tensors, len(STAGE_STRIDES), path)
        head = tensors.get(f"heads.{len(STAGE_STRIDES) - 2}.weight")
        classes = None if head is None or head.dim() == 0 else head.shape[0] - 1
        if classes is not None and classes < 1:
            raise UserError(f"{path}: heads of {classes + 1} output(s) have no class besides the background")
        with torch.device("meta"):
            return "segmentation", network, classes, STUNet(network, classes or 1).state_dict()
    network = _infer_network(tensors, PUBLISHED_STAGES, path)
    width = tensors.get(_DECODER_WIDTH)
    with torch.device("meta"):
        if form is AUTOENCODER and width is not None:
            return "pretraining", network, None, _autoencoder(network, width, path).state_dict()
        encoder = STUNetEncoder(network, PUBLISHED_STAGES).state_dict()
    return "pretraining", network, None, {f"encoder.{name}": tensor for name, tensor in encoder.items()}


def _autoencoder(
    network: STUNetConfig, upsample: Tensor, path: str | Path, norm_scope: NormScope = "sample"
) -> MaskedAutoencoder:
    """The network with the decoder whose first transposed convolution has the weight `upsample`."""
    try:
        return MaskedAutoencoder(network, "hierarchical", upsample.shape[0], norm_scope)
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: {error}") from error


def _infer_network(tensors: Mapping[str, Tensor], stages: int, path: str | Path) -> STUNetConfig:
    """Channels, widths and depth from the shapes of an encoder of `stages` stages. UserError if it is no STU-Net's."""
    blocks = {(int(m[1]), int(m[2])) for name in tensors if (m := re.match(r"encoder\.stages\.(\d+)\.(\d+)\.", name))}
    depths = {max((b for s, b in blocks if s == stage), default=-1) + 1 for stage in range(stages)}
    try:
        stems = [tensors[f"encoder.stages.{stage}.0.conv1.weight"] for stage in range(stages)]
        widths = [stem.shape[0] for stem in stems]
        channels = stems[0].shape[1]
        if len(depths) != 1:
            raise UserError(f"{path}: stages of different depth ({sorted(depths)}) are no STU-Net")
        regular = STUNetConfig(in_channels=channels, base=widths[0], depth=depths.pop())
        if list(regular.stage_widths[:stages]) == widths:
            return regular
        a, b, c, d, e, f = [*widths, widths[-1]][: len(STAGE_STRIDES)]
        return dataclasses.replace(regular, widths=(a, b, c, d, e, f))
    except KeyError as error:
        raise UserError(f"{path} lacks the tensor {error.args[0]}: not a complete STU-Net; get it again") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: {error}") from error
