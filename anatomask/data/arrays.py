"""Reading arrays of NPZ and Blosc2 (`.b2nd`) files: defects are named, and nothing in a file is ever executed."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path

import blosc2
import numpy as np
from numpy.lib import format as npy

from anatomask.data.listing import require_file
from anatomask.data.memory import require_room
from anatomask.errors import UserError, reason

UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, RuntimeError, TypeError, OverflowError, MemoryError, SyntaxError,
    zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip
"""Errors that NumPy, zipfile and Blosc2 raise for files that are cut off, damaged (MemoryError: an impossible size;
SyntaxError and TokenError: a meaningless header), or hold Python objects."""


def npz_names(path: Path) -> set[str]:
    """List the names of the arrays in an `.npz`.

    Raises:
        UserError: the file is missing or damaged.
    """
    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def npz_shape(path: Path, name: str) -> tuple[int, ...]:
    """Read the shape of one array of an `.npz` from its header alone.

    Raises:
        UserError: the file is missing or damaged, or has no such array.
    """
    return _npz_header(path, name)[0]


def read_npz(path: Path, name: str) -> np.ndarray:
    """Read one array of an `.npz`; arrays of Python objects are refused.

    Raises:
        UserError: the file is missing or damaged, has no such array, or the array holds Python objects or exceeds
            the available memory.
    """
    shape, dtype = _npz_header(path, name)
    require_room(path, shape, dtype.itemsize)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _npz_header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype]:
    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            version = npy.read_magic(stream)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(stream)
            return shape, dtype
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def b2nd_shape(path: Path) -> tuple[int, ...]:
    """Read the shape of the array in a `.b2nd` from its header alone.

    Raises:
        UserError: as `read_b2nd`.
    """
    return tuple(_open_b2nd(path).shape)


def read_b2nd(path: Path, channel: int) -> np.ndarray:
    """Read one channel (D, H, W) of the array (C, D, H, W) in a `.b2nd`.

    Raises:
        UserError: the file is missing or damaged, holds something else than a plain array, or the array exceeds the
            available memory.
    """
    array = _open_b2nd(path)
    require_room(path, array.shape[1:], array.dtype.itemsize)
    try:
        return array[channel]
    except (*UNREADABLE, IndexError) as error:
        raise _unreadable(path, error) from error


def _open_b2nd(path: Path) -> blosc2.NDArray:
    require_file(path)
    try:
        array = blosc2.open(str(path), mode="r", deserialize="safe", dparams={"nthreads": 1})
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(array, blosc2.NDArray):
        raise UserError(f"{path} holds a {type(array).__name__}; a plain array is expected")
    return array


def finite(path: Path, voxels: np.ndarray) -> np.ndarray:
    """Check that voxels (D, H, W) are usable, and return them unchanged.

    Raises:
        UserError: the voxels are not three-dimensional, not real numbers, or not finite.
    """
    if voxels.ndim != 3 or voxels.size == 0:
        raise UserError(f"{path} has a volume of shape {voxels.shape}; three axes are expected")
    if voxels.dtype.kind not in "biuf":
        raise UserError(f"{path} holds {voxels.dtype} voxels; one real number per voxel is expected")
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise UserError(f"{path} has {bad} voxels that are NaN or infinite; repair it or leave it out")
    return voxels


def _unreadable(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} cannot be read ({reason(error)}); get it again or leave it out")
