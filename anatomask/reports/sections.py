"""Sections of a report's page: its tables of scores, comparisons, classes and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from anatomask.reports.comparisons import RowComparison, comparison_cells, comparison_titles, row_label
from anatomask.reports.curves import as_png, cases_figure, course_figures
from anatomask.reports.html_page import Cell, Column, HtmlTable, PageFigure, RunDetails, Section, text_cell
from anatomask.reports.provenance import Training, cost, hours
from anatomask.reports.seeds import Arm, averaged
from anatomask.reports.tables import (
    MEASURES,
    METRICS,
    NAME_TITLES,
    Row,
    by_dataset,
    measure_text,
    percent,
    row_names,
    seeds_text,
)


def scores_section(
    rows: Sequence[Row],
    bold: Mapping[str, set[int]],
    made: Sequence[RowComparison],
    notes: Sequence[str],
) -> Section:
    """Show the scores of all rows, and the comparisons between them."""
    measures = [name for name in MEASURES if any(name in row.measures for row in rows)]
    columns = [
        *(Column(title) for title in NAME_TITLES),
        *(Column(title, numeric=True) for title in ("Seeds (SD)", "DSC [%]", "NSD [%]", "Cases")),
        *(Column(MEASURES[name][0], numeric=True) for name in measures),
    ]
    table = [
        [
            *(text_cell(name) for name in row_names(row, rows)),
            Cell(seeds_text(row), max(len(row.seeds), 1)),
            *(
                Cell(percent(*getattr(row, metric)), getattr(row, metric)[0], strong=index in bold[metric])
                for metric in METRICS
            ),
            Cell(str(row.cases), row.cases),
            *(Cell(measure_text(row, name), row.measures.get(name, (None,))[0]) for name in measures),
        ]
        for index, row in enumerate(rows)
    ]
    tables = [HtmlTable(columns, table)]
    if made:
        titles = [Column(title, numeric=0 < number < 5) for number, title in enumerate(comparison_titles())]
        tables.append(HtmlTable(titles, [_comparison(one, rows) for one in made], "Comparisons"))
    return Section("Scores", tables, notes=notes)


def classes_section(arms: Sequence[Arm], rows: Sequence[Row]) -> Section:
    """Show the DSC of each class in each row, and of each case, a table and a figure per data set."""
    tables, figures = [], []
    groups = by_dataset([(row.dataset, row.data) for row in rows])
    for dataset, members in groups.items():
        names = {row_label(index, rows): arms[index] for index in members}
        title = dataset if len(groups) > 1 else ""
        tables.append(_classes(names, title))
        scores = {name: averaged([run.scores for run in arm]) for name, arm in names.items()}
        figure = cases_figure(
            {name: list(values.values()) for name, values in scores.items() if values},
            f"DSC of each case [%], {dataset}",
        )
        caption = f"{dataset}: each dot is a case (mean over its classes and over seeds), each line a mean."
        figures.append(PageFigure(f"DSC of each case of {dataset}", as_png(figure), caption))
    return Section("Classes and cases", tables, figures)


def course_section(trainings: Sequence[Training]) -> Section | None:
    """Show the curves of all trainings; None where none were recorded."""
    figures = [
        PageFigure(title, as_png(figure), f"{title}: neighbouring updates are averaged.")
        for title, figure in course_figures(trainings).items()
    ]
    return Section("Trainings", figures=figures) if figures else None


def runs_table(trainings: Sequence[Training]) -> HtmlTable:
    """List the trainings with seed, cost and versions."""
    texts = ("Run", "Verb", "Data")
    numbers = ("Seed", "Updates", "Time", "Workers")
    columns = [
        *map(Column, texts),
        *(Column(title, numeric=True) for title in numbers),
        *map(Column, ("On", "Version")),
    ]
    rows = [
        [
            text_cell(one.name),
            text_cell(one.verb),
            text_cell(str(one.settings.get("data", "–"))),
            Cell("–" if one.seed is None else str(one.seed), one.seed),
            Cell(str(one.measured.updates), one.measured.updates),
            Cell(hours(one.measured.seconds) if one.measured.seconds else "–", one.measured.seconds or None),
            Cell(str(one.workers), one.workers),
            text_cell(one.gpu or "CPU"),
            text_cell(_version(one)),
        ]
        for one in trainings
    ]
    return HtmlTable(columns, rows, notes=[note] if (note := cost(trainings)) else [])


def run_details(trainings: Sequence[Training], evaluations: Sequence[str]) -> list[RunDetails]:
    """Tell each training's command, versions and settings, then the commands of the evaluations."""
    details = [
        RunDetails(
            one.name, one.command, ", ".join(f"{name} {value}" for name, value in one.versions.items()), one.text
        )
        for one in trainings
    ]
    return [*details, RunDetails("Evaluations and this report", "\n".join(evaluations))]


def _comparison(one: RowComparison, rows: Sequence[Row]) -> list[Cell]:
    made = one.comparison
    keys = (made.interval.seeds, made.interval.mean, made.p, made.p_holm)
    name, *numbers, verdict = comparison_cells(one, rows)
    decided = made.verdict in ("better", "worse")
    return [
        text_cell(f"{name}, {one.metric.upper()}"),
        *(Cell(text, key) for text, key in zip(numbers, keys, strict=True)),
        text_cell(verdict, strong=decided, dim=not decided),
    ]


def _classes(names: Mapping[str, Arm], title: str) -> HtmlTable:
    """Tabulate the DSC of each class in each arm, mean over the cases that have it."""
    classes: dict[str, dict[str, list[float]]] = {}
    for name, arm in names.items():
        for run in arm:
            for score in run.by_class:
                of_class = classes.setdefault(score.class_name, {})
                if not np.isnan(score.dsc):
                    of_class.setdefault(name, []).append(score.dsc)
    rows = [
        [
            text_cell(class_name),
            *(
                Cell(percent(float(np.mean(scores[name])), None), float(np.mean(scores[name])))
                if name in scores
                else Cell("–")
                for name in names
            ),
        ]
        for class_name, scores in classes.items()
    ]
    note = "DSC [%] of each class, mean over the cases that have it, and over seeds."
    return HtmlTable([Column("Class"), *(Column(name, numeric=True) for name in names)], rows, title, [note])


def _version(training: Training) -> str:
    known = training.versions
    commit = known.get("commit", "")[:9]
    return " ".join(filter(None, (known.get("anatomask"), commit)))
