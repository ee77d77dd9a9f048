"""Ranges of a remote file, read by few requests at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

REQUESTS_AT_ONCE = 16
"""Number of concurrent requests to remote storage, whose latency is high."""
JOINED_BELOW = 2**16
"""Bytes between two ranges of a remote file up to which they are read as one."""


def fetched(file: pa.NativeFile, ranges: Sequence[tuple[int, int]]) -> list[pa.Buffer]:
    """Read the (start, length) ranges of a remote file, by concurrent requests."""
    spans = _joined(ranges)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        read = dict(zip(spans, pool.map(lambda span: file.read_at(span[1], span[0]), spans), strict=True))
    return [_within(read, start, length) for start, length in ranges]


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge ranges that lie near each other into (start, length) spans."""
    spans: list[tuple[int, int]] = []
    for start, length in sorted(ranges):
        if spans and start - sum(spans[-1]) <= JOINED_BELOW:
            first, extent = spans.pop()
            spans.append((first, max(extent, start + length - first)))
        else:
            spans.append((start, length))
    return spans


def _within(read: Mapping[tuple[int, int], bytes], start: int, length: int) -> pa.Buffer:
    """Cut a range out of the span that holds it."""
    first, data = next(
        (first, data) for (first, extent), data in read.items() if first <= start and start + length <= first + extent
    )
    return pa.py_buffer(data)[start - first : start - first + length]
