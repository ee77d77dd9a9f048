"""Report: a table of any number of evaluated runs (terminal, Markdown, CSV), and overlays per data set.

Runs that differ by their fold, or by their seed, alone are one row. Rows are compared with their twins from scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from anatomask.config import ReportConfig
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.reports.comparisons import (
    compare_rows,
    comparison_notes,
    comparisons_markdown,
    comparisons_table,
    not_worse,
    twin_notes,
)
from anatomask.reports.evaluated_runs import EvaluatedRun, read_run, runs_by_dataset
from anatomask.reports.folds import pooled
from anatomask.reports.overlays import draw_overlays, overlay_paths
from anatomask.reports.seeds import by_seed, row_of
from anatomask.reports.tables import (
    best_runs,
    csv_table,
    is_csv_table,
    markdown_table,
    measures_in_words,
    notes,
    terminal_table,
)

TABLE = "table.csv"


def plan(config: ReportConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run."""
    runs = pooled([read_run(folder) for folder in config.runs])
    _output(config, runs)
    return [
        *(("run", f"{run.folder}: {run.summary['dataset']}, {run.summary['cases']} cases") for run in runs),
        ("table", f"{config.out}/table.md, {config.out}/table.csv"),
        *(("figure", str(path)) for path in overlay_paths(Path(config.out), runs_by_dataset(runs)).values()),
    ]


def stage(config: ReportConfig, *, overwrite: bool = False) -> int:
    """Write and print the table, then draw the figures. A report is always written anew."""
    runs = pooled([read_run(folder) for folder in config.runs])
    arms = by_seed(runs)
    rows = [row_of(arm) for arm in arms]
    made = compare_rows(arms, rows)
    bold = not_worse(made, best_runs(rows))
    remarks, twins = [*notes(rows), *comparison_notes(made, arms, rows)], list(twin_notes(arms, rows))
    out = _output(config, runs)
    out.write(TABLE, csv_table(rows).encode())  # first: by it, the folder is known as a report's
    tables = [markdown_table(rows, bold), comparisons_markdown(made, rows), " ".join(remarks + twins) + "\n"]
    out.write("table.md", "\n".join(filter(None, tables)).encode())
    console = Console()
    console.print(terminal_table(rows, bold))
    if made:
        console.print(comparisons_table(made, rows))
    for note in measures_in_words(rows) + remarks:
        console.print(note, style="dim", markup=False, highlight=False)
    for note in twins:
        console.print(note, markup=False, highlight=False, soft_wrap="`" in note)  # a command stays in one piece
    paths = [Path(config.out) / "table.md", Path(config.out) / "table.csv"]
    members = runs_by_dataset(runs)
    for dataset, path in overlay_paths(Path(config.out), members).items():
        try:
            draw_overlays(path, members[dataset], config.cases)
            paths.append(path)
        except UserError as error:
            console.print(f"No figure of {dataset}: {error}", markup=False, highlight=False, style="yellow")
    for path in paths:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return 0


def _output(config: ReportConfig, runs: Sequence[EvaluatedRun]) -> Storage:
    """Open the folder for the report.

    Raises:
        UserError: it holds files of the same names that no report wrote.
    """
    out = Storage(Path(config.out).absolute())
    if not (out.exists(TABLE) and is_csv_table(out.read(TABLE))):
        figures = (path.name for path in overlay_paths(Path(config.out), runs_by_dataset(runs)).values())
        out.refuse_foreign((TABLE, "table.md", *figures), "report", "choose another --out")
    return out
