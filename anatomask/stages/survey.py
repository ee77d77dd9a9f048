"""Survey of a folder of raw scans: one Ray Data task per case, then tables, a contact sheet and files of facts.

A case that cannot be read is listed as suspicious; the exit code is 0 as long as one case can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from anatomask.cluster import running
from anatomask.config import SurveyConfig
from anatomask.data.datasets import RawCase, RawDataset, read_dataset
from anatomask.data.memory import TooLarge
from anatomask.data.overview import cases_csv, class_rows, classes_csv, document, images_of
from anatomask.data.preprocess import Grid, planned_spacing, target_shape
from anatomask.data.source import planning_cases
from anatomask.data.storage import Storage
from anatomask.data.survey import CaseFacts, survey_case
from anatomask.data.suspicions import Suspicion, suspicions
from anatomask.errors import UserError
from anatomask.reports.contact_sheet import Tile
from anatomask.reports.survey_pictures import chosen_cases, draw_sheet, tile_of
from anatomask.reports.survey_tables import CASES, CLASSES, FACTS, SHEET, case_count, channels, show_survey
from anatomask.stages.mapping import mapped_within_memory
from anatomask.stages.suggestions import after_survey
from anatomask.terminal.progress import progress_shown

REMEDY = "choose another --output"


def plan(config: SurveyConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run."""
    raw = _look(config)
    _output(config)
    return [
        ("source", f"{config.source} ({raw.reader})"),
        ("cases", case_count(raw.cases)),
        ("channels", channels(raw)),
        *(("note", remark) for remark in raw.remarks),
        ("output", ", ".join(f"{config.output}/{name}" for name in (SHEET, FACTS, CASES, CLASSES))),
    ]


def stage(config: SurveyConfig, *, overwrite: bool = False) -> int:
    """Examine every case; write and print what was found. A survey is always made anew."""
    raw = _look(config)
    out = _output(config)
    with running(config.cluster), progress_shown() as progress:
        cases = _facts(progress, raw)
        found = suspicions(raw, cases)
        if not images_of(cases):
            raise UserError(f"none of the {len(cases)} cases of {config.source} can be read; {cases[0].image_error}")
        tiles = _tiles(progress, chosen_cases(raw.cases, found, config.tiles), found)
    rows = class_rows(raw, cases)
    out.write_json(FACTS, {"source": config.source, **document(raw, cases, found)})
    out.write(CASES, cases_csv(cases, found).encode(errors="backslashreplace"))
    out.write(CLASSES, classes_csv(rows).encode())
    draw_sheet(Path(config.output) / SHEET, config.source, raw, cases, tiles, found)
    grids = [Grid(facts.shape, facts.spacing) for facts in images_of(cases)]
    spacing = raw.spacing or _planned(raw, cases)
    shapes = [target_shape(grid.shape, grid.spacing, spacing) for grid in grids]
    show_survey(Console(), config.source, config.output, raw, cases, rows, found)
    name = Path(config.source).absolute().name
    print(*after_survey(config.source, spacing, shapes, name, config.dataset, config.reader), sep="\n")
    return 0


def _planned(raw: RawDataset, cases: Sequence[CaseFacts]) -> tuple[float, float, float]:
    """Plan the voxel size that `prepare` does."""
    planning = {one.case for one in planning_cases(raw)}
    chosen = images_of([facts for facts in cases if facts.case in planning]) or images_of(cases)
    return planned_spacing([Grid(facts.shape, facts.spacing) for facts in chosen])[0]


def _look(config: SurveyConfig) -> RawDataset:
    return read_dataset(Path(config.source).absolute(), config.dataset, options=config.reader)


def _output(config: SurveyConfig) -> Storage:
    """Open the folder for the results.

    Raises:
        UserError: it holds files of the same names that no survey wrote.
    """
    out = Storage(Path(config.output).absolute())
    facts = out.read_json(FACTS, REMEDY) if out.exists(FACTS) else {}
    if not (isinstance(facts, dict) and {"source", "reader", "cases"} <= facts.keys()):
        out.refuse_foreign((FACTS, CASES, CLASSES, SHEET), "survey", REMEDY)
    return out


def _facts(progress: Progress, raw: RawDataset) -> list[CaseFacts]:
    """Collect the facts of all cases, in the data set's order."""
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
