"""Memory for crops that is used again, as taking new pages from the kernel costs as much time as filling them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np


class Scratch:
    """Memory for the crops of one block of samples after the other.

    Crops of one type lie one behind the other, so that those of one shape are `stacked` without a copy.
    """

    def __init__(self) -> None:
        self._memory: dict[np.dtype, np.ndarray] = {}
        self._used: dict[np.dtype, int] = {}

    def begin(self) -> None:
        """Begin a block: the memory of the last one is used again, unless an array in it still exists."""
        for dtype, used in self._used.items():
            held = sys.getrefcount(self._memory[dtype]) > 2  # the dictionary's, and the argument
            if held or used > len(self._memory[dtype]):
                self._memory[dtype] = np.empty(max(used, len(self._memory[dtype])), dtype)
            self._used[dtype] = 0

    def empty(self, shape: Sequence[int], dtype: np.dtype | type) -> np.ndarray:
        """Return an array whose values are arbitrary; the first block, and what exceeds the last one, is new memory."""
        dtype, size = np.dtype(dtype), math.prod(shape)
        memory, start = self._memory.setdefault(dtype, np.empty(0, dtype)), self._used.get(dtype, 0)
        self._used[dtype] = start + size
        if start + size > len(memory):
            return np.empty(tuple(shape), dtype)
        return memory[start : start + size].reshape(shape)


def in_a_row(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return arrays of one shape that lie one behind the other in a `Scratch` as one (N, …) view, or None."""
    first, memory = arrays[0], arrays[0].base
    if not isinstance(memory, np.ndarray) or memory.ndim != 1 or memory.dtype != first.dtype:
        return None
    start = _address(first)
    for number, array in enumerate(arrays):
        if array.base is not memory or not array.flags.c_contiguous or _address(array) != start + number * first.nbytes:
            return None
    offset = (start - _address(memory)) // first.itemsize
    return memory[offset : offset + len(arrays) * first.size].reshape(len(arrays), *first.shape)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
