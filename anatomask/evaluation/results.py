"""Scores on disk: `cases.csv`, a row per case and class, and `summary.json`, mean and SD over cases.

DSC and NSD are fractions in both files. What a case does not have, or was not computed, is an empty cell.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anatomask.errors import UserError
from anatomask.evaluation.settings import NSD_AT
from anatomask.parsing import from_json

if TYPE_CHECKING:  # reports need no torch
    from anatomask.evaluation.metrics import ClassScore

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
    """Number of voxels of the reference; 0 where the class is absent."""
    hd95_mm: float = math.nan
    volume_ml: float = math.nan
    predicted_volume_ml: float = math.nan
    lesions: int | None = None
    """Number of the reference's lesions; None where lesions were not asked for."""
    predicted_lesions: int | None = None
    lesion_recall: float = math.nan
    lesion_precision: float = math.nan
    lesion_f1: float = math.nan
    false_positive_ml: float = math.nan
    false_negative_ml: float = math.nan
    nsd_1mm: float = math.nan
    nsd_2mm: float = math.nan

    @classmethod
    def of(cls, run: str, dataset: str, case: str, class_id: int, class_name: str, score: ClassScore) -> CaseScore:
        """Name what a score is of."""
        named = cls(
            run,
            dataset,
            case,
            class_id,
            class_name,
            dsc=score.dsc,
            nsd=score.nsd,
            voxels=score.voxels,
            hd95_mm=score.hd95_mm,
            volume_ml=score.volume_ml,
            predicted_volume_ml=score.predicted_volume_ml,
            nsd_1mm=score.nsd_1mm,
            nsd_2mm=score.nsd_2mm,
        )
        if (found := score.lesions) is None:
            return named
        return replace(
            named,
            lesions=found.lesions,
            predicted_lesions=found.predicted_lesions,
            lesion_recall=found.recall,
            lesion_precision=found.precision,
            lesion_f1=found.f1,
            false_positive_ml=found.false_positive_ml,
            false_negative_ml=found.false_negative_ml,
        )


FIRST_COLUMNS = ("run", "dataset", "case", "class_id", "class_name", "dsc", "nsd", "voxels")
"""Columns of `cases.csv` that every version has written."""
VOLUMES = ("volume_ml", "predicted_volume_ml")
COUNTS = ("lesions", "predicted_lesions")
LESION_FRACTIONS = ("lesion_recall", "lesion_precision", "lesion_f1")
WRONG_VOLUMES = ("false_positive_ml", "false_negative_ml")
MEASURES = ("hd95_mm", *VOLUMES, *COUNTS, *LESION_FRACTIONS, *WRONG_VOLUMES, *NSD_AT)
"""Columns that came later: measures beside DSC and NSD."""


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


def scored_whole(folder: Path) -> bool:
    """Return whether an evaluation came to its end in a folder, and no case of it failed."""
    try:
        summary = from_json((folder / SUMMARY_FILE).read_bytes())
    except (FileNotFoundError, ValueError):  # none, or damaged
        return False
    return isinstance(summary, Mapping) and not summary.get("failed")


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
        absent = set(FIRST_COLUMNS) - set(table.fieldnames or ())
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
                **_measures(row),
            )
            for row in map(_whole, table)
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
        for name in MEASURES:
            value = value_of(score, name)
            if not (math.isnan(value) or 0 <= value <= (1 if name in (*LESION_FRACTIONS, *NSD_AT) else math.inf)):
                raise ValueError(f"case {score.case} has {value:g} for {name}")
        key = score.dataset, score.case, score.class_id
        if key in seen:
            raise ValueError(f"class {score.class_id} of case {score.case} stands in it twice")
        seen.add(key)


def value_of(score: CaseScore, column: str) -> float:
    """Return a number of a score; NaN where there is none."""
    value = getattr(score, column)
    return math.nan if value is None else float(value)


def case_means(scores: Iterable[CaseScore], metric: str) -> dict[str, float]:
    """Compute each case's mean of `metric`, the name of a column, over the classes that have a number there."""
    values: dict[str, list[float]] = {}
    for score in scores:
        value = value_of(score, metric)
        if not math.isnan(value):
            values.setdefault(score.case, []).append(value)
    return {case: float(np.mean(of_case)) for case, of_case in values.items()}


def mean_sd(values: Iterable[float]) -> dict[str, float | None]:
    """Compute mean and sample standard deviation (n - 1) of those that are numbers; None where they are too few."""
    numbers = [value for value in values if not math.isnan(value)]
    return {
        "mean": float(np.mean(numbers)) if numbers else None,
        "sd": float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
    }


def summarise(scores: Sequence[CaseScore]) -> dict[str, Any]:
    """Compute the figures of `summary.json`: number of cases, metrics over cases, and the same per class.

    Volumes are only averaged per class. `hd95_missing` counts the classes of cases that were not predicted at all,
    which have no HD95.
    """
    classes = {score.class_name: None for score in sorted(scores, key=lambda score: score.class_id)}
    measured = [name for name in MEASURES if any(not math.isnan(value_of(score, name)) for score in scores)]
    missing = [score for score in scores if score.voxels and math.isnan(score.hd95_mm)]
    return {
        "cases": len(case_means(scores, "dsc")),
        "dsc": mean_sd(case_means(scores, "dsc").values()),
        "nsd": mean_sd(case_means(scores, "nsd").values()),
        **{name: mean_sd(case_means(scores, name).values()) for name in measured if name not in VOLUMES},
        **({"hd95_missing": len(missing)} if "hd95_mm" in measured else {}),
        "classes": {
            name: _summarise_class([score for score in scores if score.class_name == name], measured)
            for name in classes
        },
    }


def _summarise_class(scores: Sequence[CaseScore], measured: Sequence[str]) -> dict[str, Any]:
    """Compute the figures of one class: DSC and NSD over `cases`, volumes over those whose reference has the class."""
    present = [score for score in scores if score.voxels]
    return {
        "dsc": mean_sd(score.dsc for score in scores),
        "nsd": mean_sd(score.nsd for score in scores),
        "cases": sum(not math.isnan(score.dsc) for score in scores),
        **{
            name: mean_sd(value_of(score, name) for score in (present if name in VOLUMES else scores))
            for name in measured
        },
    }


KINDS: Mapping[tuple[str, ...], tuple[Any, str]] = {
    ("run", "method", "initialisation", "dataset", "data"): (str, "text"),
    ("network", "split", "checkpoint", "absent", "via"): (str | None, "text"),
    ("cases",): (int, "a whole number"),
    ("train_fraction",): (float | int | None, "a number"),
    ("nsd_tolerance_mm", "failed", "classes", "inference"): (Mapping | None, "fields"),
    ("folds",): (list | None, "a list"),
}
"""Types of the fields of `summary.json`, of which those with None came later, and what messages call them."""


def check_summary(summary: Any, source: str) -> Mapping[str, Any]:
    """Return the parsed `summary.json` if it has what a report needs.

    Raises:
        UserError: a field is missing or invalid; the message names it and `source`.
    """
    for name in ("run", "method", "initialisation", "dataset", "cases", "dsc", "nsd", "data"):
        if not isinstance(summary, Mapping) or name not in summary:
            raise UserError(f"{source} has no field {name!r}; evaluate the run again with --overwrite")
    for name in ("dsc", "nsd", *(name for name in MEASURES if name in summary)):
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
    training = summary.get("training")
    if training is not None and not (
        isinstance(training, Mapping)
        and all(isinstance(training.get(name), kind) for name, kind in (("seed", int), ("seeds", str), ("starts", str)))
    ):
        raise UserError(f"{source}: training lacks seed, seeds and starts; evaluate the run again with --overwrite")
    for names, (kind, words) in KINDS.items():
        for name in names:
            value = summary.get(name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"{source}: {name} must be {words}, not {value!r}; evaluate again with --overwrite")
    tolerances = (summary.get("nsd_tolerance_mm") or {}).values()
    if not all(isinstance(value, int | float) for value in tolerances):
        raise UserError(f"{source}: nsd_tolerance_mm must be numbers by class; evaluate again with --overwrite")
    if summary.get("folds") and fold is None:
        raise UserError(f"{source}: folds are named without a fold; evaluate again with --overwrite")
    return summary


def _measures(row: dict[str, str]) -> dict[str, Any]:
    """Read the columns that older versions did not write."""
    there = [name for name in MEASURES if name in row]
    return {
        name: (int(row[name]) if row[name] else None) if name in COUNTS else float(row[name] or "nan") for name in there
    }


def _whole(row: dict[str, str]) -> dict[str, str]:
    """Return a row that has a cell for each column."""
    if None in row.values():
        raise ValueError("a row is cut off")
    return row


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}"
    return value
