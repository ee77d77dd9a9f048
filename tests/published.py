"""Numbers of published implementations, a folder per method: its settings, weights and arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Published:
    """Numbers of one method. What a test reads or compares is taken off `unread`."""

    folder: Path
    sizes: dict[str, Any]
    """Contents of `settings.json`, the prefix of the other files' names among them."""
    arrays: dict[str, np.ndarray]
    unread: set[str]
    complete: bool = False
    """True if the folder has to hold everything, whatever `settings.json` says to be left out of it."""

    def leaves_out(self, name: str) -> bool:
        """Say whether `settings.json` names a file, an array or a part of a checkpoint as left out of this folder."""
        return not self.complete and name in self.sizes.get("left_out", ())

    def weights(self, name: str) -> dict[str, Tensor]:
        """Read the tensors of the file `name`, which has the prefix in front: `_initial.pt`."""
        return torch.load(self.folder / f"{self.sizes['prefix']}{name}", weights_only=True)

    def names(self, start: str) -> list[str]:
        """List the arrays whose names begin with `start`, without it."""
        return [name.removeprefix(start) for name in self.arrays if name.startswith(start)]

    def given(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return an array that is an input."""
        self.unread.discard(name)
        return torch.from_numpy(self.arrays[name]).to(dtype)

    def agrees(self, name: str, mine: Tensor | float, tolerance: float) -> None:
        """Check that max|a - b| / max|b| of an array is at most `tolerance`, or pass over one that was left out."""
        if self.leaves_out(name):
            return
        self.unread.discard(name)
        assert name in self.arrays, f"{self.folder} holds no array {name}"
        expected = self.arrays[name]
        found = np.asarray(mine.detach() if isinstance(mine, Tensor) else mine)
        assert found.shape == expected.shape, f"{name}: {found.shape}, not {expected.shape}"
        difference = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)
        assert difference <= tolerance, f"{name}: {difference:.1e}"


@contextmanager
def numbers_of(folder: Path, complete: bool = False) -> Iterator[Published]:
    """Read a method's folder, which may have to be `complete`; at the end, check that the test has read every array."""
    sizes = json.loads((folder / "settings.json").read_text())
    with np.load(folder / f"{sizes['prefix']}.npz") as file:
        arrays = dict(file)
    published = Published(folder, sizes, arrays, set(arrays), complete)
    yield published
    assert not published.unread, f"not compared: {', '.join(sorted(published.unread))}"
