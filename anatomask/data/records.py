"""Records of a prepared data set and its cases, which lie beside and inside the shards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from anatomask.data.fingerprint import Scheme
from anatomask.data.settings import Codec
from anatomask.names import component
from anatomask.parsing import from_json

Affine = tuple[tuple[float, float, float, float], ...]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ChannelRecord:
    """One channel of one case: voxel type, and statistics in the unit of the voxels."""

    dtype: str
    minimum: float
    """Smallest value, which pads a crop that reaches beyond the volume."""
    mean: float
    """Mean over the voxels other than background (see `body_voxels`); normalises a "zscore" channel."""
    std: float


@dataclass(frozen=True)
class CaseRecord:
    """Everything known of a case without reading its voxels. Grids are (D, H, W); affines are to RAS mm."""

    case: str
    patient: str
    shape: Shape
    """Shape of the prepared volume, in RAS axes."""
    spacing: tuple[float, float, float]
    """Voxel size of the prepared volume, in mm."""
    affine: Affine
    original_shape: Shape
    """Shape of the source, as nibabel reads it."""
    original_affine: Affine
    labelled: bool
    brick: int
    codec: Codec
    """Codec of the image's bricks."""
    class_bricks: Mapping[int, Mapping[int, int]]
    """Class -> index of brick (raster order) -> voxels of the class in it."""
    channels: tuple[ChannelRecord, ...]

    def dtype(self, column: str) -> str:
        """Return the voxel type of an image's column."""
        return self.channels[int(column.removeprefix("image_"))].dtype

    def to_json(self) -> str:
        """Format the record as one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> CaseRecord:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is not JSON, a value is not of its type or not finite, or the case's name would
                lead out of its folder.
            KeyError, TypeError, AttributeError: a field is missing, unknown or of another structure.
        """
        data = from_json(text, finite=True)
        component(data["case"])
        data["class_bricks"] = {
            int(c): {int(index): count for index, count in bricks.items()} for c, bricks in data["class_bricks"].items()
        }
        data["channels"] = tuple(ChannelRecord(**channel) for channel in data["channels"])
        for name in ("shape", "spacing", "original_shape"):
            data[name] = tuple(data[name])
        for name in ("affine", "original_affine"):
            data[name] = tuple(tuple(row) for row in data[name])
        record = cls(**data)
        if min(record.shape) < 1 or record.brick < 1 or record.codec not in get_args(Codec):
            raise ValueError(f"shape {record.shape}, brick {record.brick} or codec {record.codec!r} cannot be")
        return record


@dataclass(frozen=True)
class PreparedCase:
    """One case in memory, ready to be written."""

    case: str
    patient: str
    images: tuple[np.ndarray, ...]
    """Volumes (D, H, W) of int16 or float16, one per channel, RAS."""
    schemes: tuple[Scheme, ...]
    label: np.ndarray | None
    """Label map (D, H, W) uint8."""
    affine: np.ndarray
    original_shape: Shape
    original_affine: np.ndarray
    original_label: np.ndarray | None
    """Label map on the source's grid, uint8."""


@dataclass(frozen=True)
class DatasetInfo:
    """Properties that all cases of a data set share."""

    name: str
    reader: str
    channel_names: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    class_names: Mapping[int, str]
    """Names of classes 1 … K, without background."""
    nsd_tolerance: Mapping[int, float]
    """Tolerance in mm, per class."""
    spacing: tuple[float, float, float]
    """Target voxel size in mm; a volume's own differs by rounding to whole voxels."""
    brick: int
    codec: Codec


def triple(values: Iterable[Any], kind: type) -> Any:
    """Convert the three values to a tuple of `kind`."""
    a, b, c = (kind(value) for value in values)
    return a, b, c


def affine_rows(affine: np.ndarray) -> Affine:
    """Convert a 4x4 array to nested tuples."""
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in affine)
