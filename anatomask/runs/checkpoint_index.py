"""Index of a run's checkpoints: which is the last, and which the best."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anatomask.errors import UserError
from anatomask.files import refuse_pipe
from anatomask.names import shown
from anatomask.parsing import from_json

CHECKPOINTS = "checkpoints"
"""Name of the folder of a run in which its checkpoints lie."""
INDEX = "index.json"
STEP = re.compile(r"step_\d+")
"""Name of a checkpoint's folder."""


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index in the folder `checkpoints` of a run; return nothing where there is none.

    Returns:
        Fields `last` and, once a checkpoint was scored, `best` (names of folders), `step` (of the last), `best_score`.

    Raises:
        UserError: the index is damaged, or names something that is not a checkpoint in this folder.
    """
    path = folder / INDEX
    if not path.exists():
        return {}
    refuse_pipe(path)
    try:
        return _checked(from_json(path.read_bytes()))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); begin the run anew with --overwrite") from error


def last_step(run: Path) -> int:
    """Return the update of the last checkpoint of a run; 0 where there is none.

    Raises:
        UserError: as `read_index`.
    """
    return int(read_index(run / "checkpoints").get("step", 0))


def _checked(index: Any) -> dict[str, Any]:
    if not isinstance(index, Mapping):
        raise ValueError(f"it holds {shown(index)} and no fields")
    for name in ("last", "best"):
        if name in index and not (isinstance(index[name], str) and STEP.fullmatch(index[name])):
            raise ValueError(f"{name} is {shown(index[name])}, which is not the name of a checkpoint")
    if not (isinstance(index.get("step", 0), int) and index.get("step", 0) >= 0):
        raise ValueError(f"step is {shown(index['step'])}")
    if not isinstance(index.get("best_score", 0.0), int | float):
        raise ValueError(f"best_score is {shown(index['best_score'])}")
    return dict(index)
