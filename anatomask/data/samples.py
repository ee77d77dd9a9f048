"""Training samples: sample k is a pure function of the seed and k, whoever reads it and whenever.

Sample k is entry k mod N of the permutation of the N cases drawn from (seed, k div N); its crop, flips, augmentation
and the random numbers of its masks are drawn from (seed, k). So the number of the next sample is all the state needed
to resume, to change the number of workers, or to replay a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from anatomask.data.augmentation.draws import coarse_axis, draw_matrix, moves, source_box
from anatomask.data.organs import has_side
from anatomask.data.scratch import in_a_row
from anatomask.settings import Settings

if TYPE_CHECKING:  # what trains on a machine without NIfTI and Parquet imports this
    from anatomask.data.shards import PreparedDataset

CROP_MULTIPLE = 16
"""Voxels by which a crop's sides must be divisible: the largest stride of the networks."""
SMALLEST_CROP = 2 * CROP_MULTIPLE
"""Voxels of the shortest edge of a crop."""

Sample = dict[str, np.ndarray]
Draw = Callable[["PreparedDataset", str, np.random.Generator], Sample]

ON_HOST = ("sample", "seed", "seeds", "candidates", "flip", "second_flip", "matrix", "box_start")
"""Columns of a batch that only the host reads; they are never copied to the device."""


@dataclass(frozen=True)
class LoaderConfig(Settings):
    """Settings of a training sample."""

    patch_size: tuple[int, int, int] = (112, 112, 128)
    """Crop in voxels; each side is a multiple of 16, and of the edge of the patches that are masked."""
    foreground: float = 0.33
    """Share of finetuning crops that are centred on a voxel of a random class (pretraining never reads labels)."""
    mirror_axes: tuple[int, ...] | None = None
    """Axes (0 R, 1 A, 2 S) along which finetuning mirrors. Default: all, without R where class names name a side."""
    read_ahead: int = 2
    """Batches that are read ahead per worker."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 4096, "patch_size")
        self.require_range(1, 1000, "read_ahead")
        self.require_distinct("mirror_axes")
        if min(self.patch_size) < SMALLEST_CROP or any(size % CROP_MULTIPLE for size in self.patch_size):
            raise ValueError(
                f"patch_size must be three multiples of {CROP_MULTIPLE} from {SMALLEST_CROP} on, not {self.patch_size}"
            )
        if not 0 <= self.foreground <= 1:
            raise ValueError(f"foreground must lie in [0, 1], not {self.foreground}")
        if self.mirror_axes is not None and not set(self.mirror_axes) <= {0, 1, 2}:
            raise ValueError(f"mirror_axes must be among 0, 1 and 2, not {self.mirror_axes}")


@dataclass(frozen=True)
class SampleSequence:
    """Endless, seeded sequence of cases: every N consecutive samples from a multiple of N hold each case once."""

    cases: tuple[str, ...]
    seed: int
    _orders: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Permutation of the epoch that was requested last: drawing one of many cases takes milliseconds."""

    def case(self, k: int) -> str:
        """Return the case of sample k."""
        epoch, position = divmod(k, len(self.cases))
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.cases))
        return self.cases[self._orders[epoch][position]]

    def rng(self, k: int) -> np.random.Generator:
        """Return the random generator of sample k."""
        return np.random.default_rng([self.seed, 1, k])


def worker_share(batch_size: int, rank: int, workers: int) -> range:
    """Return the places in each global batch that worker `rank` computes: consecutive, as many as others or one more.

    Raises ValueError when there are more workers than samples.

    Raises:
        ValueError: there are more workers than samples.
    """
    if batch_size < workers:
        raise ValueError(f"batch_size {batch_size} must be at least the {workers} workers")
    return range(rank * batch_size // workers, (rank + 1) * batch_size // workers)


def worker_samples(start: int, stop: int, batch_size: int, rank: int, workers: int) -> np.ndarray:
    """List the samples that worker `rank` reads for updates `start` to `stop`: its share of each global batch.

    Raises ValueError as `worker_share`.

    Raises:
        ValueError: as `worker_share`.
    """
    updates = np.arange(start, stop)[:, None] * batch_size
    return (updates + np.array(worker_share(batch_size, rank, workers))).ravel()


@dataclass(frozen=True)
class FinetuningDraw:
    """Draw of a `stored_crop` with its `label`, `flip` (3,) bool, and the `seed` of its augmentation.

    Where the seed turns or scales the crop, `image` and `label` are the box that it is resampled from, by `matrix`
    (3, 3); `box_start` (3,) is the first voxel of the box, counted from the crop's.
    """

    loader: LoaderConfig
    mirror_axes: tuple[int, ...]

    def __call__(self, dataset: PreparedDataset, case: str, rng: np.random.Generator) -> Sample:
        """Draw one crop of `case`, centred on a voxel of a random class with probability `foreground`."""
        size, shape = self.loader.patch_size, dataset.records[case].shape
        centre = dataset.foreground_voxel(case, rng) if rng.random() < self.loader.foreground else None
        origin = random_origin(shape, size, rng) if centre is None else centred_origin(centre, shape, size)
        flips, seed = (rng.random(3) < 0.5) & np.isin(range(3), self.mirror_axes), int(rng.integers(2**32))
        matrix = draw_matrix(seed, coarse_axis(dataset.spacing))
        start, box = source_box(matrix, size) if moves(matrix) else (np.zeros(3, np.int64), size)
        return {
            **stored_crop(dataset, case, (origin + start).tolist(), box, label=True),
            "flip": flips,
            "seed": np.asarray(seed),
            "matrix": matrix,
            "box_start": start,
        }


def stacked(samples: Sequence[Sample]) -> Sample:
    """Collect samples column by column: (B, …), or (B,) arrays where they differ in shape."""
    columns: Sample = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if len({value.shape for value in values}) == 1:
            row = in_a_row(values)
            columns[name] = np.stack(values) if row is None else row
        else:
            columns[name] = np.fromiter(values, object, len(values))
    return columns


def stored_crop(
    dataset: PreparedDataset, case: str, origin: Sequence[int], size: Sequence[int], *, label: bool
) -> Sample:
    """Read a crop as it is stored, with everything the device needs to pad and normalise it.

    Returns:
        `image` (C, *size), 0 where the crop reaches beyond the scan; `inside` (3, 2), see `inside_scan`;
        `minimum` (C,) of each channel; `normalisation` (C, 4); where asked for, `label` (*size) uint8.
    """
    record = dataset.records[case]
    image, labels = dataset.read_crop(case, origin, size, label=label, pad=False, empty=dataset.empty)
    sample = {
        "image": image,
        "inside": inside_scan(origin, record.shape, size),
        "minimum": np.array([channel.minimum for channel in record.channels], np.float32),
        "normalisation": dataset.normalisation(case),
    }
    if label:
        assert labels is not None, f"{case} has no label"
        sample["label"] = labels
    return sample


def inside_scan(origin: Sequence[int], shape: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Return (3, 2) int16: for each axis of a crop, the first voxel in the scan, and the first after those."""
    bounds = [(-first, extent - first) for first, extent in zip(origin, shape, strict=True)]
    return np.clip(bounds, 0, np.array(size)[:, None]).astype(np.int16)


def mirrored_axes(loader: LoaderConfig, class_names: Iterable[str]) -> tuple[int, ...]:
    """Return the axes along which finetuning may mirror.

    Mirroring along R turns a right kidney into a left one under an unchanged label. So R is left out by default where a
    class name has a side: left or right (as TotalSegmentator's own training does), or L, R, lt, rt as a word.
    """
    if loader.mirror_axes is not None:
        return tuple(sorted(loader.mirror_axes))
    return (1, 2) if any(has_side(name) for name in class_names) else (0, 1, 2)


def random_origin(shape: Sequence[int], size: Sequence[int], rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw the origin of a crop, uniform over positions inside the volume; an axis shorter than it is centred."""
    d, h, w = (
        int(rng.integers(0, extent - edge + 1)) if extent >= edge else -((edge - extent) // 2)
        for extent, edge in zip(shape, size, strict=True)
    )
    return d, h, w


def centred_origin(voxel: Sequence[int], shape: Sequence[int], size: Sequence[int]) -> tuple[int, int, int]:
    """Compute the origin of a crop about `voxel`, moved inside the volume; an axis shorter than the crop is centred."""
    d, h, w = (
        min(max(centre - edge // 2, 0), extent - edge) if extent >= edge else -((edge - extent) // 2)
        for centre, extent, edge in zip(voxel, shape, size, strict=True)
    )
    return d, h, w
