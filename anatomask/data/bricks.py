"""Bricks: the cubes of voxels that are stored on their own, so that a crop reads no more than it touches.

One brick is the only value of its row group and column in the Parquet file, and thus the end of its column chunk: with
its length, which the file's footer holds, it can be read by position, and mapped where the file is local.
"""

from __future__ import annotations

import itertools
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import blosc2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from anatomask.data.settings import Codec
from anatomask.parsing import from_json

Slab = tuple[slice, slice, slice]

PREFIX = 4
"""Bytes before a value in a Parquet page: its length, little-endian."""
BRICKS_KEY = b"anatomask.bricks"
LENGTHS_KEY = b"anatomask.lengths"
"""Key that an older version, which wrote no checksums, used in place of `BRICKS_KEY`."""
_BLOSC2 = {"lz4": (blosc2.Codec.LZ4, 5), "lz4hc": (blosc2.Codec.LZ4HC, 9), "zstd": (blosc2.Codec.ZSTD, 1)}


def slabs(shape: Sequence[int], brick: int) -> list[Slab]:
    """List the cubes that tile a volume, in raster order; those at the border are clipped."""
    parts = [[slice(start, min(start + brick, extent)) for start in range(0, extent, brick)] for extent in shape]
    return [(a, b, c) for a, b, c in itertools.product(*parts)]


class Touched(NamedTuple):
    """Brick that a box touches."""

    number: int
    """Place of the brick in raster order."""
    slab: Slab
    """Extent in the volume."""
    here: Slab
    """Their common part, counted from the first voxel of the box."""
    there: Slab
    """Their common part, counted from the first voxel of the brick."""


def touched(shape: Sequence[int], brick: int, origin: Sequence[int], size: Sequence[int]) -> list[Touched]:
    """List the bricks that a box of `size` voxels from `origin` touches, in raster order."""
    axes, counts = [], [-(-extent // brick) for extent in shape]
    for extent, first, length in zip(shape, origin, size, strict=True):
        start, stop = max(first, 0), min(first + length, extent)
        axis = []
        for number in range(start // brick, -(-stop // brick) if stop > start else 0):
            low, high = number * brick, min((number + 1) * brick, extent)
            shared, end = max(low, start), min(high, stop)
            axis.append(
                (number, (slice(low, high), slice(shared - first, end - first), slice(shared - low, end - low)))
            )
        axes.append(axis)
    return [
        Touched((i * counts[1] + j) * counts[2] + k, *zip(one, two, three, strict=True))
        for (i, one), (j, two), (k, three) in itertools.product(*axes)
    ]


def class_bricks(label: np.ndarray, parts: Sequence[Slab]) -> dict[int, dict[int, int]]:
    """Count the voxels of each class (1 … K) of a label (D, H, W) in each brick: class -> index of brick -> number."""
    found: dict[int, dict[int, int]] = {}
    for index, part in enumerate(parts):
        counts = np.bincount(label[part].reshape(-1))
        for c in np.flatnonzero(counts[1:]) + 1:
            found.setdefault(int(c), {})[index] = int(counts[c])
    return dict(sorted(found.items()))


def pack(block: np.ndarray, codec: Codec) -> bytes:
    """Encode a brick's voxels as bytes: unchanged, or as a Blosc2 chunk with the bytes of each voxel shuffled apart."""
    if codec == "none":
        return block.tobytes()
    compressor, level = _BLOSC2[codec]
    packed = blosc2.compress2(
        np.ascontiguousarray(block),
        codec=compressor,
        clevel=level,
        typesize=block.itemsize,
        filters=[blosc2.Filter.SHUFFLE if block.itemsize > 1 else blosc2.Filter.NOFILTER],
        filters_meta=[0],
        nthreads=1,
    )
    return bytes(packed)


def unpack(packed: Any, codec: Codec, dtype: str, slab: Slab) -> np.ndarray:
    """Decode what `pack` made; without a codec, return a view of `packed`.

    Raises:
        ValueError, RuntimeError: the brick is damaged.
    """
    shape = [part.stop - part.start for part in slab]
    if codec == "none":
        return np.frombuffer(packed, dtype).reshape(shape)
    block = np.empty(shape, dtype)
    blosc2.decompress2(packed, dst=block, nthreads=1)
    return block


def table_of(columns: Mapping[str, Sequence[bytes]], metadata: Mapping[bytes, bytes]) -> pa.Table:
    """Build a table of packed bricks, a row each; its metadata holds lengths and checksums beside `metadata`.

    Checksums are XXH3 of 64 bits. Those of a column's bricks are stored one after the other, little-endian, in base64;
    that of each value of `metadata` is stored in hexadecimal.
    """
    fields = [pa.field(name, pa.large_binary(), nullable=False) for name in columns]
    lengths = {name: [len(value) for value in values] for name, values in columns.items()}
    sums = {name: np.array([xxh3_64_intdigest(value) for value in values], "<u8") for name, values in columns.items()}
    digests = {
        **{name: b64encode(column.tobytes()).decode() for name, column in sums.items()},
        **{key.decode(): xxh3_64_hexdigest(value) for key, value in metadata.items()},
    }
    own = json.dumps({"lengths": lengths, "digests": digests}, separators=(",", ":")).encode()
    schema = pa.schema(fields, {**metadata, BRICKS_KEY: own})
    return pa.table([pa.array(values, pa.large_binary()) for values in columns.values()], schema=schema)


def locations(footer: pq.FileMetaData) -> dict[str, np.ndarray]:
    """Locate each brick of each column in the file: (bricks, 2) start and length in bytes, prefix included.

    Raises:
        KeyError, ValueError: the file is not in this format.
    """
    lengths, _ = _lengths_and_digests(footer.metadata)
    found = {name: np.empty((footer.num_row_groups, 2), np.int64) for name in lengths}
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        for number in range(group.num_columns):
            chunk = group.column(number)
            length = PREFIX + lengths[chunk.path_in_schema][index]
            found[chunk.path_in_schema][index] = chunk.data_page_offset + chunk.total_compressed_size - length, length
    return found


def brick_digests(footer: pq.FileMetaData) -> dict[str, np.ndarray] | None:
    """Read the checksum of each brick of each column, (bricks,) uint64; None if an older version wrote the file.

    Raises:
        KeyError, ValueError: the file is not in this format.
    """
    _, digests = _lengths_and_digests(footer.metadata)
    if digests is None:
        return None
    found = {name: np.frombuffer(b64decode(digests[name], validate=True), "<u8") for name in footer.schema.names}
    if any(len(column) != footer.num_row_groups for column in found.values()):
        raise ValueError("the footer has not as many checksums as bricks")
    return found


def metadata_value(metadata: Mapping[bytes, bytes], key: bytes) -> bytes:
    """Read a value of the metadata that `table_of` was given, and verify its checksum.

    Raises:
        KeyError: the value is not there.
        ValueError: it does not match its checksum.
    """
    value = metadata[key]
    _, digests = _lengths_and_digests(metadata)
    if digests is not None and digests[key.decode()] != xxh3_64_hexdigest(value):
        raise ValueError(f"{key.decode()} in the footer does not match its checksum")
    return value


def _lengths_and_digests(metadata: Mapping[bytes, bytes]) -> tuple[dict[str, list[int]], dict[str, str] | None]:
    if LENGTHS_KEY in metadata:
        return from_json(metadata[LENGTHS_KEY]), None
    own = from_json(metadata[BRICKS_KEY])
    return own["lengths"], own["digests"]


def value_of(stored: pa.Buffer) -> pa.Buffer:
    """Remove the prefix that Parquet puts before a value, its length, from a packed brick.

    Raises:
        ValueError: the prefix and the length disagree.
    """
    if int.from_bytes(stored[:PREFIX], "little") != len(stored) - PREFIX:
        raise ValueError("a brick has another length than the file's footer says")
    return stored[PREFIX:]
