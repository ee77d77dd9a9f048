"""Size and cost of preparing many cases, extrapolated from the headers of some and from a few that are prepared."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anatomask.data.datasets.base import RawCase
from anatomask.data.fingerprint import Fingerprint
from anatomask.data.memory import available_memory, bytes_to_prepare
from anatomask.data.preparation import histograms_of, prepare_and_write
from anatomask.data.preprocess import readable_grids, target_shape
from anatomask.data.records import DatasetInfo
from anatomask.data.shards import PreparedDataset, read_record
from anatomask.data.storage import Storage


@dataclass(frozen=True)
class Scale:
    """Size of prepared cases, from the headers of their scans."""

    voxels_per_case: float
    """Mean number of voxels of a case, all channels together."""
    left_out: int
    """Number of cases that are left out: they need more than `memory`."""
    memory: int
    """Bytes of memory that are free."""


def scale_of(info: DatasetInfo, cases: Sequence[RawCase]) -> Scale:
    """Compute the size of `cases` at the data set's spacing. A case whose header cannot be read is ignored."""
    channels, memory = len(info.channel_names), available_memory()
    grids = readable_grids(cases)
    targets = [(grid.shape, target_shape(grid.shape, grid.spacing, info.spacing)) for grid in grids]
    shapes = [new for old, new in targets if bytes_to_prepare(old, new, channels) <= memory]
    voxels = channels * sum(math.prod(shape) for shape in shapes)
    return Scale(voxels / max(1, len(shapes)), len(grids) - len(shapes), memory)


@dataclass(frozen=True)
class Measured:
    """Sums over the cases of a sample."""

    cases: int
    voxels: int
    """Voxels of all channels."""
    shard_bytes: int
    original_bytes: int
    """Bytes of the labels that are kept on the source's grid."""
    cpu_seconds: float
    """CPU time of this process for reading, resampling, compressing, and the case's share of the fingerprint."""


def measure(info: DatasetInfo, cases: Sequence[RawCase], sample: int) -> Measured:
    """Prepare `sample` cases, evenly spread over `cases`, in a temporary folder. A broken case is ignored."""
    chosen = np.unique(np.linspace(0, len(cases) - 1, min(sample, len(cases))).round().astype(int))
    with tempfile.TemporaryDirectory(prefix="anatomask-") as root:
        start = time.process_time()
        written = [
            outcome
            for outcome in (prepare_and_write(root, info, cases[index]) for index in chosen)
            if not outcome.reason
        ]
        records = {outcome.case: read_record(root, outcome.case) for outcome in written}
        dataset = PreparedDataset(root, info, records, {}, Fingerprint(()))
        for case in records:
            histograms_of(dataset, case)
        seconds = time.process_time() - start
        sizes = {folder: sum(Storage(root).sizes(folder).values()) for folder in ("cases", "originals")}
    voxels = sum(outcome.voxels for outcome in written)
    return Measured(len(written), voxels, sizes["cases"], sizes["originals"], seconds)
