"""Prepared volumes on disk: one Parquet file per case, one row per brick, a column per channel and one for the label.

A brick is a cube that is compressed on its own, so a crop reads and decodes only the bricks that it touches, and
pretraining, which asks for the image columns alone, never reads a label.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest

from anatomask.data.bricks import (
    brick_digests,
    class_bricks,
    locations,
    metadata_value,
    pack,
    slabs,
    table_of,
    touched,
    unpack,
    value_of,
)
from anatomask.data.fingerprint import Fingerprint, Histogram
from anatomask.data.index import REMEDY, read_index
from anatomask.data.intensities import describe_channel, normalisation_rows
from anatomask.data.nifti import UNREADABLE, reason
from anatomask.data.records import (
    CaseRecord,
    DatasetInfo,
    PreparedCase,
    affine_rows,
    triple,
)
from anatomask.data.settings import Codec
from anatomask.data.storage import Root, Storage
from anatomask.errors import UserError
from anatomask.names import component

METADATA_KEY = b"anatomask.case"
LABEL_CODEC: Codec = "lz4hc"
"""Codec of labels, which it shrinks a hundredfold and decodes quickly."""
LOCATED_CASES = 1024
"""Number of cases whose bricks' offsets and checksums are cached, about 10 kB each."""
UNDECODABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RuntimeError)
"""Errors that pyarrow and Blosc2 raise for a Parquet file that is missing, cut off or damaged."""


def case_path(case: str) -> str:
    """Return the path of a case's shard.

    Raises:
        ValueError: the name would lead out of its folder.
    """
    return f"cases/{component(case)}.parquet"


def original_path(case: str) -> str:
    """Return the path of a case's label on its source grid.

    Raises:
        ValueError: as `case_path`.
    """
    return f"originals/{component(case)}.nii.gz"


def write_case(root: Root, prepared: PreparedCase, brick: int, codec: Codec) -> CaseRecord:
    """Write one case atomically; the Parquet file comes last, so a case whose file exists is complete.

    Raises:
        OSError: the folder cannot be written.
    """
    shape = prepared.images[0].shape
    parts = slabs(shape, brick)
    record = CaseRecord(
        case=prepared.case,
        patient=prepared.patient,
        shape=triple(shape, int),
        spacing=triple(np.linalg.norm(prepared.affine[:3, :3], axis=0), float),
        affine=affine_rows(prepared.affine),
        original_shape=triple(prepared.original_shape, int),
        original_affine=affine_rows(prepared.original_affine),
        labelled=prepared.label is not None,
        brick=brick,
        codec=codec,
        class_bricks={} if prepared.label is None else class_bricks(prepared.label, parts),
        channels=tuple(map(describe_channel, prepared.images, prepared.schemes)),
    )
    columns = {f"image_{c}": [pack(image[part], codec) for part in parts] for c, image in enumerate(prepared.images)}
    label = prepared.label
    columns["label"] = [b"" if label is None else pack(label[part], LABEL_CODEC) for part in parts]
    table = table_of(columns, {METADATA_KEY: record.to_json().encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=1, compression="none", use_dictionary=False, write_statistics=False)
    storage = Storage.of(root)
    if prepared.original_label is not None:
        image = nib.Nifti1Image(prepared.original_label, prepared.original_affine)
        storage.write(original_path(prepared.case), gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))
    storage.write(case_path(prepared.case), buffer.getvalue())
    return record


def read_record(root: Root, case: str) -> CaseRecord:
    """Read the record in the footer of a case's file.

    Raises:
        UserError: the file is not one that `write_case` wrote.
    """
    storage = Storage.of(root)
    try:
        return CaseRecord.from_json(
            metadata_value(storage.inspect(case_path(case), pq.read_schema).metadata, METADATA_KEY)
        )
    except UNDECODABLE as error:
        raise _damaged(storage, case, error) from error


class Footer(NamedTuple):
    """Location of the bricks of a case's file, by column."""

    locations: dict[str, np.ndarray]
    """Start and length in bytes, (bricks, 2)."""
    digests: dict[str, np.ndarray] | None
    """Checksums, (bricks,) uint64; None if an older version wrote the file."""


class PreparedDataset:
    """Data set that `anatomask prepare` wrote. It has plain attributes and pickles cheaply."""

    def __init__(
        self,
        path: Root,
        info: DatasetInfo,
        records: dict[str, CaseRecord],
        splits: dict[str, tuple[str, ...]],
        fingerprint: Fingerprint,
    ) -> None:
        self.info = info
        self.records = records
        self.splits = splits
        self.fingerprint = fingerprint
        self.storage = Storage.of(path)
        self.path = self.storage.root
        self.empty: Callable[[Sequence[int], Any], np.ndarray] = np.empty
        """Function that gives the memory of samples: that of a `Scratch` in a reading process."""
        self._where: dict[str, Footer] = {}
        self._checked: dict[tuple[str, str], np.ndarray] = {}
        self._otsu: dict[tuple[str, int], float] = {}

    @classmethod
    def open(cls, path: Root) -> PreparedDataset:
        """Read the index of a prepared data set.

        Raises:
            UserError: a file is missing, damaged or of another format version.
        """
        storage = Storage.of(path)
        if storage.local:  # a relative path would mean another folder in a Ray worker
            storage = Storage(Path(storage.root).absolute())
        index = read_index(storage)
        return cls(storage, index.info, index.records, index.splits, index.fingerprint)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_checked": {}}  # another process reads for itself

    @property
    def roots(self) -> tuple[Storage, ...]:
        """Return the folder, by which other processes open the same data set with `open_joined`."""
        return (self.storage,)

    @property
    def shown(self) -> str:
        """Location without credentials, for messages."""
        return self.storage.show()

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def channel_names(self) -> tuple[str, ...]:
        return self.info.channel_names

    @property
    def class_names(self) -> dict[int, str]:
        """Names of classes 1 … K, without background."""
        return dict(self.info.class_names)

    @property
    def nsd_tolerance(self) -> dict[int, float]:
        """Tolerance in mm, per class."""
        return dict(self.info.nsd_tolerance)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Target voxel size in mm."""
        return self.info.spacing

    def read_crop(
        self,
        case: str,
        origin: Sequence[int],
        size: Sequence[int],
        *,
        label: bool,
        pad: bool = True,
        empty: Callable[[Sequence[int], Any], np.ndarray] = np.empty,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read the voxels of a box, from the bricks that it touches and no others.

        Args:
            case: name of the case.
            origin: first voxel, may be negative.
            size: extent in voxels, may reach beyond the volume; there the image is the channel's minimum, the label 0.
            label: read the label; if False, its column is never opened.
            pad: put the minimum there; if False, the image is 0 there, for the device to pad.
            empty: gives the memory of the result, as `numpy.empty`.

        Returns:
            image (C, d, h, w), of the channels' dtype if they agree, else float32; label (d, h, w) uint8 or None
            where the case has none or none was asked for.

        Raises:
            UserError: there is no such case, or its file is missing or damaged.
        """
        record = self._record(case)
        dtypes = {channel.dtype for channel in record.channels}
        image = empty((len(record.channels), *size), dtypes.pop() if len(dtypes) == 1 else np.float32)
        labels = empty(tuple(size), np.uint8) if label and record.labelled else None
        target = {f"image_{c}": plane for c, plane in enumerate(image)}
        if labels is not None:
            target["label"] = labels
        if any(first < 0 or first + n > extent for first, n, extent in zip(origin, size, record.shape, strict=True)):
            for plane, channel in zip(image, record.channels, strict=True):
                plane[...] = channel.minimum if pad else 0
            if labels is not None:
                labels[...] = 0
        self._fill(record, tuple(origin), target)
        return image, labels

    def bytes_touched(self, case: str, origin: Sequence[int], size: Sequence[int], *, label: bool) -> int:
        """Count the bytes of the bricks that `read_crop` reads.

        Raises:
            UserError: as `read_crop`.
        """
        record = self._record(case)
        rows = [part.number for part in touched(record.shape, record.brick, origin, size)]
        columns = {name: at for name, at in self._footer(case).locations.items() if label or name != "label"}
        return int(sum(at[rows, 1].sum() for at in columns.values()))

    def footer_bytes(self, case: str) -> int:
        """Count the bytes of the footer of a case's file, which says where its bricks lie.

        Raises:
            UserError: as `read_crop`.
        """
        try:
            return int(self.storage.inspect(case_path(case), pq.read_metadata).serialized_size)
        except UNDECODABLE as error:
            raise _damaged(self.storage, case, error) from error

    def shard_sizes(self) -> dict[str, int]:
        """Return the bytes of each case's file.

        Raises:
            OSError, UserError: the folder cannot be listed.
        """
        return self.storage.sizes("cases", ".parquet")

    def uncached(self) -> PreparedDataset:
        """Return the same data set without what was cached of its cases' files."""
        return PreparedDataset(self.storage, self.info, self.records, self.splits, self.fingerprint)

    def read_volume(self, case: str, *, label: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Read the whole case: image (C, D, H, W) and label (D, H, W), of the types that `read_crop` gives.

        Raises:
            UserError: as `read_crop`.
        """
        return self.read_crop(case, (0, 0, 0), self._record(case).shape, label=label)

    def otsu_threshold(self, case: str, channel: int) -> float:
        """Compute Otsu's threshold of one channel of a case, which is read whole the first time.

        Raises:
            UserError: as `read_crop`.
        """
        if (case, channel) not in self._otsu:
            image, _ = self.read_volume(case, label=False)
            self._otsu[case, channel] = Histogram.of(image[channel]).otsu_threshold()
        return self._otsu[case, channel]

    def foreground_voxel(self, case: str, rng: np.random.Generator) -> tuple[int, int, int] | None:
        """Draw a class uniformly among those present, and uniformly a voxel of it; return None without any label."""
        record = self._record(case)
        if not record.class_bricks:
            return None
        chosen = int(rng.choice(sorted(record.class_bricks)))
        bricks = record.class_bricks[chosen]
        counts = np.array(list(bricks.values()), float)
        index = int(rng.choice(list(bricks), p=counts / counts.sum()))
        slab = slabs(record.shape, record.brick)[index]
        block = np.empty([part.stop - part.start for part in slab], np.uint8)
        self._fill(record, tuple(part.start for part in slab), {"label": block})
        inside = np.argwhere(block == chosen)
        return triple(inside[rng.integers(len(inside))] + [part.start for part in slab], int)

    def normalisation(self, case: str) -> np.ndarray:
        """List what normalises a case: (C, 4) float32, low, high, mean, std per channel; see `normalisation_rows`."""
        return normalisation_rows(self.info.schemes, self.fingerprint, self._record(case).channels)

    def original_label(self, case: str) -> nib.Nifti1Image:
        """Read the label map on the source's grid, and its affine.

        Raises:
            UserError: the case is unlabelled, or the file is missing or damaged.
        """
        if not self._record(case).labelled:
            raise UserError(f"case {case} of {self.shown} has no label")
        try:
            image = nib.Nifti1Image.from_bytes(gzip.decompress(self.storage.read(original_path(case))))
            return nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header)
        except UNREADABLE as error:
            raise UserError(
                f"{self.storage.show(original_path(case))}, the ground truth of case {case}, cannot be read "
                f"({reason(error)}); {REMEDY}"
            ) from error

    def _record(self, case: str) -> CaseRecord:
        try:
            return self.records[case]
        except KeyError:
            raise UserError(f"{self.shown} has no case {case!r}") from None

    def _fill(self, record: CaseRecord, origin: Sequence[int], targets: Mapping[str, np.ndarray]) -> None:
        """Copy into each target (d, h, w), which starts at `origin`, what its column's bricks hold there."""
        parts = touched(record.shape, record.brick, origin, next(iter(targets.values())).shape)
        if not parts:
            return
        rows = np.array([part.number for part in parts])
        try:
            where = self._footer(record.case).locations
            ranges = [range_ for name in targets for range_ in where[name][rows].tolist()]
            stored = [value_of(value) for value in self.storage.read_ranges(case_path(record.case), ranges)]
            for number, (name, target) in enumerate(targets.items()):
                packed = stored[number * len(rows) : (number + 1) * len(rows)]
                self._check(record.case, name, rows, packed)
                dtype, codec = ("uint8", LABEL_CODEC) if name == "label" else (record.dtype(name), record.codec)
                for value, (_, slab, here, there) in zip(packed, parts, strict=True):
                    target[here] = unpack(value, codec, dtype, slab)[there]
        except UNDECODABLE as error:
            raise _damaged(self.storage, record.case, error) from error

    def _check(self, case: str, column: str, rows: np.ndarray, packed: Sequence[pa.Buffer]) -> None:
        """Compare bricks with their checksums; those of a local file once in this process, at the first reading.

        An uncompressed brick is memory-mapped, and reading all of it for every crop would take longer than the crop.

        Raises:
            ValueError: a brick does not match.
        """
        digests = self._footer(case).digests
        if digests is None:
            return
        checked = self._checked.setdefault((case, column), np.zeros(len(digests[column]), bool))
        for place in np.flatnonzero(~checked[rows]).tolist():
            if xxh3_64_intdigest(packed[place]) != digests[column][rows[place]]:
                raise ValueError(f"brick {rows[place]} of {column} does not match its checksum")
        if self.storage.local:
            checked[rows] = True

    def _footer(self, case: str) -> Footer:
        """Locate the bricks of a case in its file; only recently read cases are cached, which bounds memory."""
        if case not in self._where:
            metadata = self.storage.inspect(case_path(case), pq.read_metadata)
            found = Footer(locations(metadata), brick_digests(metadata))
            if len(self._where) >= LOCATED_CASES:
                del self._where[next(iter(self._where))]
            self._where[case] = found
        return self._where[case]


def _damaged(storage: Storage, case: str, error: BaseException) -> UserError:
    path = storage.show(case_path(case))
    return UserError(f"{path} is damaged: {reason(error)}; delete it and run `anatomask prepare` again")
