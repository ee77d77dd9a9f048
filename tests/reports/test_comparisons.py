"""Rows of several seeds, and what is said about their differences."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from anatomask.evaluation.results import CaseScore, case_means, summarise
from anatomask.evaluation.statistics import difference_interval, holm, signed_rank_p
from anatomask.reports.comparisons import (
    RowComparison,
    compare_rows,
    comparison_notes,
    comparisons_markdown,
    comparisons_table,
    not_worse,
    twin_notes,
)
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.reports.seeds import Arm, by_seed, row_of
from anatomask.reports.tables import Row, best_runs, csv_table, markdown_table, terminal_table
from tests.reports.test_provenance import write_training

CASES = [f"case{number}" for number in range(8)]
EFFECTS = np.random.default_rng(0).normal(0, 0.05, len(CASES))


def run(
    method: str, level: float, seed: int | None = 0, *, recipe: str = "r", cases: Sequence[str] = CASES, **changes: Any
) -> EvaluatedRun:
    """A run whose cases have a DSC around `level`; without a seed, one of an older version."""
    noise = np.random.default_rng([seed or 0, int(1000 * level)]).normal(0, 0.004, len(CASES))
    scores = [
        CaseScore(method, "data", case, number, organ, dsc + shift, dsc - 0.1, 9, 4.0 + number, 1.0, 1.0, nsd_1mm=0.25)
        for case, dsc in zip(cases, level + EFFECTS + noise, strict=False)
        for number, organ, shift in ((1, "liver", 0.01), (2, "spleen", -0.01))
    ]
    summary = {
        "run": f"{method}-{seed}",
        "method": method,
        "initialisation": "random" if method == "scratch" else f"pre-{method}",
        "dataset": "data",
        "data": "/data",
        "split": "test",
        **summarise(scores),
        "training": None if seed is None else {"seed": seed, "seeds": f"{method} {recipe}", "starts": recipe},
        **changes,
    }
    return EvaluatedRun(Path("runs") / f"{method}-{seed}", summary, case_means(scores, "dsc"), scores)


def reported(*runs: EvaluatedRun) -> tuple[list[Arm], list[Row], list[RowComparison]]:
    arms = by_seed(runs)
    rows = [row_of(arm) for arm in arms]
    return arms, rows, compare_rows(arms, rows)


def told(arms: list[Arm], rows: list[Row], made: list[RowComparison]) -> str:
    return " ".join([*comparison_notes(made, arms, rows), *twin_notes(arms, rows)])


def dsc(made: Sequence[RowComparison]) -> dict[tuple[str, str], RowComparison]:
    return {(one.comparison.arm, one.comparison.reference): one for one in made if one.metric == "dsc"}


@pytest.fixture
def three_seeds() -> list[EvaluatedRun]:
    return [run("AnatoMask", 0.8, seed) for seed in (2, 0, 1)] + [run("scratch", 0.7, seed) for seed in (0, 1, 2)]


def test_runs_that_differ_in_their_seed_alone_are_one_row(three_seeds: list[EvaluatedRun]) -> None:
    arms, rows, _ = reported(*three_seeds)
    assert [row.seeds for row in rows] == [(0, 1, 2), (0, 1, 2)]
    scores = np.array([[one.scores[case] for case in CASES] for one in arms[0]])
    assert rows[0].dsc == pytest.approx((scores.mean(), scores.mean(0).std(ddof=1)))
    assert rows[0].sd_over_seeds["dsc"] == pytest.approx(scores.mean(1).std(ddof=1))
    assert rows[0].measures["hd95_mm"] == pytest.approx((5.5, 0.0))
    assert rows[0].measures["nsd_1mm"] == pytest.approx((0.25, 0.0))
    assert "| NSD at 1 mm [%] |" in markdown_table(rows) and "| 25.0 ± 0.0 |" in markdown_table(rows)
    for other in (
        run("AnatoMask", 0.8, 0),  # the same seed again
        run("AnatoMask", 0.8, 3, recipe="other"),
        run("AnatoMask", 0.8, 3, cases=CASES[:5]),
        run("AnatoMask", 0.8, 3, checkpoint="last"),
        run("AnatoMask", 0.8, 3, absent="flare"),
        run("AnatoMask", 0.8, None),
    ):
        assert len(by_seed([*three_seeds, other])) == 3


def test_a_difference_has_its_interval_and_p(three_seeds: list[EvaluatedRun]) -> None:
    arms, rows, made = reported(*three_seeds)
    one = dsc(made)[("AnatoMask", "scratch")]
    first, second = (np.array([[run.scores[case] for case in CASES] for run in arm]) for arm in arms)
    expected = difference_interval(first - second)
    assert one.comparison.interval == expected and expected.over_seeds
    assert one.comparison.p == signed_rank_p(first - second) == one.comparison.p_holm
    assert one.comparison.verdict == "better"
    assert best_runs(rows)["dsc"] == not_worse(made, best_runs(rows))["dsc"] == {0}


def test_runs_that_share_a_pretraining_are_its_group(tmp_path: Path) -> None:
    """Two pretrainings of four seeds each; and as many pretrainings as runs, which are a sample of those."""
    shared, own = list[EvaluatedRun](), list[EvaluatedRun]()
    for seed in range(8):
        level = 0.8 if seed < 4 else 0.76
        for runs, source in ((shared, f"pre-{seed // 4}"), (own, f"own-{seed}")):
            if not (tmp_path / source).exists():
                write_training(tmp_path / source, {"method": {"name": "anatomask"}})
            folder = write_training(tmp_path / f"{source}-{seed}", {"init": str(tmp_path / source)})
            runs.append(replace(run("AnatoMask", level, seed), folder=folder))
    scratch = [run("scratch", 0.7, seed) for seed in range(8)]
    of_pairs = dict[str, RowComparison]()
    for name, members in (("shared", shared), ("own", own)):
        arms, rows, made = reported(*members, *scratch)
        of_pairs[name] = dsc(made)[("AnatoMask", "scratch")]
        told_of = "share a pretraining, so the interval holds for these pretrainings" in told(arms, rows, made)
        assert told_of == (name == "shared")
    first, second = (np.array([[one.scores[case] for case in CASES] for one in runs]) for runs in (shared, scratch))
    assert of_pairs["own"].comparison.interval == difference_interval(first - second)
    assert of_pairs["shared"].comparison.interval == difference_interval(first - second, [0] * 4 + [1] * 4)
    assert of_pairs["shared"].comparison.interval != of_pairs["own"].comparison.interval


def test_the_best_is_compared_with_all_and_each_row_with_its_twin() -> None:
    arms, rows, made = reported(run("AnatoMask", 0.8), run("SparK", 0.801), run("scratch", 0.7))
    found = dsc(made)
    assert set(found) == {("AnatoMask", "scratch"), ("SparK", "scratch"), ("SparK", "AnatoMask")}
    assert found[("SparK", "AnatoMask")].comparison.verdict == "no difference"
    adjusted = [one.comparison.p_holm for one in found.values()]
    assert adjusted == holm([one.comparison.p for one in found.values()])
    bold = not_worse(made, best_runs(rows))
    assert best_runs(rows)["dsc"] == {1} and bold["dsc"] == {0, 1}
    lines = markdown_table(rows, bold).splitlines()
    assert [line.count("**") for line in lines[2:]] == [4, 4, 0]
    text = told(arms, rows, made)
    assert "One seed, so the interval holds for these very runs" in text and "no run from scratch" not in text


def test_what_chance_may_have_made_is_undecided() -> None:
    noisy = run("AnatoMask", 0.72)
    scores = [*noisy.by_class]
    for index in range(0, len(scores), 4):
        scores[index] = replace(scores[index], dsc=0.2)
    noisy = EvaluatedRun(noisy.folder, {**noisy.summary, **summarise(scores)}, case_means(scores, "dsc"), scores)
    _, rows, made = reported(noisy, run("scratch", 0.7))
    assert dsc(made)[("AnatoMask", "scratch")].comparison.verdict == "undecided"
    assert not_worse(made, best_runs(rows))["dsc"] == {0, 1}


def test_a_row_without_a_twin_says_which_command_makes_it(tmp_path: Path) -> None:
    alone = run("AnatoMask", 0.8)
    arms, rows, made = reported(alone)
    assert made == [] and comparisons_markdown(made, rows) == ""
    assert "finetune` with the same flags, but --init scratch" in told(arms, rows, made)
    (tmp_path / "config.yaml").write_text("seed: 0")
    arms, rows, made = reported(EvaluatedRun(tmp_path, alone.summary, alone.scores, alone.by_class))
    command = f"`anatomask finetune --config {tmp_path}/config.yaml --init scratch --name {tmp_path.name}-scratch`"
    assert command in told(arms, rows, made)
    fewer = run("scratch", 0.7, train_fraction=0.1)
    arms, rows, made = reported(alone, fewer)
    assert "no run from scratch" in told(arms, rows, made)


def test_a_twin_of_other_settings_is_told_and_the_true_one_preferred() -> None:
    other, true = run("scratch", 0.75, recipe="other"), run("scratch", 0.7)
    arms, rows, made = reported(run("AnatoMask", 0.8), other)
    assert "scratch differs from AnatoMask in more than the start" in told(arms, rows, made)
    arms, rows, made = reported(run("AnatoMask", 0.8), other, true)
    assert {one.rows for one in made} == {(0, 2), (0, 1)}
    assert "differs from" not in told(arms, rows, made)


def test_runs_of_an_older_version_are_compared_over_cases() -> None:
    arms, rows, made = reported(run("AnatoMask", 0.8, None), run("scratch", 0.7, None))
    assert [row.seeds for row in rows] == [(), ()]
    one = dsc(made)[("AnatoMask", "scratch")].comparison
    assert one.verdict == "better" and not one.interval.over_seeds
    text = told(arms, rows, made)
    assert "seeds differ or are not known: AnatoMask – scratch" in text and "in more than the start" in text


def test_what_was_scored_otherwise_is_not_compared() -> None:
    for other in (
        run("scratch", 0.7, cases=CASES[:5]),
        run("scratch", 0.7, absent="flare"),
        run("scratch", 0.7, split="val"),
        run("scratch", 0.7, data="/other"),
    ):
        arms, rows, made = reported(run("AnatoMask", 0.8), other)
        assert made == []
        assert "has no run from scratch beside it" in told(arms, rows, made)
    one_case = [run(method, 0.7, cases=CASES[:1]) for method in ("AnatoMask", "scratch")]
    assert reported(*one_case)[2] == []


def test_the_tables_fit_80_columns(three_seeds: list[EvaluatedRun]) -> None:
    _, rows, made = reported(*three_seeds, run("SparK", 0.79))
    out = io.StringIO()
    console = Console(width=80, file=out, color_system=None)
    console.print(terminal_table(rows))
    console.print(comparisons_table(made, rows))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "3 (± 0." in text and "AnatoMask – scratch" in text and "better" in text
    assert markdown_table(rows).splitlines()[0].endswith("| Cases | HD95 [mm] | NSD at 1 mm [%] |")
    assert csv_table(rows).splitlines()[1].count(",") == csv_table(rows).splitlines()[0].count(",")
