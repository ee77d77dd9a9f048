"""How somebody else calls the tensors of a backbone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """The names in one kind of file."""

    title: str
    """Name of the kind, in messages."""
    encoder: str
    """Beginning of the names of some of the encoder's tensors, by which a file is recognised."""
    renames: tuple[tuple[str, str], ...]
    """Beginnings of names, theirs and ours; `{}` is a number. The first that fits holds."""
    unread: str = "$."
    """Pattern of the names that their own network does not read."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Patterns of second names of tensors, and what makes the first name of them."""
    note: str = ""
    """Warning with which such a file is read."""

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
