"""Counter of the memory of tensors while something is computed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counter of the bytes of live tensors.

    It follows the creation and deletion of their storages. Views store nothing.
    """

    peak = 0
    """Bytes that lived at once at most, apart from what was there before."""

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        """Start counting, without the tensors in `before`."""
        super().__init__()
        self._live = 0
        self._sizes: dict[int, int] = {}
        for tensor in before:
            self._follow(tensor, counted=False)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute, and count the results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return result

    def _follow(self, tensor: Tensor, *, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if counted else 0
        self._live += self._sizes[key]
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self._live -= self._sizes.pop(key)
