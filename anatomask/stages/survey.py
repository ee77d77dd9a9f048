"""What is in a folder of raw scans: one Ray Data task per case, then tables, a contact sheet and files of facts.

A case that cannot be read is suspicious and the others go through; the exit code is 0 as long as one can be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from anatomask.cluster import running
from anatomask.config import SurveyConfig
from anatomask.data.datasets import RawCase, RawDataset, read_dataset
from anatomask.data.datasets.folder import looks_like_ct
from anatomask.data.memory import TooLarge
from anatomask.data.overview import (
    ClassRow,
    cases_csv,
    class_rows,
    classes_csv,
    document,
    images_of,
    intensities,
    orientations_of,
)
from anatomask.data.storage import Storage
from anatomask.data.survey import CaseFacts, read_case, survey_case
from anatomask.data.suspicions import Suspicion, suspicions
from anatomask.errors import UserError
from anatomask.reports.contact_sheet import Distribution, Plane, Tile, contact_sheet
from anatomask.reports.figures import best_slice
from anatomask.stages.mapping import mapped_within_memory
from anatomask.terminal.progress import progress_bar

REMEDY = "choose another --output"
WINDOW_HU = (-500.0, 500.0)
SHEET, FACTS, CASES, CLASSES = "contact-sheet.png", "survey.json", "cases.csv", "classes.csv"
MOST_CLASSES, MOST_SUSPICIONS = 40, 60
"""Rows that the terminal shows; the files hold all."""


def plan(config: SurveyConfig) -> list[tuple[str, str]]:
    """Rows of the dry run."""
    raw = _look(config)
    _output(config)
    return [
        ("source", f"{config.source} ({raw.reader})"),
        ("cases", _case_count(raw.cases)),
        ("channels", _channels(raw)),
        *(("note", remark) for remark in raw.remarks),
        ("output", ", ".join(f"{config.output}/{name}" for name in (SHEET, FACTS, CASES, CLASSES))),
    ]


def stage(config: SurveyConfig, *, overwrite: bool = False) -> int:
    """Look at every case, write and print what was found. A survey is always made anew."""
    raw = _look(config)
    out = _output(config)
    with running(config.cluster), progress_bar() as progress:
        cases = _facts(progress, raw)
        found = suspicions(raw, cases)
        if not images_of(cases):
            raise UserError(f"none of the {len(cases)} cases of {config.source} can be read; {cases[0].image_error}")
        tiles = _tiles(progress, chosen_cases(raw.cases, found, config.tiles), found)
    rows = class_rows(raw, cases)
    out.write_json(FACTS, {"source": config.source, **document(raw, cases, found)})
    out.write(CASES, cases_csv(cases, found).encode(errors="backslashreplace"))
    out.write(CLASSES, classes_csv(rows).encode())
    _draw(config, raw, cases, tiles, found)
    show(Console(), config, raw, cases, rows, found)
    return 0


def chosen_cases(cases: Sequence[RawCase], found: Sequence[Suspicion], most: int) -> list[RawCase]:
    """At most `most` cases: as many of the suspicious as there is room for, then others, spread evenly."""
    suspicious = {suspicion.case for suspicion in found}
    flagged = [index for index, raw in enumerate(cases) if raw.case in suspicious][:most]
    others = [index for index, raw in enumerate(cases) if raw.case not in suspicious]
    room = min(most - len(flagged), len(others))
    spread = [others[round(float(rank))] for rank in np.linspace(0, len(others) - 1, room)]
    return [cases[index] for index in (*flagged, *spread)]


def tile_of(raw: RawCase, memory: int | None = None) -> Tile:
    """Two slices of a case: where most of its labels are, else through the middle of what stands out.

    Raises:
        TooLarge: reading it takes more than `memory` bytes. Default: what the machine has free.
    """
    try:
        volumes = read_case(raw, memory)
    except TooLarge:
        raise
    except Exception:  # the facts say why
        return Tile(raw.case, ())
    image, label = volumes.images[0], volumes.label
    steps = tuple(slice(None, None, max(1, n // 128)) for n in image.shape)
    small = image[steps]
    low, high = (float(value) for value in np.percentile(small, (1, 99.5)))
    if label is not None and label.any():
        parts = label[steps]
        y, z = best_slice(parts.transpose(0, 2, 1)), best_slice(parts)
    else:
        bright = np.nonzero(small > low + 0.2 * (high - low))
        centres = [
            int(np.median(where)) if len(where) else n // 2 for where, n in zip(bright, small.shape, strict=True)
        ]
        y, z = centres[1:]
    y, z = y * (steps[1].step or 1), z * (steps[2].step or 1)
    r, a, s = volumes.spacing
    window = WINDOW_HU if looks_like_ct(small) else (low, high)
    whole = None if label is None else np.clip(label, 0, 255).astype(np.uint8)
    planes = (
        _plane(image[:, y], None if whole is None else whole[:, y], (r, s), window),
        _plane(image[:, :, z], None if whole is None else whole[:, :, z], (r, a), window),
    )
    return Tile(raw.case, planes, window)


def _plane(image: np.ndarray, label: np.ndarray | None, spacing: tuple[float, float], window: Sequence[float]) -> Plane:
    """A slice, cut to what is brighter than a twentieth of the window or labelled."""
    seen = image > window[0] + 0.05 * (window[1] - window[0])
    if label is not None:
        seen |= label > 0
    if not seen.any():
        return Plane(image, spacing, label)
    box = tuple(
        slice(max(int(where[0]) - 2, 0), int(where[-1]) + 3)
        for where in (np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0)))
    )
    return Plane(image[box], spacing, None if label is None else label[box])


def _look(config: SurveyConfig) -> RawDataset:
    return read_dataset(Path(config.source).absolute(), config.dataset, options=config.reader)


def _output(config: SurveyConfig) -> Storage:
    """The folder for the results. UserError where files of the same names are there that no survey wrote."""
    out = Storage(Path(config.output).absolute())
    facts = out.read_json(FACTS, REMEDY) if out.exists(FACTS) else {}
    if not (isinstance(facts, dict) and {"source", "reader", "cases"} <= facts.keys()):
        out.refuse_foreign((FACTS, CASES, CLASSES, SHEET), "survey", REMEDY)
    return out


def _facts(progress: Progress, raw: RawDataset) -> list[CaseFacts]:
    """The facts of all cases, in the data set's order."""
    work = partial(survey_case, schemes=raw.schemes, classes=dict(raw.class_names))
    # Closed before Ray is: its Data threads would otherwise start another Ray behind our back.
    with closing(mapped_within_memory(progress, "looking at the cases", raw.cases, work, _too_large)) as stream:
        facts = {one.case: one for one in stream}
    return [facts[one.case] for one in raw.cases]


def _too_large(raw: RawCase, error: TooLarge) -> CaseFacts:
    return CaseFacts(raw.case, raw.label is not None, image_error=str(error))


def _without_picture(raw: RawCase, error: TooLarge) -> Tile:
    return Tile(raw.case, ())


def _tiles(progress: Progress, chosen: Sequence[RawCase], found: Sequence[Suspicion]) -> list[Tile]:
    with closing(mapped_within_memory(progress, "drawing", chosen, tile_of, _without_picture)) as stream:
        tiles = {tile.case: tile for tile in stream}
    return [
        replace(tiles[one.case], alarms=tuple(suspicion.kind for suspicion in found if suspicion.case == one.case))
        for one in chosen
    ]


def _draw(
    config: SurveyConfig,
    raw: RawDataset,
    cases: Sequence[CaseFacts],
    tiles: Sequence[Tile],
    found: Sequence[Suspicion],
) -> None:
    distributions = [
        Distribution(name, *(merged.edges, merged.voxels))
        for index, name in enumerate(raw.channel_names)
        for merged in [intensities(cases, index)]
    ]
    suspicious = len({suspicion.case for suspicion in found})
    caption = (
        f"{config.source}: {len(tiles)} of {len(cases)} cases, {suspicious} suspicious. Coronal and axial slice, "
        "patient's right on the left, by the affine of each scan."
    )
    contact_sheet(tiles, distributions, raw.class_names, caption, Path(config.output) / SHEET)


def show(
    console: Console,
    config: SurveyConfig,
    raw: RawDataset,
    cases: Sequence[CaseFacts],
    rows: Sequence[ClassRow],
    found: Sequence[Suspicion],
) -> None:
    """Print what was found, within 80 columns."""
    console.print(_summary(config, raw, cases, found))
    if rows:
        console.print(_class_table(rows, sum(facts.label is not None for facts in cases)))
    if found:
        console.print(_suspicion_table(found))
    for name in (SHEET, FACTS, CASES, CLASSES):
        console.print(f"{config.output}/{name}", markup=False, highlight=False, soft_wrap=True)


def _summary(config: SurveyConfig, raw: RawDataset, cases: Sequence[CaseFacts], found: Sequence[Suspicion]) -> Table:
    images = images_of(cases)
    hu = sum(facts.channels[0].air >= 1e-3 for facts in images)
    table = Table(title=f"{config.source} ({raw.reader})", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("cases", f"{_case_count(raw.cases)}; {len(cases) - len(images)} cannot be read")
    table.add_row("channels", _channels(raw))
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


def _case_count(cases: Sequence[RawCase]) -> str:
    return f"{len(cases)}, of which {sum(one.label is not None for one in cases)} have labels"


def _channels(raw: RawDataset) -> str:
    return ", ".join(map(" as ".join, zip(raw.channel_names, raw.schemes, strict=True)))


def _range(triples: Sequence[Sequence[float]]) -> str:
    """The median per axis, and the smallest and largest where they differ."""
    values = np.array(triples, float)
    parts = [f"{median:.4g}" for median in np.median(values, axis=0)]
    text = " × ".join(parts)
    if (values == values[0]).all():
        return text
    spans = (f"{low:.4g}–{high:.4g}" for low, high in zip(values.min(axis=0), values.max(axis=0), strict=True))
    return f"{text} ({' × '.join(spans)})"


def _bars(voxels: Sequence[float], characters: int = 32) -> str:
    """A histogram in one line, of the logarithms, so that one peak of air does not hide the rest."""
    bins = np.array_split(np.asarray(voxels), characters)
    logs = np.log1p([part.sum() for part in bins])
    return "".join("▁▂▃▄▅▆▇█"[int(7 * value / max(logs.max(), 1e-9))] for value in logs)
