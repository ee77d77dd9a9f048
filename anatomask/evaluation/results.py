"""Scores on disk: `cases.csv`, a row per case and class, and `summary.json`, mean and SD over cases.

DSC and NSD are fractions in both files. A class that is absent from a case's ground truth has an empty cell.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from anatomask.errors import UserError

IDENTITY_FILE = "evaluation.json"
PREDICTIONS = "predictions"
CASES_FILE = "cases.csv"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class CaseScore:
    """Scores of one class in one case."""

    run: str
    dataset: str
    case: str
    class_id: int
    class_name: str
    dsc: float
    nsd: float
    voxels: int
    """Number of voxels of the ground truth; 0 where the class is absent and both scores are NaN."""


def evaluation_files(run: Path) -> list[Path]:
    """List what an evaluation wrote into a run's folder; a prediction counts if its scores exist.

    The evaluation's identity is last: without it, there was no evaluation, and the files are somebody else's.
    """
    if not (run / IDENTITY_FILE).is_file():
        return []
    scores = sorted((run / PREDICTIONS).glob("*.csv"))
    predictions = [path.with_suffix(".nii.gz") for path in scores]
    tables = [run / name for name in (CASES_FILE, SUMMARY_FILE, IDENTITY_FILE)]
    return [path for path in (*predictions, *scores, *tables) if path.is_file()]


def to_csv(scores: Iterable[CaseScore]) -> str:
    """Format scores as the text of `cases.csv`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(CaseScore)])
    for score in scores:
        writer.writerow(_cell(getattr(score, field.name)) for field in fields(CaseScore))
    return text.getvalue()


def from_csv(text: str, source: str, remedy: str = "evaluate the run again with --overwrite") -> list[CaseScore]:
    """Read what `to_csv` wrote; `source` names the file in messages, which end with `remedy`.

    Raises:
        UserError: a column is missing, a value does not parse or is no score, or a class of a case occurs twice.
    """
    table = csv.DictReader(io.StringIO(text))
    try:
        absent = {field.name for field in fields(CaseScore)} - set(table.fieldnames or ())
        if absent:
            raise ValueError(f"it has no column {min(absent)}")
        scores = [
            CaseScore(
                run=row["run"],
                dataset=row["dataset"],
                case=row["case"],
                class_id=int(row["class_id"]),
                class_name=row["class_name"],
                dsc=float(row["dsc"] or "nan"),
                nsd=float(row["nsd"] or "nan"),
                voxels=int(row["voxels"]),
            )
            for row in table
        ]
        _check_scores(scores)
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{source} is not a table of scores ({error}); {remedy}") from error
    return scores


def _check_scores(scores: Sequence[CaseScore]) -> None:
    seen: set[tuple[str, str, int]] = set()
    for score in scores:
        if not all(math.isnan(value) or 0 <= value <= 1 for value in (score.dsc, score.nsd)):
            raise ValueError(
                f"case {score.case}: {score.dsc:g} and {score.nsd:g} are no DSC and NSD, which lie in [0, 1]"
            )
        if score.voxels < 0:
            raise ValueError(f"case {score.case} has {score.voxels} voxels")
        key = score.dataset, score.case, score.class_id
        if key in seen:
            raise ValueError(f"class {score.class_id} of case {score.case} stands in it twice")
        seen.add(key)


def case_means(scores: Iterable[CaseScore], metric: str) -> dict[str, float]:
    """Compute each case's mean of `metric` ("dsc" or "nsd") over the classes present in its ground truth."""
    values: dict[str, list[float]] = {}
    for score in scores:
        value = float(getattr(score, metric))
        if not math.isnan(value):
            values.setdefault(score.case, []).append(value)
    return {case: float(np.mean(of_case)) for case, of_case in values.items()}


def mean_sd(values: Sequence[float]) -> dict[str, float | None]:
    """Compute mean and sample standard deviation (n - 1); None where there are too few values."""
    return {
        "mean": float(np.mean(values)) if values else None,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }


def summarise(scores: Sequence[CaseScore]) -> dict[str, Any]:
    """Compute the figures of `summary.json`: number of cases, DSC and NSD over cases, and the same per class."""
    classes = {score.class_name: None for score in sorted(scores, key=lambda score: score.class_id)}
    per_class = {name: _present(score for score in scores if score.class_name == name) for name in classes}
    return {
        "cases": len(case_means(scores, "dsc")),
        "dsc": mean_sd(list(case_means(scores, "dsc").values())),
        "nsd": mean_sd(list(case_means(scores, "nsd").values())),
        "classes": {
            name: {
                "dsc": mean_sd([score.dsc for score in present]),
                "nsd": mean_sd([score.nsd for score in present]),
                "cases": len(present),
            }
            for name, present in per_class.items()
        },
    }


def check_summary(summary: Any, source: str) -> Mapping[str, Any]:
    """Return the parsed `summary.json` if it has what a report needs.

    Raises:
        UserError: a field is missing or invalid; the message names it and `source`.
    """
    for name in ("run", "method", "initialisation", "dataset", "cases", "dsc", "nsd", "data"):
        if not isinstance(summary, Mapping) or name not in summary:
            raise UserError(f"{source} has no field {name!r}; evaluate the run again with --overwrite")
    for name in ("dsc", "nsd"):
        if not isinstance(summary[name], Mapping) or not {"mean", "sd"} <= summary[name].keys():
            raise UserError(f"{source}: {name} lacks mean and sd; evaluate the run again with --overwrite")
        for value in (summary[name]["mean"], summary[name]["sd"]):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise UserError(f"{source}: {name} has {value!r} for a number; evaluate the run again with --overwrite")
    fold = summary.get("fold")
    if fold is not None and not (
        isinstance(fold, Mapping)
        and all(isinstance(fold.get(name), kind) for name, kind in (("number", int), ("of", int), ("others", str)))
    ):
        raise UserError(f"{source}: fold lacks number, of and others; evaluate the run again with --overwrite")
    for name in ("run", "method", "dataset", "data"):
        if not isinstance(summary[name], str):
            raise UserError(f"{source}: {name} must be text, not {summary[name]!r}; evaluate again with --overwrite")
    return summary


def _present(scores: Iterable[CaseScore]) -> list[CaseScore]:
    return [score for score in scores if score.voxels]


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}"
    return value
