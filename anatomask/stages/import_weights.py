"""Import of published weights: `anatomask import-weights FILE --output FOLDER`. It needs no Ray."""

from __future__ import annotations

import dataclasses
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import Tensor

from anatomask.config import ImportWeightsConfig
from anatomask.errors import UserError
from anatomask.files import file_digest
from anatomask.methods.mae import MAEConfig
from anatomask.nn.backbones import UNNAMED
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.unetr import POSITIONS, UNETRConfig
from anatomask.runs.checkpoint_index import CHECKPOINTS
from anatomask.weights.files import (
    HEADER,
    TENSORS,
    describe_architecture,
    encoder_prefix,
    network_of,
    size_in_words,
    write_weights,
)
from anatomask.weights.foreign import ForeignWeights, read_foreign_weights
from anatomask.weights.tensor_files import HEADER_FORMAT, Weights, read_described


def plan(config: ImportWeightsConfig) -> list[tuple[str, str]]:
    """Read and check the file; return the rows of the dry run."""
    return [*describe(read_file(config)), ("folder", config.output)]


def stage(config: ImportWeightsConfig, *, overwrite: bool) -> int:
    """Write the folder, and print what was transferred and what was not."""
    folder = Path(config.output)
    check_folder(folder, overwrite)
    weights = read_file(config)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for title, text in describe(weights):
        console.print(f"{title}: {text}")
    write_weights(folder, weights.tensors, weights.header)
    console.print(f"Finetune from it: anatomask finetune --init {folder} {_flags(weights)}")
    return 0


def read_file(config: ImportWeightsConfig) -> Weights:
    """Read the weights in the file, in our form.

    Raises:
        UserError: as `read_foreign_weights` and `with_crop`.
    """
    path = Path(config.file)
    weights = read_described(path) if path.suffix == ".safetensors" else _read_foreign(path, config)
    return weights if config.patch_size is None else with_crop(weights, config.patch_size)


def with_crop(weights: Weights, patch_size: tuple[int, int, int]) -> Weights:
    """Interpolate the positions of a UNETR for another crop.

    Raises:
        UserError: the weights are of another network, or it cannot have this crop.
    """
    network = network_of(weights.header)
    if not isinstance(network, UNETRConfig):
        raise UserError(f"--patch-size is for unetr, the weights are of the network {network.name}: leave it out")
    name = encoder_prefix(weights.header).removesuffix("encoder.") + POSITIONS
    table = weights.tensors.get(name)
    if table is None or table.shape != (1, 1 + prod(network.grid), network.width):
        raise UserError(f"--patch-size: the weights hold no positions {name} of their network: leave it out")
    try:
        table = network.resized(table, patch_size)
        architecture = describe_architecture(dataclasses.replace(network, patch_size=patch_size))
    except ValueError as error:
        raise UserError(f"--patch-size: {error}") from error
    header = {**weights.header, "architecture": {**weights.header["architecture"], **architecture}}
    if "patch_size" in header:
        header["patch_size"] = list(patch_size)
    return Weights({**weights.tensors, name: table}, header)


def _read_foreign(path: Path, config: ImportWeightsConfig) -> Weights:
    """Read another program's file, and describe it in a header."""
    given = {field: getattr(config, field) for field in ("patch_merging", "attention_heads", "decoder_heads")}
    unseen = {field: value for field, value in given.items() if value is not None}
    foreign = read_foreign_weights(path, config.allow_missing, unseen, config.axes or "usual")
    header: dict[str, Any] = {
        "format": HEADER_FORMAT,
        "kind": foreign.kind,
        "architecture": describe_architecture(foreign.network, foreign.classes),
        "dataset": config.dataset,
        "imported": {
            "form": foreign.form.title,
            "file": path.name,
            "sha256": file_digest(path),
            "axes": foreign.axes,
            "strides": "those of the plans in the file" if foreign.planned else "the published ones: the file has none",
            "assumed": [" ".join([field, *_values(foreign.network, field)]) for field in foreign.assumed],
        },
        "missing": list(foreign.missing),
        "not_transferred": [f"{name} ({why})" for name, why in foreign.left_out],
    }
    if foreign.kind == "pretraining":
        reconstructs = foreign.whole and not foreign.form.whole  # nnssl's
        header["method"] = {"name": config.method or ("MAE" if reconstructs else foreign.form.method)}
        header["stages"] = foreign.stages
    if foreign.whole:
        header |= {"encoder": MAEConfig.encoder, "whole": MAEConfig.whole}
    return Weights(_called(foreign), header)


def check_folder(folder: Path, overwrite: bool) -> None:
    """Check that weights may be written into a folder.

    Raises:
        UserError: they would hide a run's checkpoints, or replace other weights without `overwrite`, or a file of
            others.
    """
    if (folder / CHECKPOINTS).exists() or (folder / "config.yaml").exists():
        raise UserError(f"--output {folder} is a run's folder: choose another")
    if (folder / TENSORS).exists() and not overwrite:
        raise UserError(f"--output {folder} holds weights already: choose another folder, or --overwrite")
    if (folder / HEADER).exists() and not (folder / TENSORS).exists():
        raise UserError(f"--output {folder} holds a {HEADER} and no weights: choose another folder")


def describe(weights: Weights) -> list[tuple[str, str]]:
    """Return titles and texts of what was read, a row for each tensor that was not transferred."""
    header = weights.header
    network, kind = network_of(header), str(header.get("kind"))
    what = {"pretraining": "pretrained encoder", "segmentation": "segmentation network"}.get(kind)
    if header.get("whole"):
        what = "pretrained encoder and decoder"
    if what is None:
        raise UserError(f"weights of kind {kind!r} cannot start a finetuning")
    origin = header.get("imported", {}).get("strides", "those of its header")
    return [
        ("read", header.get("imported", {}).get("form", "weights of anatomask")),
        (what, f"{len(weights.tensors)} tensors; {size_in_words(network)}"),
        ("strides", f"{network.strides_in_words()} ({origin})"),
        *(
            ("assumed, for no tensor shows it", f"{text} (--{text.partition(' ')[0].replace('_', '-')} sets another)")
            for text in header.get("imported", {}).get("assumed", ())
        ),
        *([("axes", "turned from z, y, x to x, y, z")] if header.get("imported", {}).get("axes") == "zyx" else []),
        *(("not transferred", name) for name in header.get("not_transferred", ())),
        *(("missing, drawn afresh in finetuning", name) for name in header.get("missing", ())),
    ]


def _called(foreign: ForeignWeights) -> dict[str, Tensor]:
    prefix = MAEConfig.whole if foreign.whole else "student." if foreign.kind == "pretraining" else ""
    return {prefix + name: tensor for name, tensor in foreign.tensors.items()}


def _flags(weights: Weights) -> str:
    network = network_of(weights.header)
    flags = [] if network.name == UNNAMED else ["--network", network.name]
    for field in dataclasses.fields(network):
        if field.name != "in_channels" and getattr(network, field.name) is not None:
            flags += [f"--network.{field.name.replace('_', '-')}", *_values(network, field.name)]
    return " ".join(flags)


def _values(network: BackboneConfig, field: str) -> list[str]:
    """Write the values of a field of a network as a command line has them."""
    return [str(value) for value in np.ravel(getattr(network, field)).tolist()]  # pooling is nested
