"""Tables of evaluated runs and of the differences between them, as `report` and `sweep` print and write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from anatomask.data.storage import Storage
from anatomask.reports.comparisons import (
    RowComparison,
    compare_rows,
    comparison_notes,
    comparisons_markdown,
    comparisons_table,
    not_worse,
)
from anatomask.reports.seeds import Arm, row_of
from anatomask.reports.tables import (
    Row,
    best_runs,
    csv_table,
    markdown_table,
    measures_in_words,
    notes,
    terminal_table,
)

CSV, MARKDOWN = "table.csv", "table.md"
"""Names of the files."""


@dataclass(frozen=True)
class ResultTables:
    """Rows of runs that differ by their seed alone, and the comparisons between them."""

    arms: Sequence[Arm]
    rows: Sequence[Row]
    comparisons: Sequence[RowComparison]
    bold: Mapping[str, set[int]]
    """Positions of the rows that stand out in each metric: the best, and what it was not shown to be better than."""

    @classmethod
    def of(cls, arms: Sequence[Arm]) -> ResultTables:
        """Make a row of each arm, and compare them."""
        rows = [row_of(arm) for arm in arms]
        made = compare_rows(arms, rows)
        return cls(arms, rows, made, not_worse(made, best_runs(rows)))

    @property
    def remarks(self) -> list[str]:
        """List what a reader needs to trust the tables."""
        return [*notes(self.rows), *comparison_notes(self.comparisons, self.arms, self.rows)]

    def write(self, folder: Storage, further: Sequence[str]) -> None:
        """Write `table.csv` and then `table.md`, which ends with the remarks and `further` ones.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.write(CSV, csv_table(self.rows).encode())  # first: by it, the folder is known as a report's
        texts = [markdown_table(self.rows, self.bold), comparisons_markdown(self.comparisons, self.rows)]
        texts.append(" ".join([*self.remarks, *further]) + "\n")
        folder.write(MARKDOWN, "\n".join(filter(None, texts)).encode())

    def show(self, console: Console, further: Sequence[str]) -> None:
        """Print the tables, the remarks dim, and `further` remarks, in which a command stays in one piece."""
        console.print(terminal_table(self.rows, self.bold))
        if self.comparisons:
            console.print(comparisons_table(self.comparisons, self.rows))
        for note in measures_in_words(self.rows) + self.remarks:
            console.print(note, style="dim", markup=False, highlight=False)
        for note in further:
            console.print(note, markup=False, highlight=False, soft_wrap="`" in note)
