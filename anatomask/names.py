"""Names from outside: checked, refused, or made safe as a file name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

LONGEST = 128
"""Characters at most of a run's name, or of a file name made of a text; file systems allow 255 bytes in all."""

_PLAIN = re.compile(rf"[A-Za-z0-9_+=][A-Za-z0-9._+=-]{{0,{LONGEST - 1}}}")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._+=-]+")


def check_name(name: str) -> None:
    """Check the `name` of a run, which names its folder; it may be empty, and is then derived.

    Raises:
        ValueError: the name is not one path component of plain characters.
    """
    if name and not _PLAIN.fullmatch(name):
        raise ValueError(
            f"name must be at most {LONGEST} letters, digits and characters of . _ - + = "
            f"that begin with none of . and -, not {shown(name)}"
        )


def file_name(text: str) -> str:
    """Turn any text into a file name of plain characters; a text that is one already is unchanged.

    Different texts may have the same file name.
    """
    return _NOT_PLAIN.sub("-", text).lstrip(".-")[:LONGEST] or "unnamed"


def component(name: str) -> str:
    """Return `name`, which comes from a file, after checking that it names something inside a folder.

    Raises:
        ValueError: the name is empty, leads elsewhere (`..`, `a/b`), or holds control characters.
    """
    if name in ("", ".", "..") or "/" in name or any(ord(character) < 32 for character in name):
        raise ValueError(f"{shown(name)} is not the name of a file")
    return name


def some(names: Sequence[str], most: int = 3) -> str:
    """List the first of `names`, and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shown(value: object, longest: int = 80) -> str:
    """Return the `repr` of a value, cut to `longest` characters."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 2]} …"


def readable(text: str) -> str:
    """Return a text with escapes for control characters and for bytes that are not UTF-8 (`os.fsdecode`)."""
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cs"):
        return character
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]
