"""Patterns that say which files of a folder are scans, which are labels, and which of these belong together.

`*` stands for any text in a name, `?` for one character, `**/` for any folders. What they stand for is the name of the
case: a scan and a label belong together if it is the same text in both. A pattern without `/` is looked for in every
folder, and the folder is then part of the name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from anatomask.errors import UserError
from anatomask.names import some

WILDCARDS = {"**/": r"(?:(.*)/)?", "*": r"([^/]*)", "?": r"([^/])"}


def named_parts(relative: Path, pattern: str) -> tuple[str, ...] | None:
    """Return the parts of a case's name that a file has by a pattern; None where the pattern does not match.

    Args:
        relative: the file, relative to the source.
        pattern: pattern as described above.
    """
    folders = () if "/" in pattern else relative.parent.parts
    text = relative.as_posix() if "/" in pattern else relative.name
    expression = "".join(WILDCARDS.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*|\?)", pattern))
    found = re.fullmatch(expression, text)
    return found and (*folders, *(part for group in found.groups() if group for part in group.split("/")))


def matched(files: Sequence[Path], source: Path, pattern: str, option: str) -> dict[Path, tuple[str, ...]]:
    """Find the files that match a pattern, each with the parts of its case's name.

    Raises:
        UserError: no file matches.
    """
    parts = {path: named_parts(path.relative_to(source), pattern) for path in files}
    found = {path: part for path, part in parts.items() if part is not None}
    if not found:
        seen = some([str(path.relative_to(source)) for path in files]) or "all of them are labels"
        raise UserError(f"{option} {pattern} matches none of the NIfTI files of {source} ({seen}); correct it")
    return found
