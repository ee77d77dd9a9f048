"""Cost of preparing many cases, extrapolated from a few that are prepared."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anatomask.data.datasets.base import RawCase
from anatomask.data.fingerprint import Fingerprint
from anatomask.data.preparation import histograms_of, prepare_and_write
from anatomask.data.records import DatasetInfo
from anatomask.data.shards import PreparedDataset, read_record
from anatomask.data.storage import Storage


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
