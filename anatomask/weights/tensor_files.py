"""Safetensors files that describe themselves: a header and a checksum inside; equal content gives equal bytes."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from xxhash import xxh3_64

from anatomask.errors import Note, UserError
from anatomask.files import replacing
from anatomask.parsing import from_json

KEY = "anatomask"
"""Only entry of a file's metadata: safetensors writes several in an order that changes from process to process."""
OLDER_KEY = "header"
"""Entry that an older version wrote, which knew no checksums."""
HEADER_FORMAT = 1
"""Number of the format of headers, raised when a reader of an older version would misread them."""
COPY_OR_TRAIN = "copy or train it again"


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and the header that describes them."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]


def write_described(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write one safetensors file atomically, with the permissions that the process's umask gives.

    The bytes depend on the names, types, shapes and values of the tensors and on the header alone: neither on their
    order nor on memory formats.

    Raises:
        OSError: the file cannot be written (safetensors has an exception of its own for a full disk).
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = header_text(header)
    with replacing(path) as temporary:
        temporary.touch()  # safetensors makes private files: keep what the umask gives
        mode = temporary.stat().st_mode
        try:
            save_file(plain, temporary, metadata={KEY: json.dumps({"digest": _digest(plain, text), "header": text})})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        temporary.chmod(mode)


def read_described(
    path: Path, remedy: str = COPY_OR_TRAIN, parse: Callable[[str], dict[str, Any]] | None = None
) -> Weights:
    """Read what `write_described` wrote, onto the CPU, and compare it with its checksum.

    `parse` reads the header and raises ValueError where it is invalid. Default: the parser of weights' headers.

    A `Note` warns where an older version wrote the file, without a checksum.

    Raises:
        UserError: the file is missing, damaged or not ours; the message ends with `remedy` where it is damaged.
        OSError: the file may not be read.
    """
    text, digest = _description(path, remedy)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}); {remedy}") from error
    header = _parsed(path, text, parse)
    if digest is None:
        warnings.warn(
            Note(f"{path} was written by an older version and has no checksum, so damage to it goes unnoticed"),
            stacklevel=2,
        )
    elif digest != _digest(tensors, text):
        raise UserError(f"{path} is damaged (its content does not match its checksum); {remedy}")
    return Weights(tensors, header)


def read_description(path: Path) -> dict[str, Any]:
    """Read the header alone, which the checksum covers only together with the tensors.

    Raises:
        UserError: as `read_described`.
    """
    return _parsed(path, _description(path, COPY_OR_TRAIN)[0], None)


def header_text(header: Mapping[str, Any]) -> str:
    """Format the header as JSON with sorted keys."""
    return json.dumps(header, indent=1, sort_keys=True)


def _description(path: Path, remedy: str) -> tuple[str, str | None]:
    """Read the header's text (empty if there is none) and the checksum (None in a file of an older version)."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the folder of a checkpoint (model.safetensors and model.json)")
    path.open("rb").close()  # safe_open would say that a file which may not be read is missing
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}); {remedy}") from error
    if KEY not in metadata:
        return metadata.get(OLDER_KEY, ""), None
    try:
        described = from_json(metadata[KEY])
        return str(described["header"]), str(described["digest"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged (its metadata cannot be read); {remedy}") from error


def _parsed(path: Path, text: str, parse: Callable[[str], dict[str, Any]] | None) -> dict[str, Any]:
    if not text:
        raise UserError(f"{path} has no header that says what it is: it was not written by anatomask")
    if parse is None:
        from anatomask.weights.header import parse_header  # with pydantic, which not every GPU machine has

        parse = parse_header
    try:
        header = parse(text)
    except ValueError as error:
        raise UserError(f"the header of {path} is damaged ({error}): give weights that anatomask wrote") from error
    if header.get("format", HEADER_FORMAT) > HEADER_FORMAT:
        raise UserError(
            f"{path} was written by a newer version of anatomask (format {header['format']}, this one reads up to "
            f"{HEADER_FORMAT}): update anatomask"
        )
    return header


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Compute the checksum (XXH3, 64 bits) of contiguous tensors on the CPU and of their header."""
    digest = xxh3_64(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
