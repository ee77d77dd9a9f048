"""The table of a sweep."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from anatomask.reports.sweeps import SweepRow, paper_ablation, sweep_csv, sweep_table

PAPER = {"mask_ratio=0.6": 84.3}


def row(ratio: float, state: str = "complete", **scores: float) -> SweepRow:
    mean = sum(scores.values()) / len(scores) if scores else None
    name = f"mask_ratio={ratio}"
    return SweepRow(name, f"000-{name}", state, {"method.mask_ratio": ratio}, scores, mean)


def shown(rows: list[SweepRow], datasets: list[str], paper: dict[str, float], *, styles: bool = False) -> list[str]:
    out = io.StringIO()
    Console(width=80, file=out, force_terminal=styles).print(sweep_table(rows, datasets, paper))
    return out.getvalue().splitlines()


def test_each_data_set_the_mean_and_the_papers_number() -> None:
    rows = [row(0.6, ct=0.5, mr=0.7), row(0.8, ct=0.8, mr=0.6), row(0.9, "failed")]
    lines = shown(rows, ["ct", "mr"], PAPER)
    assert ["mask_ratio=0.6", "50.0", "70.0", "60.0", "84.3"] in [line.split() for line in lines]
    assert ["mask_ratio=0.8", "80.0", "60.0", "70.0", "–"] in [line.split() for line in lines]
    assert ["mask_ratio=0.9", "–", "–", "failed", "–"] in [line.split() for line in lines]


def test_only_the_best_mean_is_bold() -> None:
    bold = [
        line for line in shown([row(0.6, ct=0.5), row(0.8, ct=0.8)], ["ct"], {}, styles=True) if "\x1b[1m80.0" in line
    ]
    assert len(bold) == 1
    assert not any("\x1b[1m50.0" in line for line in shown([row(0.6, ct=0.5)], ["ct"], {}, styles=True))


def test_long_names_fit_80_columns() -> None:
    rows = [SweepRow("self_distillation=yes; significance=high; " * 3, "f", "complete", {}, {"a": 0.1, "b": 0.2}, 0.15)]
    lines = shown(rows, ["Dataset001_HeadAndNeckCT" * 2, "b"], {"x": 1.0})
    assert max(len(line) for line in lines) <= 80
    assert any("15.0" in line for line in lines)


def test_the_csv_holds_every_field_and_full_precision() -> None:
    text = sweep_csv([row(0.6, ct=1 / 3), row(0.8, "waiting")], ["ct"], PAPER)
    first, second = csv.DictReader(io.StringIO(text))
    assert float(first["method.mask_ratio"]) == 0.6
    assert float(first["dsc_ct_fraction"]) == float(first["dsc_mean_fraction"]) == 1 / 3
    assert first["paper_dsc_percent"] == "84.3"
    assert (second["state"], second["dsc_mean_fraction"], second["paper_dsc_percent"]) == ("waiting", "", "")


@pytest.mark.parametrize(("table", "rows", "best"), [("1", 4, 84.3), ("2", 5, 84.3), ("3", 3, 84.3), (None, 0, None)])
def test_the_papers_ablations(table: str | None, rows: int, best: float | None) -> None:
    found = paper_ablation(table)
    assert len(found) == rows
    assert max(found.values(), default=None) == best
