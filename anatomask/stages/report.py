"""Report: tables of any number of evaluated runs (terminal, Markdown, CSV), overlays per data set, and one page of all.

Runs that differ by their fold, or by their seed and that of their pretraining, alone are one row. Rows are compared
with their twins from scratch. The folder holds:

    table.md, table.csv      the table
    paper.md, paper.csv      tables of the paper with our scores, where runs fit into them
    overlays-<data>.png      predictions on a slice of each case that is shown
    epochs-<data>.png        scores over the epochs of the pretraining, where runs have several
    masks-<run>.png          what each pretrained run hides of cases of its data
    differences-<data>.png   the median and the worst case, where the predictions differ most
    report.html              tables that sort, curves, a viewer of scans, and what made each run; it needs no network
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from anatomask.config import ReportConfig
from anatomask.data.addresses import public_address
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.reports.comparisons import twin_notes
from anatomask.reports.epochs import epochs_figure, points_by_method
from anatomask.reports.evaluated_runs import EvaluatedRun, read_run, runs_by_dataset
from anatomask.reports.figures import write_figure
from anatomask.reports.folds import pooled
from anatomask.reports.html_page import Page, PageFigure, Section, is_page, render_page
from anatomask.reports.masks import masked_cases, masks_caption, masks_figure, pretrained_header
from anatomask.reports.overlays import MOST_COLUMNS, draw_differences, draw_overlays, overlay_paths
from anatomask.reports.paper_candidates import candidates
from anatomask.reports.paper_tables import PaperTable, paper_tables
from anatomask.reports.paper_text import is_paper, page_table, paper_csv, paper_markdown
from anatomask.reports.provenance import Training, evaluation_commands, of_any_pretraining_seed, trainings_of
from anatomask.reports.result_tables import CSV, MARKDOWN, ResultTables
from anatomask.reports.sections import classes_section, course_section, run_details, runs_table, scores_section
from anatomask.reports.seeds import by_seed
from anatomask.reports.studies import study_png
from anatomask.reports.tables import by_dataset, is_csv_table
from anatomask.reports.viewer import ViewedCase, viewed_cases

PAPER = ("paper.md", "paper.csv")
PAGE = "report.html"
DIFFERENCES = "differences"
"""Kind of the figures of where predictions differ."""
MASKS = "masks"
"""Kind of the figures of what pretrained runs hide."""
EPOCHS = "epochs"
"""Kind of the figures of scores over the epochs of the pretraining."""


@dataclass(frozen=True)
class Results:
    """Everything that is known of the runs of a report."""

    runs: Sequence[EvaluatedRun]
    """Runs, those of all folds as one."""
    tables: ResultTables
    twins: Sequence[str]
    """Sentences about rows that lack a twin from scratch."""
    origins: Sequence[Sequence[Training]]
    """Trainings that the runs of each arm come from."""
    paper: Sequence[PaperTable]
    """Tables of the paper that are shown."""
    sweeps: Sequence[PageFigure]
    """Figure of each sweep."""

    @property
    def shown(self) -> dict[str, list[EvaluatedRun]]:
        """Runs whose predictions are shown, by data set: the first of each row where there are many."""
        firsts = runs_by_dataset([arm[0] for arm in self.tables.arms])
        members = runs_by_dataset(self.runs)
        return {name: firsts[name] if len(runs) > MOST_COLUMNS else runs for name, runs in members.items()}


def plan(config: ReportConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run."""
    runs = read_results(config).runs
    _output(config, runs)
    masks = overlay_paths(Path(config.out), config.pretrained, MASKS).values()
    return [
        *(("run", f"{run.folder}: {run.summary['dataset']}, {run.summary['cases']} cases") for run in runs),
        ("table", f"{config.out}/{MARKDOWN}, {config.out}/{CSV}"),
        *(("figure", str(path)) for path in overlay_paths(Path(config.out), runs_by_dataset(runs)).values()),
        *(("masks", str(path)) for path in masks),
        ("page", f"{config.out}/{PAGE}, with up to {config.viewer_mb:g} MB of scans"),
    ]


def stage(
    config: ReportConfig, *, overwrite: bool = False, makers: Mapping[tuple[str, str], str] = MappingProxyType({})
) -> int:
    """Write and print the table, then draw the figures and write the page. A report is always written anew.

    `makers` is that of `paper_tables`.
    """
    results = read_results(config, makers)
    out = _output(config, results.runs)
    results.tables.write(out, results.twins)
    console = Console()
    results.tables.show(console, results.twins)
    written = [MARKDOWN, CSV]
    for name in PAPER if not results.paper else ():
        out.clear(name)  # of an earlier report
    if results.paper:
        out.write(PAPER[0], paper_markdown(results.paper).encode())
        out.write(PAPER[1], paper_csv(results.paper).encode())
        written += PAPER
    predictions, masks = _overlays(config, results, console), _masks(config, console)
    epochs = _epochs(config, results)
    out.write(PAGE, render_page(_page(config, results, predictions, masks, epochs, console)).encode())
    for name in (*written, *(path.name for path in (*predictions, *masks, *epochs)), PAGE):
        console.print(str(Path(config.out) / name), markup=False, highlight=False, soft_wrap=True)
    return 0


def read_results(config: ReportConfig, makers: Mapping[tuple[str, str], str] = MappingProxyType({})) -> Results:
    """Read the runs of a report and compare them.

    Raises:
        UserError: a run was not evaluated, its results are damaged, a pretrained run has no weights, or a sweep no
            figure; the message names the file.
    """
    runs = pooled([read_run(folder) for folder in config.runs])
    tables = ResultTables.of(by_seed([of_any_pretraining_seed(run) for run in runs]))
    origins = [trainings_of(arm) for arm in tables.arms]
    paper = paper_tables(candidates(tables.arms, origins), config.tables, makers)
    for run in config.pretrained:
        pretrained_header(run)
    sweeps = [PageFigure(folder, study_png(folder), f"Trials of {folder}.") for folder in config.sweeps]
    return Results(runs, tables, list(twin_notes(tables.arms, tables.rows)), origins, paper, sweeps)


def _overlays(config: ReportConfig, results: Results, console: Console) -> dict[Path, str]:
    """Draw the figures of each data set whose scans can be read; return the caption of each file."""
    members, drawn = results.shown, {}
    of_rows = runs_by_dataset([arm[0] for arm in results.tables.arms])
    differences = overlay_paths(Path(config.out), members, DIFFERENCES)
    for dataset, path in overlay_paths(Path(config.out), members).items():
        try:
            draw_overlays(path, members[dataset][:MOST_COLUMNS], config.cases)
            drawn[path] = f"Predictions on {dataset}{_left_out(members[dataset])}."
            if len(of_rows[dataset]) > 1:
                draw_differences(differences[dataset], of_rows[dataset][:MOST_COLUMNS])
                differing = f"Where the predictions of the rows on {dataset} differ most{_left_out(of_rows[dataset])}."
                drawn[differences[dataset]] = differing
        except UserError as error:
            console.print(f"No figure of {dataset}: {error}", markup=False, highlight=False, style="yellow")
    return drawn


def _left_out(runs: Sequence[EvaluatedRun]) -> str:
    """Say how many of the runs a figure shows, where it has no room for all."""
    return f" (the first {MOST_COLUMNS} of {len(runs)})" if len(runs) > MOST_COLUMNS else ""


def _masks(config: ReportConfig, console: Console) -> dict[Path, str]:
    """Draw the masks of each pretrained run; return the caption of each file."""
    drawn = {}
    for run, path in overlay_paths(Path(config.out), config.pretrained, MASKS).items():
        try:
            cases, dataset = masked_cases(run, config.cases)
        except UserError as error:
            console.print(f"No masks of {run}: {error}", markup=False, highlight=False, style="yellow")
            continue
        write_figure(masks_figure(cases, dataset.class_names), path)
        drawn[path] = masks_caption(run, cases)
    return drawn


def _epochs(config: ReportConfig, results: Results) -> dict[Path, str]:
    """Draw the DSC over the epochs of the pretraining, where runs have several; return the caption of each file."""
    arms, drawn = results.tables.arms, {}
    members = by_dataset([(arm[0].summary["dataset"], arm[0].summary["data"]) for arm in arms])
    for dataset, path in overlay_paths(Path(config.out), members, EPOCHS).items():
        chosen = members[dataset]
        points = points_by_method([arms[one] for one in chosen], [results.origins[one] for one in chosen])
        if points:
            write_figure(epochs_figure(points, dataset), path)
            drawn[path] = (
                f"{dataset}: mean DSC of finetuned networks over the epochs of their pretraining; bands are the "
            )
            drawn[path] += "SD over runs, each of which is a dot."
    return drawn


def _page(
    config: ReportConfig,
    results: Results,
    predictions: dict[Path, str],
    masks: dict[Path, str],
    epochs: dict[Path, str],
    console: Console,
) -> Page:
    """Compose the page."""
    tables = results.tables
    trainings = list({one.folder.resolve(): one for of_arm in results.origins for one in of_arm}.values())
    sections = [
        scores_section(tables.rows, tables.bold, tables.comparisons, [*tables.remarks, *results.twins]),
        Section("The paper's tables", [page_table(table) for table in results.paper]) if results.paper else None,
        classes_section(tables.arms, tables.rows),
        _figures("Predictions", predictions),
        _figures("Masks", masks),
        _figures("Pretraining epochs", epochs),
        course_section(trainings),
        Section("Sweeps", figures=results.sweeps) if results.sweeps else None,
    ]
    report = ["anatomask", "report", "--runs", *map(public_address, config.runs), "--out", config.out]
    commands = [*evaluation_commands(results.runs), shlex.join(report)]
    return Page(
        title="AnatoMask report",
        sections=[section for section in sections if section is not None],
        cases=_scans(config, results, console),
        runs=runs_table(trainings) if trainings else None,
        details=run_details(trainings, commands),
    )


def _figures(title: str, files: dict[Path, str]) -> Section | None:
    """Show figures, given as file and caption; None without any."""
    shown = [PageFigure(caption, path.read_bytes(), caption) for path, caption in files.items()]
    return Section(title, figures=shown) if shown else None


def _scans(config: ReportConfig, results: Results, console: Console) -> list[ViewedCase]:
    """Make the cases of the viewer, of each data set whose scans can be read."""
    members = results.shown
    found = []
    for dataset, runs in members.items() if config.viewer_mb else ():
        try:
            found += viewed_cases(runs, config.cases, 1e6 * config.viewer_mb / len(members), dataset)
        except UserError as error:
            console.print(f"No scans of {dataset} in {PAGE}: {error}", markup=False, highlight=False, style="yellow")
    return found


def _output(config: ReportConfig, runs: Sequence[EvaluatedRun]) -> Storage:
    """Open the folder for the report.

    Raises:
        UserError: it holds files of the same names that no report wrote.
    """
    out = Storage(Path(config.out).absolute())
    earlier = out.exists(CSV) and is_csv_table(out.read(CSV))
    datasets = runs_by_dataset(runs)
    kinds = (("overlays", datasets), (DIFFERENCES, datasets), (MASKS, config.pretrained), (EPOCHS, datasets))
    figures = [path.name for kind, of in kinds for path in overlay_paths(Path(config.out), of, kind).values()]
    later = [  # that older versions did not write, whose reports are known by their table alone
        *(name for name in PAPER if not (out.exists(name) and is_paper(out.read(name)))),
        *([] if out.exists(PAGE) and is_page(out.read(PAGE)) else [PAGE]),
    ]
    out.refuse_foreign(later if earlier else (CSV, MARKDOWN, *PAPER, *figures, PAGE), "report", "choose another --out")
    return out
