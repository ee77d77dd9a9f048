"""Runs that differ by their seed alone: one row of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from anatomask.evaluation.results import case_means, mean_sd
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.reports.tables import METRICS, Row

Arm = tuple[EvaluatedRun, ...]
"""Runs of one row, in the order of their seeds."""


def by_seed(runs: Sequence[EvaluatedRun]) -> list[Arm]:
    """Group the runs that differ by their seed alone, in the place of the first; other runs stay alone.

    Runs belong together if they share all settings but the seed, the content of the initial weights and of the data,
    and were scored alike on the same cases. A second run of one seed begins another row.
    """
    arms: list[tuple[Any, dict[int, EvaluatedRun]]] = []
    for run in runs:
        training = run.summary.get("training")
        key = training and (training["seeds"], _scoring(run.summary), frozenset(run.scores))
        seed = training["seed"] if training else 0
        arm = next((members for known, members in arms if key and known == key and seed not in members), None)
        if arm is None:
            arms.append((key, {seed: run}))
        else:
            arm[seed] = run
    return [tuple(members[seed] for seed in sorted(members)) for _, members in arms]


def row_of(arm: Arm) -> Row:
    """Build the row of runs that differ by their seed: their scores of a case are averaged first."""
    first = Row.from_summary(arm[0].summary, arm[0].scores.keys())
    seeds = tuple(run.summary["training"]["seed"] for run in arm if run.summary.get("training"))
    if len(arm) == 1:
        return replace(first, seeds=seeds)
    means = {metric: [case_means(run.by_class, metric) for run in arm] for metric in (*METRICS, *first.measures)}
    over_cases = {metric: _mean_sd(averaged(of_runs)) for metric, of_runs in means.items()}
    return replace(
        first,
        run=" + ".join(run.summary["run"] for run in arm),
        dsc=over_cases["dsc"],
        nsd=over_cases["nsd"],
        measures={name: over_cases[name] for name in first.measures},
        failed=sum(len(dict(run.summary.get("failed", {}))) for run in arm),
        seeds=seeds,
        sd_over_seeds={
            metric: float(np.std([np.mean(list(scores.values())) for scores in means[metric]], ddof=1))
            for metric in METRICS
            if all(means[metric])
        },
    )


def averaged(of_runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average the scores of each case over the runs that have one."""
    cases = dict.fromkeys(case for scores in of_runs for case in scores)
    return {case: float(np.mean([scores[case] for scores in of_runs if case in scores])) for case in cases}


def _mean_sd(scores: Mapping[str, float]) -> tuple[float | None, float | None]:
    found = mean_sd(scores.values())
    return found["mean"], found["sd"]


def _scoring(summary: Mapping[str, Any]) -> str:
    """Describe on what, and how, a run was scored."""
    names = ("data", "split", "folds", "checkpoint", "absent", "nsd_tolerance_mm", "inference")
    return str([summary.get(name) for name in names])
