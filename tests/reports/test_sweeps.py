"""Results of a sweep: trials as rows of the tables of a report, and its CSV table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anatomask.evaluation.results import to_csv
from anatomask.evaluation.statistics import difference_interval, signed_rank_p
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.reports.result_tables import ResultTables
from anatomask.reports.seeds import by_seed
from anatomask.reports.sweeps import SweepRow, as_trials, paper_ablation, scratch_twins, sweep_csv, sweep_notes
from tests.reports.test_comparisons import CASES, run

PAPER = {"mask_ratio=0.6": 84.3}


def row(ratio: float, state: str = "complete", **scores: float) -> SweepRow:
    mean = sum(scores.values()) / len(scores) if scores else None
    name = f"mask_ratio={ratio}"
    return SweepRow(name, f"000-{name}", state, {"method.mask_ratio": ratio}, scores, mean)


def trials(rows: Sequence[SweepRow], *levels: float, seeds: Sequence[int] = (0,)) -> list[EvaluatedRun]:
    """What a sweep reads: networks of one method, whose pretrainings are different runs."""
    found: dict[str, list[EvaluatedRun]] = {}
    for one, level in zip(rows, levels, strict=True):
        for seed in seeds:
            scored = run("AnatoMask", level, seed)
            kin = {"seed": seed, "seeds": f"pretraining of {one.name} by {seed}", "starts": "r"}
            folder = Path("runs/ratios") / one.folder / "finetune-data"
            scored = replace(scored, summary={**scored.summary, "training": kin}, folder=folder)
            found.setdefault(one.folder, []).append(scored)
    return as_trials(rows, found)


def test_trials_are_the_rows_of_a_report() -> None:
    """Each has its seeds, its SD over cases, and an interval and a p where it is better than another."""
    rows = [row(0.6, a=0.7), row(0.8, a=0.8), row(0.9, "failed")]
    found = trials(rows[:2], 0.7, 0.8)
    tables = ResultTables.of(by_seed([*found, run("scratch", 0.6)]))
    assert [(one.method, one.initialisation, one.seeds) for one in tables.rows] == [
        ("mask_ratio=0.6", "trial 0", (0,)), ("mask_ratio=0.8", "trial 1", (0,)), ("scratch", "random", (0,))
    ]  # fmt: skip
    assert tables.bold["dsc"] == {1}
    made = {(one.comparison.arm, one.comparison.reference): one.comparison for one in tables.comparisons[:3]}
    better = made[("mask_ratio=0.8", "mask_ratio=0.6")]
    difference = np.array([[found[1].scores[case] - found[0].scores[case] for case in CASES]])
    assert better.verdict == "better" and better.interval == difference_interval(difference)
    assert better.p == signed_rank_p(difference)
    assert ("mask_ratio=0.6", "scratch") in made and ("mask_ratio=0.8", "scratch") in made
    assert "One seed, so the interval holds for these very runs" in " ".join(tables.remarks)


def test_what_lies_inside_the_noise_is_marked_like_the_best() -> None:
    tables = ResultTables.of(by_seed(trials([row(0.6, a=0.8), row(0.8, a=0.8)], 0.8, 0.801)))
    assert tables.bold["dsc"] == {0, 1}
    assert {one.comparison.verdict for one in tables.comparisons} == {"no difference"}


def test_the_seeds_of_a_trial_are_one_row() -> None:
    tables = ResultTables.of(by_seed(trials([row(0.6, a=0.6), row(0.8, a=0.8)], 0.6, 0.8, seeds=(5, 7))))
    assert [(one.method, one.initialisation, one.seeds) for one in tables.rows] == [
        ("mask_ratio=0.6", "trial 0", (5, 7)), ("mask_ratio=0.8", "trial 1", (5, 7))
    ]  # fmt: skip
    assert all(one.sd_over_seeds["dsc"] > 0 for one in tables.rows)
    assert tables.comparisons[0].comparison.interval.seeds == 2
    assert tables.comparisons[0].comparison.interval.over_seeds


def test_what_the_tables_leave_out_is_said() -> None:
    rows = [row(0.6, a=0.5, b=0.7), row(0.8, a=0.8, b=0.6), row(0.9, "failed")]
    found = trials(rows[:2], 0.5, 0.8)
    best, paper, without, twin = sweep_notes(rows, found, [], PAPER)
    assert best == "Best mean DSC over the data sets: mask_ratio=0.8, 70.0 %."
    assert paper.endswith("DSC [%]: mask_ratio=0.6 84.3.")
    assert without == "Without a score: mask_ratio=0.9 (failed)."
    assert "on data have no run from scratch" in twin
    assert "`anatomask evaluate --run runs/ratios-data-scratch --split test`" in twin
    assert len(list(sweep_notes(rows[:1], found[:1], [run("scratch", 0.6)], {}))) == 1


def test_a_run_from_scratch_is_found_if_it_differs_in_the_start_alone(tmp_path: Path) -> None:
    def write(name: str, one: EvaluatedRun) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "cases.csv").write_text(to_csv(one.by_class))
        (tmp_path / name / "summary.json").write_text(json.dumps(one.summary))

    write("twin", run("scratch", 0.6))
    write("other-recipe", run("scratch", 0.6, recipe="other"))
    write("other-split", run("scratch", 0.6, split="val"))
    write("other-cases", run("scratch", 0.6, cases=CASES[:3]))
    write("pretrained", run("SparK", 0.6))
    write("damaged", run("scratch", 0.6))
    (tmp_path / "damaged/cases.csv").write_text("x")
    found = scratch_twins(tmp_path, trials([row(0.6, a=0.8)], 0.8))
    assert [one.folder.name for one in found] == ["twin"]


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
