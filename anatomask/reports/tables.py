"""Table of any number of evaluated runs: for the terminal, as Markdown, as CSV.

Tables show percent, mean ± SD over cases; the CSV holds fractions, as the runs' own files do.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from anatomask.reports.paper import published_note

METRICS = ("dsc", "nsd")
TITLES = ("Method", "Initialisation", "Data set", "DSC [%]", "NSD [%]", "Cases")
CAPTION = "Mean ± SD over cases; a case's score is the mean over the classes present in it."


@dataclass(frozen=True)
class Row:
    """One run in the table; scores are fractions, None where there is none."""

    run: str
    method: str
    initialisation: str
    network: str | None
    train_fraction: float | None
    dataset: str
    split: str | None
    cases: int
    dsc: tuple[float | None, float | None]
    """Mean and SD of the DSC over cases."""
    nsd: tuple[float | None, float | None]
    nsd_tolerance_mm: Mapping[str, float]
    failed: int
    """Number of cases that could not be evaluated."""
    data: str | None = None
    """Folder of the prepared data, as two data sets may have the same name."""
    classes: frozenset[str] = frozenset()
    """Names of the classes that were scored."""
    case_names: frozenset[str] = frozenset()
    """Names of the cases that were scored."""
    folds: tuple[int, ...] = ()
    """Numbers of the folds whose runs make up this row; empty for a run without a fold."""
    of_folds: int = 0
    """Number of folds that there are."""

    @property
    def missing(self) -> list[int]:
        """Return the numbers of the folds that no run of this row left out."""
        return [number for number in range(self.of_folds) if number not in self.folds]

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any], cases: Collection[str] = ()) -> Row:
        """Build the row of a run's `summary.json`, which does not name the `cases`."""
        return cls(
            run=summary["run"],
            method=summary["method"],
            initialisation=summary["initialisation"],
            network=summary.get("network"),
            train_fraction=summary.get("train_fraction"),
            dataset=summary["dataset"],
            split=summary.get("split"),
            cases=summary["cases"],
            dsc=(summary["dsc"]["mean"], summary["dsc"]["sd"]),
            nsd=(summary["nsd"]["mean"], summary["nsd"]["sd"]),
            nsd_tolerance_mm=summary.get("nsd_tolerance_mm", {}),
            failed=len(dict(summary.get("failed", {}))),
            data=summary.get("data"),
            classes=frozenset(summary.get("classes", ())),
            case_names=frozenset(cases),
            folds=tuple(summary.get("folds", ())),
            of_folds=summary["fold"]["of"] if summary.get("folds") else 0,
        )


def terminal_table(rows: Sequence[Row]) -> Table:
    """Build a rich table that fits 80 columns; the best run of each data set is bold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in TITLES:
        numeric = title in TITLES[3:]
        table.add_column(title, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    best = best_runs(rows)
    for index, row in enumerate(rows):
        scores = [
            Text(percent(*getattr(row, metric)), style="bold" if index in best[metric] else "") for metric in METRICS
        ]
        table.add_row(*map(Text, _names(row, rows)), *scores, str(row.cases))
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """Format the same table as GitHub-flavoured Markdown, notes included."""
    lines = [f"| {' | '.join(TITLES)} |", "|---|---|---|---:|---:|---:|"]
    best = best_runs(rows)
    for index, row in enumerate(rows):
        scores = [
            f"**{percent(*getattr(row, metric))}**" if index in best[metric] else percent(*getattr(row, metric))
            for metric in METRICS
        ]
        names = [name.replace("|", "\\|") for name in _names(row, rows)]
        lines.append(f"| {' | '.join([*names, *scores, str(row.cases)])} |")
    return "\n".join([*lines, "", " ".join(notes(rows)), ""])


NAMES = ("run", "method", "initialisation", "network", "train_fraction", "dataset", "split", "cases", "failed")
SCORES = ("dsc_mean_fraction", "dsc_sd_fraction", "nsd_mean_fraction", "nsd_sd_fraction")
FOLDS = "folds"
"""Columns of the CSV table; the last came later."""


def is_csv_table(text: bytes) -> bool:
    """Return whether a file is one that `csv_table` made."""
    return text.startswith(",".join((*NAMES, *SCORES)).encode())


def csv_table(rows: Sequence[Row]) -> str:
    """Format everything known of each run as CSV, scores as fractions at full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*NAMES, *SCORES, FOLDS])
    for row in rows:
        writer.writerow([*(getattr(row, name) for name in NAMES), *row.dsc, *row.nsd, " ".join(map(str, row.folds))])
    return text.getvalue()


def notes(rows: Sequence[Row]) -> list[str]:
    """List what a reader needs to trust the table: how scores are averaged, NSD tolerances, incomparable rows."""
    sentences = [CAPTION]
    for dataset, members in by_dataset([(row.dataset, row.data) for row in rows]).items():
        here = [rows[index] for index in members]
        sentences.append(f"{dataset}: NSD at {_tolerance(here[0].nsd_tolerance_mm)}, split {here[0].split}.")
        differing = _incomparable(here)
        if len({row.network for row in here}) > 1:
            differing.append("networks")
        if differing:
            sentences.append(f"{dataset}: runs differ in {', '.join(differing)}; compare with care.")
    sentences += [
        f"{row.run}: fold{'s' if len(row.missing) > 1 else ''} {', '.join(map(str, row.missing))} of {row.of_folds} "
        f"{'are' if len(row.missing) > 1 else 'is'} missing."
        for row in rows
        if row.missing
    ]
    paper = (published_note(row.method, row.network, row.dataset) for row in rows)
    sentences += dict.fromkeys(note for note in paper if note)
    failed = [f"{row.run} ({row.failed})" for row in rows if row.failed]
    if failed:
        sentences.append(f"Cases that could not be evaluated are left out: {', '.join(failed)}.")
    return sentences


def best_runs(rows: Sequence[Row]) -> dict[str, set[int]]:
    """Find, per metric, the indices of the rows that are best on their data set as shown.

    None is marked where a row is the only one, or where the rows were not scored on the same cases, classes and
    tolerances.
    """
    best: dict[str, set[int]] = {metric: set() for metric in METRICS}
    for members in by_dataset([(row.dataset, row.data) for row in rows]).values():
        if _incomparable([rows[index] for index in members]):
            continue
        for metric in METRICS:
            means = {index: getattr(rows[index], metric)[0] for index in members}
            shown = {index: round(100 * mean, 1) for index, mean in means.items() if mean is not None}
            if len(members) > 1 and shown:
                best[metric] |= {index for index, value in shown.items() if value == max(shown.values())}
    return best


def by_dataset(datasets: Sequence[tuple[str, str | None]]) -> dict[str, list[int]]:
    """Group the positions by data set, given as name and folder; the folder is shown where two share a name."""
    folders: dict[str, set[str | None]] = {}
    for name, folder in datasets:
        folders.setdefault(name, set()).add(folder)
    members: dict[str, list[int]] = {}
    for index, (name, folder) in enumerate(datasets):
        members.setdefault(name if len(folders[name]) == 1 else f"{name} ({folder})", []).append(index)
    return members


def _incomparable(rows: Sequence[Row]) -> list[str]:
    """List in what the scoring of rows of one data set differs."""
    kinds: dict[str, set[Any]] = {
        "NSD tolerances": {_tolerance(row.nsd_tolerance_mm) for row in rows},
        "splits": {row.split for row in rows},
        "classes": {row.classes for row in rows},
        "cases": {(row.cases, row.case_names) for row in rows},
    }
    return [name for name, values in kinds.items() if len(values) > 1]


def _names(row: Row, rows: Iterable[Row]) -> tuple[str, str, str]:
    """Format the three text cells, with the share of labels where runs differ in it, and the number of folds."""
    method = row.method
    if row.folds:
        method += f", {len(row.folds)} of {row.of_folds} folds" if row.missing else f", {len(row.folds)} folds"
    if row.train_fraction is not None and len({other.train_fraction for other in rows}) > 1:
        method += f", {100 * row.train_fraction:g} % of labels"
    return method, row.initialisation, row.dataset


def percent(mean: float | None, sd: float | None) -> str:
    """Format mean and SD, given as fractions, the way tables show them; "–" where there is none."""
    if mean is None:
        return "–"
    return f"{100 * mean:.1f}" if sd is None else f"{100 * mean:.1f} ± {100 * sd:.1f}"


def _tolerance(tolerances: Mapping[str, float]) -> str:
    values = set(tolerances.values())
    if not values:
        return "an unstated tolerance"
    if len(values) == 1:
        return f"{values.pop():g} mm"
    return ", ".join(f"{name} {value:g}" for name, value in tolerances.items()) + " mm"


def verdict(summary: Mapping[str, Any]) -> str:
    """Say the scores of a summary in a line: DSC and NSD in percent, mean ± SD over cases."""
    parts = []
    for metric in ("dsc", "nsd"):
        parts.append(f"{metric.upper()} {percent(summary[metric]['mean'], summary[metric]['sd'])} %")
    parts.append(f"{summary['cases']} cases")
    if summary["failed"]:
        parts.append(f"{len(summary['failed'])} failed")
    return f"{summary['run']} on {summary['dataset']} ({summary['split']}): {', '.join(parts)}"
