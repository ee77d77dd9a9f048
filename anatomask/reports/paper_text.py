"""The paper's tables as text: for the page, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from anatomask.evaluation.statistics import Interval
from anatomask.reports.evidence import points
from anatomask.reports.html_page import Cell, Column, HtmlTable, text_cell
from anatomask.reports.paper import Published
from anatomask.reports.paper_candidates import Ours, Place
from anatomask.reports.paper_tables import PaperRow, PaperTable
from anatomask.reports.tables import percent

NAMES = ("table", "row", "dataset", "network", "conditions", "metric")
HEADING = "# The paper's tables, scores in percent"
NUMBERS = (
    *("paper_mean_percent", "paper_sd_percent", "mean_fraction", "sd_fraction"),
    *("difference_fraction", "low_fraction", "high_fraction", "seeds"),
)


def page_table(table: PaperTable) -> HtmlTable:
    """Lay a table out: of each place and metric the published score, ours and the difference, then the seeds."""
    columns = [*map(Column, table.titles)]
    for place in table.places:
        of_paper = _is_published(table, place)
        where = f"{place.title}: " if len(table.places) > 1 else ""
        for metric in table.metrics:
            titles = ("paper", "ours", "difference [95\N{NO-BREAK SPACE}%]") if of_paper else ("ours",)
            columns += [Column(f"{where}{metric.upper()}, {title}", numeric=True) for title in titles]
        columns.append(Column(f"{where}seeds", numeric=True))
    missing: dict[tuple[str, ...], list[str]] = {}
    rows = []
    for row in table.rows:
        needed = tuple(dict.fromkeys(command for commands in row.commands.values() for command in commands))
        if needed:
            missing.setdefault(needed, []).append(", ".join(row.names))
        footnote = f"– ({list(missing).index(needed) + 1})" if needed else "–"
        cells = [text_cell(name) for name in row.names]
        for place in table.places:
            cells += _cells(table, row, place, footnote if place in row.commands else "–")
        rows.append(cells)
    makers = [(f"({number}) {'; '.join(names)}", lines) for number, (lines, names) in enumerate(missing.items(), 1)]
    return HtmlTable(columns, rows, table.title, table.notes, makers)


def paper_markdown(tables: Sequence[PaperTable]) -> str:
    """Format the tables as GitHub-flavoured Markdown, each with its notes and the commands for what is missing."""
    parts = [f"{HEADING}\n"]
    for table in tables:
        laid_out = page_table(table)
        lines = [
            [column.title for column in laid_out.columns],
            ["---:" if column.numeric else "---" for column in laid_out.columns],
            *([cell.text for cell in row] for row in laid_out.rows),
        ]
        parts.append(f"## {table.title}\n")
        parts.append("\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n")
        parts += [f"{note}\n" for note in laid_out.notes]
        for title, commands in laid_out.commands:
            parts.append("\n".join([f"{title}\n", "```sh", *commands, "```\n"]))
    return "\n".join(parts)


def paper_csv(tables: Sequence[PaperTable]) -> str:
    """Format every score that is published or ours as CSV, at full precision, with the commands for what is missing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*NAMES, *NUMBERS, "commands"])
    for table in tables:
        for row in table.rows:
            for place in table.places:
                for metric in table.metrics:
                    score, ours = row.published.get((place, metric)), row.ours.get(place)
                    if score or ours:
                        names = [table.number, ", ".join(row.names), place.dataset, place.network, place.conditions]
                        commands = " && ".join(row.commands.get(place, ()))
                        writer.writerow([*names, metric, *_numbers(score, ours, metric), commands])
    return text.getvalue()


def is_paper(text: bytes) -> bool:
    """Return whether a file is one that `paper_markdown` or `paper_csv` made."""
    return text.startswith((HEADING.encode(), ",".join(NAMES).encode()))


def _cells(table: PaperTable, row: PaperRow, place: Place, footnote: str) -> list[Cell]:
    """Format what a row has in a place."""
    ours = row.ours.get(place)
    cells = []
    for metric in table.metrics:
        score = row.published.get((place, metric))
        mean, sd = ours.scores.get(metric, (None, None)) if ours else (None, None)
        shown = Cell(percent(mean, sd) if ours else footnote, mean, dim=ours is None)
        if not _is_published(table, place):
            cells.append(shown)
            continue
        interval = _difference(score, ours, metric)
        cells += [
            Cell("–") if score is None else Cell(_published(score), score.mean, dim=True),
            shown,
            Cell(_shown_difference(score, mean, interval), _mean_difference(score, mean, interval)),
        ]
    return [*cells, Cell(str(ours.seeds), ours.seeds) if ours else Cell("–")]


def _numbers(score: Published | None, ours: Ours | None, metric: str) -> list[float | int | None]:
    mean, sd = ours.scores.get(metric, (None, None)) if ours else (None, None)
    interval = _difference(score, ours, metric)
    return [
        *((score.mean, score.sd) if score else (None, None)),
        *(mean, sd, _mean_difference(score, mean, interval)),
        *((interval.low, interval.high) if interval else (None, None)),
        ours.seeds if ours else None,
    ]


def _difference(score: Published | None, ours: Ours | None, metric: str) -> Interval | None:
    return ours.difference(metric, score.mean) if score and ours else None


def _mean_difference(score: Published | None, mean: float | None, interval: Interval | None) -> float | None:
    if interval is not None:
        return interval.mean
    return None if score is None or mean is None else mean - score.mean / 100


def _shown_difference(score: Published | None, mean: float | None, interval: Interval | None) -> str:
    difference = _mean_difference(score, mean, interval)
    if difference is None or interval is None:
        return "–" if difference is None else points(difference)
    return f"{points(interval.mean)} [{points(interval.low)}, {points(interval.high)}]"


def _published(score: Published) -> str:
    return percent(score.mean / 100, None if score.sd is None else score.sd / 100)


def _is_published(table: PaperTable, place: Place) -> bool:
    return any(place == known for row in table.rows for known, _ in row.published)
