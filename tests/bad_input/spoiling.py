"""Ways to spoil good input: each returns what a kind's `spoil` calls with the folder."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

import nibabel as nib
import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from anatomask.weights.tensor_files import OLDER_KEY, read_described, write_described
from tests.bad_input.kinds import Spoil

DEEP = "[" * 5000 + "]" * 5000
"""Text of 5,000 lists within each other, in JSON and YAML."""

RESULTS = [f"runs/finetuned/{name}" for name in ("evaluation.json", "predictions", "cases.csv", "summary.json")]
"""Paths of what an evaluation wrote."""

Change = Callable[[Any], Any]
"""Change what a JSON file holds: in place, or by returning another value."""


def every(*spoils: Spoil) -> Spoil:
    """Do one after another."""
    return lambda folder: [spoil(folder) for spoil in spoils]


def text(path: str, content: str | bytes) -> Spoil:
    """Write a file, with the folders that it needs."""

    def spoil(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def of_json(path: str, change: Change) -> Spoil:
    """Change a JSON file."""

    def spoil(folder: Path) -> None:
        value = json.loads((folder / path).read_text())
        changed = change(value)
        (folder / path).write_text(json.dumps(value if changed is None else changed))

    return spoil


def of_lines(path: str, change: Callable[[list[str]], list[str]]) -> Spoil:
    """Change the lines of a file."""

    def spoil(folder: Path) -> None:
        lines = (folder / path).read_text().splitlines()
        (folder / path).write_text("\n".join([*change(lines), ""]))

    return spoil


def remove(path: str) -> Spoil:
    """Remove a file or a folder."""

    def spoil(folder: Path) -> None:
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()

    return spoil


def cut(path: str, size: int = 200) -> Spoil:
    """Keep the first bytes of a file."""
    return of_bytes(path, lambda content: content[:size])


def flip(path: str, share: float = 0.5) -> Spoil:
    """Change one byte, at this share of the file."""

    def change(content: bytes) -> bytes:
        at = int(share * len(content))
        return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]

    return of_bytes(path, change)


def of_bytes(path: str, change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes of a file."""

    def spoil(folder: Path) -> None:
        (folder / path).write_bytes(change((folder / path).read_bytes()))

    return spoil


def move(old: str, new: str) -> Spoil:
    """Move a file or a folder."""
    return lambda folder: (folder / old).rename(folder / new)


def duplicate(old: str, new: str) -> Spoil:
    """Copy a file or a folder."""

    def spoil(folder: Path) -> None:
        (shutil.copytree if (folder / old).is_dir() else shutil.copy)(folder / old, folder / new)

    return spoil


def pipe(path: str) -> Spoil:
    """Put a named pipe there: whoever opens it would wait for ever, and is let go with nothing after a while."""

    def release(pipe: Path) -> None:
        with suppress(OSError):  # nobody waits, or the folder is gone
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))

    def spoil(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        os.mkfifo(folder / path)
        for seconds in (3, 6, 9):
            timer = Timer(seconds, release, [folder / path])
            timer.daemon = True
            timer.start()

    return spoil


def link(path: str, target: str) -> Spoil:
    """Put a symbolic link there."""

    def spoil(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        (folder / path).symlink_to(target)

    return spoil


def directory(path: str) -> Spoil:
    """Put an empty folder there."""

    def spoil(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        (folder / path).mkdir(parents=True)

    return spoil


def unchanged(value: Any) -> Any:
    """Return it."""
    return value


def volume(
    path: str,
    change: Callable[[np.ndarray], np.ndarray] = unchanged,
    affine: Callable[[np.ndarray], np.ndarray] = unchanged,
) -> Spoil:
    """Change the voxels and the affine (4, 4) of a NIfTI file."""

    def spoil(folder: Path) -> None:
        image = nib.Nifti1Image.from_filename(folder / path)
        voxels, placed = change(np.asanyarray(image.dataobj)), affine(image.affine.copy())
        nib.save(nib.Nifti1Image(voxels, placed), folder / path)

    return spoil


def header(path: str, **fields: Any) -> Spoil:
    """Overwrite fields of a NIfTI header, whatever they may be."""

    def spoil(folder: Path) -> None:
        image = nib.Nifti1Image.from_filename(folder / path)
        content = bytearray(image.to_bytes())
        described: np.ndarray = np.frombuffer(content, image.header.template_dtype, count=1)
        for name, value in fields.items():
            described[name] = value
        (folder / path).write_bytes(gzip.compress(content))

    return spoil


def weights(path: str, change: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> Spoil:
    """Change the tensors and the header of a file of weights; a header that is returned is written as it is."""

    def spoil(folder: Path) -> None:
        read = read_described(folder / path)
        tensors, described = dict(read.tensors), read.header
        changed = change(tensors, described)
        if isinstance(changed, str):
            save_file(tensors, folder / path, metadata={OLDER_KEY: changed})
        else:
            write_described(folder / path, tensors, described)

    return spoil
