"""Weights and their self-describing header: write, read, match, and import what others have published.

Ours are safetensors and JSON. A `.pt` from elsewhere is read with `weights_only=True` or not at all.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from anatomask.errors import UserError
from anatomask.files import flush, write_text
from anatomask.nn.masked_autoencoder import MaskedAutoencoder
from anatomask.nn.sparse import NormScope
from anatomask.nn.stunet import ENCODER_STRIDES, STUNet, STUNetConfig

TENSORS = "model.safetensors"
HEADER = "model.json"
_STEM = ("encoder.stages.0.0.conv1.weight", "encoder.stages.0.0.shortcut.weight")


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and what they are."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]


def write_weights(folder: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `model.json` into `folder`, each atomically.

    The header also travels inside the safetensors file, which is what `read_weights` believes: so there is no moment
    at which a kill leaves weights that are described by another header. `model.json` is its readable copy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(header, indent=1, sort_keys=True)
    write_tensors(folder / TENSORS, tensors, {"format": "pt", "header": text})
    write_text(folder / HEADER, text + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in one step, readable to whom the process's umask lets read.

    Raises:
        OSError: as any write does (safetensors has an exception of its own for a full disk).
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.touch()  # safetensors makes private files: keep what the umask gives
    mode = temporary.stat().st_mode
    try:
        save_file(plain, temporary, metadata=dict(metadata or {}))
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    temporary.chmod(mode)
    flush(temporary)
    temporary.replace(path)


def read_weights(folder: Path) -> Weights:
    """What `write_weights` wrote, on the CPU. UserError if it is missing, broken, or not ours."""
    header = read_header(folder)
    with safe_open(Path(folder) / TENSORS, framework="pt") as file:
        return Weights({name: file.get_tensor(name) for name in file.keys()}, header)  # noqa: SIM118 - not a mapping


def read_header(folder: Path) -> dict[str, Any]:
    """The header of weights without their tensors. UserError as `read_weights`."""
    path = Path(folder) / TENSORS
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the folder of a checkpoint ({TENSORS} and {HEADER})")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("header")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}): copy or train it again") from error
    if text is None:
        raise UserError(f"{path} has no header that says what it is: it was not written by anatomask")
    return dict(json.loads(text))


def find_weights(path: str | Path, which: str = "last") -> Path:
    """The folder of weights that `path` means: itself, or the `last` or `best` checkpoint of the run at `path`.

    Raises:
        UserError: there is nothing of the kind.
    """
    folder = Path(path).absolute()  # it is opened by workers, which run elsewhere
    if (folder / TENSORS).is_file():
        return folder
    index = folder / "checkpoints" / "index.json"
    if not index.is_file():
        raise UserError(f"{folder} is neither a run with checkpoints nor a folder with {TENSORS}: check the path")
    try:
        names = json.loads(index.read_text())
    except ValueError as error:
        raise UserError(f"{index} is damaged ({error}); begin the run anew with --overwrite") from error
    if which == "best" and "best" not in names:
        which = "last"  # no validation case had a score to choose by
    if which not in names:
        raise UserError(
            f"{folder} has no {which} checkpoint, only {', '.join(n for n in names if n in ('last', 'best'))}"
        )
    return folder / "checkpoints" / str(names[which])


def describe_architecture(network: STUNetConfig, classes: int | None = None) -> dict[str, Any]:
    """The header's `architecture`; `classes` (without the background) for a segmentation network."""
    described = {"name": "stunet", **dataclasses.asdict(network)}
    return described if classes is None else {**described, "classes": classes}


def network_of(header: Mapping[str, Any]) -> STUNetConfig:
    """The network that a header describes. UserError if it describes none that is known here."""
    described = dict(header.get("architecture") or {})
    name = described.pop("name", None)
    if name != "stunet":
        raise UserError(f"architecture {name!r} is unknown here: only stunet can be read")
    described.pop("classes", None)
    if described.get("widths") is not None:
        described["widths"] = tuple(described["widths"])
    try:
        return STUNetConfig(**described)
    except (TypeError, ValueError) as error:
        raise UserError(f"the header's architecture cannot be read: {error}") from error


def load_matching(module: nn.Module, tensors: Mapping[str, Tensor], allow_missing: Sequence[str] = ()) -> list[str]:
    """Copy `tensors` into `module` by name, all of them or none.

    Args:
        module: its parameters and buffers are overwritten in place.
        tensors: by the module's own names.
        allow_missing: names, prefixes that end at a dot, or patterns (`heads.*`) that need not match.

    Returns:
        What was not transferred although allowed, sorted.

    Raises:
        UserError: naming the tensors that are missing, unknown or of another shape.
    """
    own = module.state_dict()
    faults = {name: "missing" for name in own if name not in tensors}
    faults |= {name: "unknown" for name in tensors if name not in own}
    for name in own.keys() & tensors.keys():
        if own[name].shape != tensors[name].shape:
            faults[name] = f"of shape {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
    refused = {name: fault for name, fault in sorted(faults.items()) if not _matches(name, allow_missing)}
    if refused:
        some = "; ".join(f"{name} is {fault}" for name, fault in list(refused.items())[:4])
        more = f" and {len(refused) - 4} more" if len(refused) > 4 else ""
        raise UserError(f"the weights do not fit the network: {some}{more}. Are they of another architecture?")
    with torch.no_grad():
        for name in own.keys() & tensors.keys() - faults.keys():
            own[name].copy_(tensors[name])
    return sorted(faults)


def encoder_tensors(weights: Weights, in_channels: int) -> dict[str, Tensor]:
    """The student's encoder, stages 1 to 5, of a pretraining checkpoint, under a segmentation network's names."""
    prefix = "student.encoder."
    encoder = {
        name.removeprefix("student."): tensor for name, tensor in weights.tensors.items() if name.startswith(prefix)
    }
    if not encoder:
        raise UserError(f"the weights hold no tensor named {prefix}*: they are not of a pretraining run")
    return repeat_stem(encoder, in_channels)


def repeat_stem(tensors: Mapping[str, Tensor], in_channels: int) -> dict[str, Tensor]:
    """Adapt the stem to more input channels: conv1's and the shortcut's weights are repeated, unscaled."""
    adapted = dict(tensors)
    for name in _STEM:
        if name not in tensors:
            raise UserError(f"the weights lack {name}")
        repeats, rest = divmod(in_channels, tensors[name].shape[1])
        if rest or not repeats:
            raise UserError(
                f"{name} reads {tensors[name].shape[1]} channels, which cannot be repeated to {in_channels}: "
                "set network.in_channels to a multiple"
            )
        adapted[name] = tensors[name].repeat(1, repeats, 1, 1, 1)
    return adapted


def require_same_size(header: Mapping[str, Any], mine: STUNetConfig) -> None:
    """Raise UserError unless the weights that `header` describes are of an STU-Net of the size of `mine`."""
    theirs = network_of(header)
    if (theirs.stage_widths, theirs.depth) != (mine.stage_widths, mine.depth):
        raise UserError(
            f"the weights are of an STU-Net with widths {theirs.stage_widths} and depth {theirs.depth}, the network "
            f"has widths {mine.stage_widths} and depth {mine.depth}: set network.base and network.depth alike"
        )


def initialise(network: STUNet, weights: Weights) -> list[str]:
    """Start a segmentation network from a pretrained encoder, or from another one's weights but the output heads.

    Returns what was not transferred. UserError if the architectures differ or the kind of weights is unknown.
    """
    mine = network.config
    require_same_size(weights.header, mine)
    kind = weights.header.get("kind")
    if kind == "pretraining":
        fresh = (f"encoder.stages.{len(ENCODER_STRIDES)}", "upsample", "decoder", "heads")
        return load_matching(network, encoder_tensors(weights, mine.in_channels), fresh)
    if kind == "segmentation":
        trunk = {name: tensor for name, tensor in weights.tensors.items() if not name.startswith("heads.")}
        return load_matching(network, repeat_stem(trunk, mine.in_channels), ("heads",))
    raise UserError(f"weights of kind {kind!r} cannot start a segmentation network")


def import_anatomask_checkpoint(path: str | Path, norm_scope: NormScope = "sample") -> MaskedAutoencoder:
    """A pretraining network from a checkpoint in the published AnatoMask (SparK-3D) format; sizes are inferred.

    Args:
        path: the `.pt` file; `network_weights` inside, with or without the prefix `module.`.
        norm_scope: whether InstanceNorm's statistics are per sample, or over the batch as in that code.

    Raises:
        UserError: the file cannot be read safely, or holds a tensor that is not known, by name.
    """
    published = _read_pt(Path(path), "network_weights")
    tensors = {native: tensor for name, tensor in published.items() if (native := _native_name(name, path)) is not None}
    try:
        network = _infer_network(tensors)
        width = tensors["decoder.levels.0.upsample.weight"].shape[0]
        model = MaskedAutoencoder(network, "hierarchical", width, norm_scope)
    except KeyError as error:
        raise UserError(f"{path} lacks the tensor {error.args[0]}: not a complete AnatoMask checkpoint") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    load_matching(model, tensors)
    return model


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(name == p or name.startswith(f"{p}.") or fnmatch.fnmatchcase(name, p) for p in patterns)


def _read_pt(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors under `key` of a `.pt` file, read without running anything that it contains."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it holds more than plain tensors, or is no PyTorch file") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a PyTorch file (truncated?): {error}") from error
    tensors = content.get(key) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} has no tensors under {key!r}: not a checkpoint of the published code")
    return tensors


_RENAMES: tuple[tuple[str, str], ...] = (
    (r"sparse_encoder\.sp_cnn\.conv_blocks_context\.(\d+)\.(\d+)\.conv3\.", r"encoder.stages.\1.\2.shortcut."),
    (r"sparse_encoder\.sp_cnn\.conv_blocks_context\.(\d+)\.(\d+)\.", r"encoder.stages.\1.\2."),
    (r"dense_decoder\.dec\.(\d+)\.up_sample\.", r"decoder.levels.\1.upsample."),
    (r"dense_decoder\.dec\.(\d+)\.conv\.0\.", r"decoder.levels.\1.conv1."),
    (r"dense_decoder\.dec\.(\d+)\.conv\.1\.", r"decoder.levels.\1.norm1."),
    (r"dense_decoder\.dec\.(\d+)\.conv\.3\.", r"decoder.levels.\1.conv2."),
    (r"dense_decoder\.dec\.(\d+)\.conv\.4\.", r"decoder.levels.\1.norm2."),
    (r"dense_decoder\.proj\.", r"decoder.head."),
    (r"densify_norms\.(\d+)\.", r"densify.\1.norm."),
    (r"densify_projs\.(\d+)\.", r"densify.\1.projection."),
    (r"mask_tokens\.(\d+)$", r"densify.\1.token"),
)
"""Names of the published code to ours."""

_UNREAD = re.compile(r"(densify_norms|densify_projs|mask_tokens)\.4(\.|$)")
"""The projection at full resolution, which that code computes and nothing reads."""


def _native_name(published: str, path: str | Path) -> str | None:
    """Our name for a tensor of the published code; None for those that nothing reads."""
    name = published.removeprefix("module.")
    if _UNREAD.match(name):
        return None
    for pattern, replacement in _RENAMES:
        renamed, found = re.subn(rf"^{pattern}", replacement, name)
        if found:
            return renamed
    raise UserError(f"{path} holds {published}, which is no tensor of the published AnatoMask network")


def _infer_network(tensors: Mapping[str, Tensor]) -> STUNetConfig:
    """Channels, widths and depth from the encoder's shapes. KeyError or ValueError if they are not an STU-Net's."""
    blocks = {(int(m[1]), int(m[2])) for name in tensors if (m := re.match(r"encoder\.stages\.(\d+)\.(\d+)\.", name))}
    depths = {max((b for s, b in blocks if s == stage), default=-1) + 1 for stage in range(len(ENCODER_STRIDES))}
    stems = [tensors[f"encoder.stages.{stage}.0.conv1.weight"] for stage in range(len(ENCODER_STRIDES))]
    if len(depths) != 1:
        raise ValueError(f"stages of different depth ({sorted(depths)}) are no STU-Net")
    widths = [stem.shape[0] for stem in stems]
    regular = STUNetConfig(in_channels=stems[0].shape[1], base=widths[0], depth=depths.pop())
    if list(regular.stage_widths[: len(widths)]) == widths:
        return regular
    a, b, c, d, e = widths
    return dataclasses.replace(regular, widths=(a, b, c, d, e, e))
