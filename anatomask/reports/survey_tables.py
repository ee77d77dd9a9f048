"""Tables of a survey in the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anatomask.data.datasets import RawCase, RawDataset
from anatomask.data.overview import ClassRow, images_of, intensities, orientations_of
from anatomask.data.survey import CaseFacts
from anatomask.data.suspicions import Suspicion

SHEET, FACTS, CASES, CLASSES = "contact-sheet.png", "survey.json", "cases.csv", "classes.csv"
"""Names of the files of a survey."""
MOST_CLASSES, MOST_SUSPICIONS = 40, 60
"""Rows that the terminal shows; the files hold all."""


def show_survey(
    console: Console,
    source: str,
    output: str,
    raw: RawDataset,
    cases: Sequence[CaseFacts],
    rows: Sequence[ClassRow],
    found: Sequence[Suspicion],
) -> None:
    """Print the results within 80 columns.

    Args:
        console: console to print to.
        source: folder of the scans.
        output: folder in which the files of the survey lie.
        raw: the data set.
        cases: facts of all its cases.
        rows: rows of the table of classes.
        found: suspicions.
    """
    console.print(_summary(source, raw, cases, found))
    if rows:
        console.print(_class_table(rows, sum(facts.label is not None for facts in cases)))
    if found:
        console.print(_suspicion_table(found))
    for name in (SHEET, FACTS, CASES, CLASSES):
        console.print(f"{output}/{name}", markup=False, highlight=False, soft_wrap=True)


def _summary(source: str, raw: RawDataset, cases: Sequence[CaseFacts], found: Sequence[Suspicion]) -> Table:
    images = images_of(cases)
    hu = sum(facts.channels[0].air >= 1e-3 for facts in images)
    table = Table(title=f"{source} ({raw.reader})", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("cases", f"{case_count(raw.cases)}; {len(cases) - len(images)} cannot be read")
    table.add_row("channels", channels(raw))
    if empty := sum(not facts.label.classes for facts in cases if facts.label is not None):
        table.add_row("empty labels", f"{empty} of {sum(facts.label is not None for facts in cases)} label no class")
    table.add_row("CT by its values", f"{hu} of {len(images)} cases (air at -1000 HU)")
    table.add_row("voxels", _range([facts.shape for facts in images]))
    table.add_row("spacing", f"{_range([facts.spacing for facts in images])} mm")
    table.add_row("stored as", ", ".join(f"{code} ({n})" for code, n in orientations_of(cases).items()))
    for index, name in enumerate(raw.channel_names):
        merged = intensities(cases, index)
        table.add_row(f"intensities {name}", f"{merged.edges[0]:.4g} {_bars(merged.voxels)} {merged.edges[-1]:.4g}")
    for remark in raw.remarks:
        table.add_row("note", remark)
    suspicious = {suspicion.case for suspicion in found}
    kinds = Counter(kind for _, kind in dict.fromkeys((suspicion.case, suspicion.kind) for suspicion in found))
    named = ": " + ", ".join(f"{kind} ({n})" for kind, n in kinds.items()) if kinds else ""
    table.add_row("suspicious", f"{len(suspicious)} cases{named}", style="bold red" if suspicious else "green")
    return table


def _class_table(rows: Sequence[ClassRow], labelled: int) -> Table:
    table = Table(title=f"Classes of {labelled} labelled cases", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("id", justify="right")
    table.add_column("class", overflow="fold")
    for title in ("cases", "median ml", "smallest", "largest"):
        table.add_column(title, justify="right")
    for row in rows[:MOST_CLASSES]:
        volumes = (f"{ml:.4g}" for ml in (row.median_ml, row.minimum_ml, row.maximum_ml))
        table.add_row(str(row.id), row.name, str(row.cases), *volumes)
    if len(rows) > MOST_CLASSES:
        table.add_row("", f"… {len(rows) - MOST_CLASSES} more in {CLASSES}")
    return table


def _suspicion_table(found: Sequence[Suspicion]) -> Table:
    table = Table(title="Suspicious cases", title_justify="left", show_lines=True)
    table.add_column("case", style="bold", overflow="fold", max_width=20)
    table.add_column("what", overflow="fold", max_width=14, style="red")
    table.add_column("why, and what to do", overflow="fold")
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for one in found:
        reasons.setdefault((one.case, one.kind, one.remedy), []).append(one.reason)
    for (case, kind, remedy), several in list(reasons.items())[:MOST_SUSPICIONS]:
        why = "\n".join(several)
        table.add_row(*(Text(cell) for cell in (case, kind, f"{why}\n→ {remedy}")))
    if len(reasons) > MOST_SUSPICIONS:
        table.add_row("…", "", f"{len(reasons) - MOST_SUSPICIONS} more in {CASES}")
    return table


def case_count(cases: Sequence[RawCase]) -> str:
    """Format the number of cases, and of those with labels."""
    return f"{len(cases)}, of which {sum(one.label is not None for one in cases)} have labels"


def channels(raw: RawDataset) -> str:
    """List the channels with their normalisation schemes."""
    return ", ".join(map(" as ".join, zip(raw.channel_names, raw.schemes, strict=True)))


def _range(triples: Sequence[Sequence[float]]) -> str:
    """Format the median per axis, and the smallest and largest where they differ."""
    values = np.array(triples, float)
    parts = [f"{median:.4g}" for median in np.median(values, axis=0)]
    text = " × ".join(parts)
    if (values == values[0]).all():
        return text
    spans = (f"{low:.4g}–{high:.4g}" for low, high in zip(values.min(axis=0), values.max(axis=0), strict=True))
    return f"{text} ({' × '.join(spans)})"


def _bars(voxels: Sequence[float], characters: int = 32) -> str:
    """Format a histogram in one line, on a logarithmic scale, so that one peak of air does not hide the rest."""
    bins = np.array_split(np.asarray(voxels), characters)
    logs = np.log1p([part.sum() for part in bins])
    return "".join("▁▂▃▄▅▆▇█"[int(7 * value / max(logs.max(), 1e-9))] for value in logs)
