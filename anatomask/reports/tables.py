"""Table of any number of evaluated runs: for the terminal, as Markdown, as CSV.

Tables show percent, mean ± SD over cases; the CSV holds fractions, as the runs' own files do.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from anatomask.reports.paper import published_note

METRICS = ("dsc", "nsd")
NAME_TITLES = ("Method", "Start", "Data set")
TRAIN = "train"
"""Split whose cases networks are trained on."""
CAPTION = "Mean ± SD over cases; a case's score is the mean over the classes present in it."
CAPTION_SEEDS = "Scores of a case are averaged over seeds; behind their number, SD of the seeds' mean DSC in points."
MEASURES = {
    "hd95_mm": ("HD95 [mm]", 1),
    "lesion_f1": ("Lesion F1 [%]", 100),
    "false_positive_ml": ("False positives [mL]", 1),
    "false_negative_ml": ("False negatives [mL]", 1),
    "nsd_1mm": ("NSD at 1 mm [%]", 100),
    "nsd_2mm": ("NSD at 2 mm [%]", 100),
}
"""Measures beside DSC and NSD: title and factor, by the name in `summary.json`."""


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
    measures: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Mean and SD over cases of those `MEASURES` that were computed."""
    absent: str = "totalsegmentator"
    """Rule for the classes that a case's reference lacks."""
    inference: str = ""
    """How windows slid and were mirrored; empty where it is not known."""
    seeds: tuple[int, ...] = ()
    """Seeds of the runs that make up this row; empty where they are not known."""
    sd_over_seeds: Mapping[str, float] = field(default_factory=dict)
    """SD of the runs' mean DSC and NSD, for several seeds."""

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
            measures={name: (summary[name]["mean"], summary[name]["sd"]) for name in MEASURES if name in summary},
            absent=summary.get("absent", "totalsegmentator"),
            inference=str(sorted((summary.get("inference") or {}).items()) or ""),
        )


def terminal_table(rows: Sequence[Row], bold: Mapping[str, set[int]] | None = None) -> Table:
    """Build a rich table that fits 80 columns; `bold` rows of each metric stand out. Default: `best_runs`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in (*NAME_TITLES, *_number_titles(rows)):
        numeric = title not in NAME_TITLES
        table.add_column(title, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    bold = best_runs(rows) if bold is None else bold
    for index, row in enumerate(rows):
        scores = [
            Text(percent(*getattr(row, metric)), style="bold" if index in bold[metric] else "") for metric in METRICS
        ]
        table.add_row(*map(Text, row_names(row, rows)), seeds_text(row), *scores, str(row.cases))
    return table


def markdown_table(rows: Sequence[Row], bold: Mapping[str, set[int]] | None = None) -> str:
    """Format the same table as GitHub-flavoured Markdown, with the measures beside DSC and NSD."""
    measures = [name for name in MEASURES if any(name in row.measures for row in rows)]
    titles = [*NAME_TITLES, *_number_titles(rows), *(MEASURES[name][0] for name in measures)]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * 3}{'---:|' * (len(titles) - 3)}"]
    bold = best_runs(rows) if bold is None else bold
    for index, row in enumerate(rows):
        scores = [
            f"**{percent(*getattr(row, metric))}**" if index in bold[metric] else percent(*getattr(row, metric))
            for metric in METRICS
        ]
        names = [name.replace("|", "\\|") for name in row_names(row, rows)]
        others = [measure_text(row, name) for name in measures]
        lines.append(f"| {' | '.join([*names, seeds_text(row), *scores, str(row.cases), *others])} |")
    return "\n".join([*lines, ""])


def measures_in_words(rows: Sequence[Row]) -> list[str]:
    """Tell the measures beside DSC and NSD, for which a table of 80 columns has no room, in a sentence each."""
    sentences = []
    for name, (title, _) in MEASURES.items():
        known = [f"{row_names(row, rows)[0]} {measure_text(row, name)}" for row in rows if name in row.measures]
        if known:
            sentences.append(f"{title}: {', '.join(known)}.")
    return sentences


NAMES = ("run", "method", "initialisation", "network", "train_fraction", "dataset", "split", "cases", "failed")
SCORES = ("dsc_mean_fraction", "dsc_sd_fraction", "nsd_mean_fraction", "nsd_sd_fraction")
LATER = ("folds", "seeds", "dsc_sd_over_seeds_fraction", "nsd_sd_over_seeds_fraction")
"""Columns of the CSV table; `LATER` and mean and SD of each of `MEASURES` came later."""


def is_csv_table(text: bytes) -> bool:
    """Return whether a file is one that `csv_table` made."""
    return text.startswith(",".join((*NAMES, *SCORES)).encode())


def csv_table(rows: Sequence[Row]) -> str:
    """Format everything known of each run as CSV, scores as fractions at full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*NAMES, *SCORES, *LATER, *(f"{name}_{part}" for name in MEASURES for part in ("mean", "sd"))])
    for row in rows:
        known = [*(getattr(row, name) for name in NAMES), *row.dsc, *row.nsd]
        lists = [" ".join(map(str, numbers)) for numbers in (row.folds, row.seeds)]
        seeds = [row.sd_over_seeds.get(metric) for metric in METRICS]
        measures = [part for name in MEASURES for part in row.measures.get(name, (None, None))]
        writer.writerow([*known, *lists, *seeds, *measures])
    return text.getvalue()


def notes(rows: Sequence[Row]) -> list[str]:
    """List what a reader needs to trust the table: how scores are averaged, NSD tolerances, incomparable rows."""
    sentences = [CAPTION, *([CAPTION_SEEDS] if any(row.sd_over_seeds for row in rows) else [])]
    for dataset, members in by_dataset([(row.dataset, row.data) for row in rows]).items():
        here = [rows[index] for index in members]
        sentences.append(f"{dataset}: NSD at {_tolerance(here[0].nsd_tolerance_mm)}, split {here[0].split}.")
        if any(row.split == TRAIN for row in here):
            sentences.append(f"{dataset}: {TRAIN} is for training on; its scores say nothing of new scans.")
        differing = in_what_differ(here)
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
    older = [row.run for row in rows if "hd95_mm" not in row.measures]
    if older and len(older) < len(rows):
        sentences.append(f"Without HD95, not asked for or evaluated by an older version: {', '.join(older)}.")
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
        if in_what_differ([rows[index] for index in members]):
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


def in_what_differ(rows: Sequence[Row]) -> list[str]:
    """List in what the scoring of rows of one data set differs."""
    kinds: dict[str, set[Any]] = {
        "NSD tolerances": {_tolerance(row.nsd_tolerance_mm) for row in rows},
        "splits": {row.split for row in rows},
        "classes": {row.classes for row in rows},
        "cases": {(row.cases, row.case_names) for row in rows},
        "rules for absent classes": {row.absent for row in rows},
        "windows or mirroring": {row.inference for row in rows if row.inference},
    }
    return [name for name, values in kinds.items() if len(values) > 1]


def row_names(row: Row, rows: Iterable[Row]) -> tuple[str, str, str]:
    """Format the three text cells, with the share of labels where runs differ in it, and the number of folds."""
    method = row.method
    if row.folds:
        method += f", {len(row.folds)} of {row.of_folds} folds" if row.missing else f", {len(row.folds)} folds"
    if row.train_fraction is not None and len({other.train_fraction for other in rows}) > 1:
        method += f", {100 * row.train_fraction:.3g} % of labels"
    return method, row.initialisation, row.dataset


def _number_titles(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return the titles of the columns of numbers."""
    return ("Seeds (SD)" if any(row.sd_over_seeds for row in rows) else "Seeds", "DSC [%]", "NSD [%]", "Cases")


def seeds_text(row: Row) -> str:
    """Format the number of seeds with the SD of their mean DSC in points."""
    spread = row.sd_over_seeds.get("dsc")
    return f"{max(len(row.seeds), 1)}" + ("" if spread is None else f" (± {100 * spread:.1f})")


def measure_text(row: Row, name: str) -> str:
    """Format mean and SD of a measure beside DSC and NSD; "–" where there is none."""
    mean, sd = row.measures.get(name, (None, None))
    factor = MEASURES[name][1] / 100
    return percent(None if mean is None else factor * mean, None if sd is None else factor * sd)


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
