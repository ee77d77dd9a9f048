"""Weights and their self-describing header: write them, read them, and start a network from them.

Our files are safetensors and JSON; `anatomask.weights.foreign` reads those of others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anatomask.data.addresses import folder_path, is_address
from anatomask.errors import UserError
from anatomask.files import file_digest, write_text
from anatomask.nn.backbones import UNNAMED, backbone_config, backbone_names, without_later_fields
from anatomask.nn.backbones.base import BackboneConfig, Segmenter
from anatomask.runs.checkpoint_index import CHECKPOINTS, read_index
from anatomask.weights.matching import is_named
from anatomask.weights.matching import load_matching as load_matching
from anatomask.weights.tensor_files import (
    COPY_OR_TRAIN,
    Weights,
    header_text,
    read_described,
    read_description,
    write_described,
)

TENSORS = "model.safetensors"
HEADER = "model.json"


Transfer = Literal["whole", "encoder", "permuted"]
"""Part of the weights that a network takes over: all that fits, the encoder, or the encoder with shuffled entries."""


def write_weights(folder: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `model.json` into `folder`, each atomically.

    `read_weights` reads the header inside the safetensors file, so a kill can at no moment leave weights that are
    described by another header. `model.json` is its readable copy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_described(folder / TENSORS, tensors, header)
    write_text(folder / HEADER, header_text(header) + "\n")


def remove_weights(folder: Path) -> None:
    """Remove what `write_weights` wrote."""
    for name in (TENSORS, HEADER):
        (folder / name).unlink(missing_ok=True)


def read_weights(folder: Path, remedy: str = COPY_OR_TRAIN) -> Weights:
    """Read what `write_weights` wrote, onto the CPU.

    Raises:
        UserError: as `read_described`, which may also warn.
    """
    return read_described(Path(folder) / TENSORS, remedy)


def read_header(folder: Path) -> dict[str, Any]:
    """Read the header of weights without their tensors.

    Raises:
        UserError: as `read_weights`.
    """
    return read_description(Path(folder) / TENSORS)


def weights_digest(folder: Path) -> str:
    """Compute the digest of the weights in a folder, header included."""
    return file_digest(folder / TENSORS)


def read_source(source: str | Path, which: str = "last") -> Weights:
    """Read the weights that `source` means: a safetensors file of ours, a folder of weights, or a run.

    Raises:
        UserError: as `find_weights` and `read_weights`.
    """
    path = _on_this_machine(source)
    if path.is_file() and path.suffix == ".safetensors":
        return read_described(path)
    return read_weights(find_weights(path, which))


def find_weights(path: str | Path, which: str = "last") -> Path:
    """Find the folder of weights that `path` means: itself, or a run's `last` or `best` checkpoint.

    What an address names is fetched first.

    Raises:
        UserError: there are no such weights, the run's index is damaged, or storage cannot be read.
    """
    folder = _on_this_machine(path)  # absolute: it is opened by workers, which run elsewhere
    if (folder / TENSORS).is_file():
        return folder
    if folder.is_file():
        raise UserError(
            f"{folder} is a file, not a run: weights from elsewhere become ours by "
            f"`anatomask import-weights {folder} --output FOLDER`; then give that folder"
        )
    names = read_index(folder / CHECKPOINTS)
    if not names:
        raise UserError(f"{folder} is neither a run with checkpoints nor a folder with {TENSORS}: check the path")
    if which == "best" and "best" not in names:
        which = "last"  # no validation case had a score to choose by
    if which not in names:
        raise UserError(
            f"{folder} has no {which} checkpoint, only {', '.join(n for n in names if n in ('last', 'best'))}"
        )
    return folder / CHECKPOINTS / str(names[which])


def _on_this_machine(path: str | Path) -> Path:
    """Return the absolute path of a folder or file, or of the folder into which what an address names is fetched."""
    if not is_address(str(path)):
        return Path(path).absolute()
    from anatomask.runs.remote import local_folder  # which imports what reads storage

    return local_folder(path)


def run_name(path: str | Path) -> str:
    """Return the name of a run from the path or the address of its folder or of one of its checkpoints."""
    parts = folder_path(str(path)).absolute().parts
    return parts[parts.index(CHECKPOINTS) - 1] if CHECKPOINTS in parts else parts[-1]


def describe_architecture(network: BackboneConfig, classes: int | None = None) -> dict[str, Any]:
    """Return the header's `architecture`; `classes` (without the background) for a segmentation network."""
    described = {"name": network.name, **without_later_fields(dataclasses.asdict(network))}
    return described if classes is None else {**described, "classes": classes}


def network_of(header: Mapping[str, Any]) -> BackboneConfig:
    """Read the size of the network that a header describes.

    Raises:
        UserError: the header describes no network that is known here.
    """
    described = dict(header.get("architecture") or {})
    if not described:
        raise UserError("the header describes no architecture: give weights that anatomask wrote")
    name = described.pop("name", UNNAMED)
    if name not in backbone_names():
        raise UserError(
            f"architecture {name!r} is unknown here: there are {', '.join(backbone_names())}, and --plugin FILE.py "
            "adds more"
        )
    described.pop("classes", None)
    try:
        return backbone_config(name)(**{field: _tuples(value) for field, value in described.items()})
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the header's architecture cannot be read ({error}): give weights that anatomask wrote"
        ) from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def trained_stages(header: Mapping[str, Any]) -> int:
    """Count the encoder stages that weights hold: those that pretraining trained, or all of a network."""
    network = network_of(header)
    if header.get("kind") == "segmentation":
        return len(network.strides)
    before_stages = (header.get("method") or {}).get("patch", 16)  # headers of older versions do not say the stages
    return int(header.get("stages") or network.pretrained_stages(int(before_stages)))


def encoder_prefix(header: Mapping[str, Any]) -> str:
    """Return the prefix of the encoder's tensors; headers of older versions do not hold it."""
    return "encoder." if header.get("kind") == "segmentation" else str(header.get("encoder", "student.encoder."))


def method_label(header: Mapping[str, Any]) -> str:
    """Return what tables call the pretraining of these weights; older headers have the name alone."""
    method = header["method"]
    return str(method.get("label", method["name"]))


def beyond_encoder(header: Mapping[str, Any]) -> tuple[str, ...]:
    """List the prefixes of a segmentation network's names that the encoder of weights lacks."""
    return network_of(header).fresh(trained_stages(header))


def encoder_tensors(weights: Weights, network: BackboneConfig) -> dict[str, Tensor]:
    """Take the encoder out of weights, under the names of a segmentation network, as `network` takes it over.

    The encoder of a pretraining checkpoint may lack the last stages.

    Raises:
        UserError: the weights hold no encoder, or its stem cannot be repeated to the network's channels.
    """
    prefix = encoder_prefix(weights.header)
    encoder = {
        f"encoder.{name.removeprefix(prefix)}": tensor
        for name, tensor in weights.tensors.items()
        if name.startswith(prefix)
    }
    if not encoder:
        raise UserError(f"the weights hold no tensor named {prefix}*: they are not of a pretraining run")
    stem = [name for name in network.stem if name.startswith("encoder.")]
    return repeat_stem(network.fitted(encoder), network, network.in_channels, stem)


def permuted(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Shuffle the entries of each tensor, for a control: only the sizes and the distribution of the weights remain.

    Whole numbers stay as they are, for they are indices (of relative positions).
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view_as(tensor)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in sorted(tensors.items())
    }


def split_init(init: str) -> tuple[Transfer, str]:
    """Split `encoder:RUN`, `permuted:RUN` or RUN (whole) into what is taken of the weights and where they are."""
    for part in ("encoder", "permuted"):
        if init.startswith(f"{part}:"):
            return part, init.removeprefix(f"{part}:")
    return "whole", init


def repeat_stem(
    tensors: Mapping[str, Tensor], network: BackboneConfig, in_channels: int, stem: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Repeat the weights that read the image, unscaled, until `network` has `in_channels` channels.

    `stem` are their names. Default: the network's.

    Raises:
        UserError: a weight of the stem is missing or no convolution's, or `in_channels` is not a multiple of its
            channels.
    """
    adapted = dict(tensors)
    for name in network.stem if stem is None else stem:
        if name not in tensors:
            raise UserError(f"the weights lack {name}")
        if tensors[name].ndim != 5 or not tensors[name].numel():
            raise UserError(f"{name} has shape {tuple(tensors[name].shape)}, and is no convolution's weight")
        repeats, rest = divmod(in_channels, tensors[name].shape[1])
        if rest or not repeats:
            raise UserError(
                f"{name} reads {tensors[name].shape[1]} channels, which cannot be repeated to {in_channels}: "
                "set network.in_channels to a multiple"
            )
        adapted[name] = tensors[name].repeat(1, repeats, 1, 1, 1)
    return adapted


def size_in_words(network: BackboneConfig) -> str:
    """Format what two networks must share for weights to fit, as in `widths (8, 16), depth 1`."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in network.size().items())


def require_same_size(header: Mapping[str, Any], mine: BackboneConfig) -> None:
    """Check that the weights that `header` describes are of the backbone and size of `mine`.

    Raises:
        UserError: they are of another backbone or size; the message names the fields.
    """
    theirs = network_of(header)
    if theirs.name != mine.name:
        raise UserError(
            f"the weights are of the network {theirs.name}, not of {mine.name}: set --network {theirs.name}"
        )
    if theirs.size() != mine.size():
        fields = " and ".join(f"network.{one.name}" for one in dataclasses.fields(mine) if one.name != "in_channels")
        raise UserError(
            f"the weights are of the network {theirs.name} with {size_in_words(theirs)}, the network has "
            f"{size_in_words(mine)}: set {fields} alike{'; or ' * bool(mine.elsewhere)}{mine.elsewhere}"
        )


def initialise(network: Segmenter, weights: Weights, transfer: Transfer = "whole", seed: int = 0) -> list[str]:
    """Start a segmentation network from pretrained weights, or from another network's, except its heads.

    Of a pretraining, that is the encoder, and the decoder where the header's `whole` says that it was trained, too.

    Tensors that the header lists as `missing` were so when the weights were imported, which the user allowed.

    Args:
        network: its parameters are overwritten in place.
        weights: those of a pretraining run, or of a segmentation network.
        transfer: what is taken over. whole: all that fits; encoder: of a whole network the encoder alone;
            permuted: the encoder with the entries of each tensor shuffled.
        seed: seed of the shuffling.

    Returns:
        The names of the tensors that were not transferred.

    Raises:
        UserError: the architectures differ, or the kind of weights is unknown.
    """
    mine = network.config
    require_same_size(weights.header, mine)
    kind = weights.header.get("kind")
    missing = tuple(weights.header.get("missing", ()))
    if kind not in ("pretraining", "segmentation"):
        raise UserError(f"weights of kind {kind!r} cannot start a segmentation network")
    prefix = str(weights.header.get("whole", ""))
    if transfer == "whole" and (kind == "segmentation" or prefix):
        ours = {
            name.removeprefix(prefix): tensor for name, tensor in weights.tensors.items() if name.startswith(prefix)
        }
        trunk = {name: tensor for name, tensor in ours.items() if not is_named(name, mine.heads)}
        fresh = mine.untrained if prefix else ()
        return load_matching(
            network, repeat_stem(mine.fitted(trunk), mine, mine.in_channels), (*mine.heads, *fresh, *missing)
        )
    encoder = encoder_tensors(weights, mine)
    encoder = permuted(encoder, seed) if transfer == "permuted" else encoder
    return load_matching(network, encoder, (*beyond_encoder(weights.header), *missing))
