"""Spaces of `anatomask sweep`, one file each: which fields vary, named by their dotted paths.

They are the pretraining's fields or, with `finetune.` or `inference.` in front, those of finetuning and of scoring.
A file assigns `SPACE` a `Table`, whose every row is tried exactly once, or a `Search`, which draws as many points as
the user wants. `--space NAME` finds a file by its name, `--space FILE.py` one anywhere else; nothing else has to be
edited.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

import anatomask
from anatomask.errors import UserError
from anatomask.plugins import load_module

Point = Mapping[str, Any]
"""Values of fields, for example {"method.mask_ratio": 0.8}."""


@dataclass(frozen=True)
class Table:
    """Rows to be tried, each exactly once."""

    rows: Mapping[str, Point]
    """Name of each row, from the paper where it has one -> the values that it sets: the same fields in all rows."""
    paper: str | None = None
    """Number of the paper's table that has these rows."""

    def __post_init__(self) -> None:
        fields = dict.fromkeys(field for row in self.rows.values() for field in row)
        for name, row in self.rows.items():
            if lacking := [field for field in fields if field not in row]:
                raise ValueError(
                    f"row {name} does not set {', '.join(lacking)}, which another row sets: all rows must set the same "
                    "fields, so give it the value there, too"
                )

    def suggest(self, trial: optuna.Trial) -> None:
        """Suggest the fields and their values to Optuna; enqueueing a trial has already fixed its row."""
        rows = [as_kept(row) for row in self.rows.values()]
        for field in rows[0]:
            trial.suggest_categorical(field, list(dict.fromkeys(row[field] for row in rows)))

    def examples(self) -> list[Point]:
        """Return all rows."""
        return list(self.rows.values())


@dataclass(frozen=True)
class Search:
    """Points that Optuna draws, later ones near those that scored well."""

    suggest: Callable[[optuna.Trial], None]
    """Function that suggests a trial's value of each field (`trial.suggest_float("method.mask_ratio", 0.5, 0.9)`)."""

    def examples(self) -> list[Point]:
        """Return one point, to check that its fields exist."""
        trial = optuna.create_study().ask()
        self.suggest(trial)
        return [trial.params]


Space = Table | Search


def grid(values: Mapping[str, Sequence[Any]], paper: str | None = None) -> Table:
    """Build the table of all combinations of the fields' values."""
    points = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
    return Table({point_name(point): point for point in points}, paper)


def point_name(point: Point) -> str:
    """Name a point for a table of results: "mask_ratio=0.8; decoder=simple"."""
    return "; ".join(f"{field.rpartition('.')[2]}={_shown(value)}" for field, value in point.items())


def as_kept(row: Point) -> dict[str, Any]:
    """Return a row as a study keeps it: with texts of what is neither a number nor a text, as of a crop's size.

    A study is JSON, which would make lists of tuples.
    """
    return {
        field: value if value is None or isinstance(value, str | int | float) else str(value)
        for field, value in row.items()
    }


def space_names() -> list[str]:
    """List the names of the spaces that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.py") if path.stem != "__init__")


def paper_spaces() -> dict[str, Table]:
    """Return the spaces of the paper's tables by name."""
    spaces = {name: load_space(name) for name in space_names()}
    return {name: space for name, space in spaces.items() if isinstance(space, Table) and space.paper}


def load_space(name: str) -> Space:
    """Load a space by its name in `tune_spaces`, or from a Python file of the user's own.

    Raises:
        UserError: there is no such space, or its file does not assign SPACE a `Table` or a `Search`.
    """
    if name.endswith(".py"):
        path = Path(name)
    elif name in space_names():
        path = _folder() / f"{name}.py"
    else:
        names = ", ".join(space_names())
        raise UserError(f"--space {name}: no such space; there are {names}, or give a Python file of your own")
    space = getattr(load_module(path, "--space"), "SPACE", None)
    if not isinstance(space, Table | Search):
        raise UserError(f"--space {path} must assign SPACE a Table or a Search")
    return space


def _folder() -> Path:
    """Find the folder of spaces: inside the installed package, or beside the package in a checkout."""
    package = Path(anatomask.__file__).parent
    installed = package / "tune_spaces"
    return installed if installed.is_dir() else package.parent / "tune_spaces"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
