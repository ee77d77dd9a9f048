"""Names that other programs give to the tensors of a backbone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Axes = Literal["xyz", "zyx"]
"""The order of the axes along which kernels lie."""


@dataclass(frozen=True)
class Form:
    """Tensor names in one kind of file."""

    title: str
    """Name of the kind, in messages."""
    encoder: str
    """Prefix of some of the encoder's tensors, by which a file is recognised."""
    renames: tuple[tuple[str, str], ...]
    """Pairs of prefixes, theirs and ours; `{}` stands for a number. The first that fits is used."""
    unread: str = "$."
    """Pattern of the names that the other program's own segmentation network does not read."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Pairs of a pattern of second names of tensors, and the replacement that gives the first name."""
    method: str = "AnatoMask"
    """Name in tables of the pretraining of an encoder in such a file, where the user gives none."""
    note: str = ""
    """Warning that is given when such a file is read. Default: no warning."""
    axes: Axes = "xyz"
    """Order of the axes of the arrays that networks in such files were trained on, where the file does not say it."""
    whole: bool = False
    """True if it holds encoder and decoder of a pretraining, as `BackboneConfig.trunk` builds them."""
    converted: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
    """Function that gives a tensor, by our name, the shape that it has here. Default: it has that shape."""

    def ours(self, name: str) -> str | None:
        """Return our name for theirs; None if there is none."""
        for pattern, first in self.aliases:
            name = re.sub(pattern, first, name)
        return _rename(name, self.renames)

    def theirs(self, name: str) -> str | None:
        """Return their first name for ours; None if there is none."""
        return _rename(name, [(ours, theirs) for theirs, ours in self.renames])


def _rename(name: str, renames: Sequence[tuple[str, str]]) -> str | None:
    for old, new in renames:
        match = re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), name)
        if match:
            return new.format(*match.groups()) + name[match.end() :]
    return None
