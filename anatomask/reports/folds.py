"""Runs that differ by their fold alone, pooled to one: its cases are those of all folds, each scored by one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from anatomask.data.folds import fold_name
from anatomask.evaluation.results import case_means, summarise
from anatomask.reports.evaluated_runs import EvaluatedRun


def pooled(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """Pool the runs that differ by their fold alone, in the place of the first; other runs stay as they are.

    Runs belong together if each was scored on the fold that it left out, and they share all settings, the initial
    weights, the data, the checkpoint, and how they were predicted and scored. A second run of the same fold begins
    another pool.
    """
    pools: list[tuple[str | None, dict[int, EvaluatedRun]]] = []
    for run in runs:
        fold = run.summary.get("fold")
        if fold is None or run.summary.get("split") != fold_name(fold["number"]):
            pools.append((None, {0: run}))
            continue
        alike = ("data", "checkpoint", "absent", "nsd_tolerance_mm", "inference")
        key = str([fold["others"], *(run.summary.get(name) for name in alike)])
        pool = next((members for known, members in pools if known == key and fold["number"] not in members), None)
        if pool is None:
            pools.append((key, {fold["number"]: run}))
        else:
            pool[fold["number"]] = run
    return [members[0] if key is None else _pool(members) for key, members in pools]


def _pool(members: dict[int, EvaluatedRun]) -> EvaluatedRun:
    """Make one run of the runs by fold."""
    numbers = sorted(members)
    runs = [members[number] for number in numbers]
    first = runs[0]
    scores = tuple(score for run in runs for score in run.by_class)
    summary = {
        **first.summary,
        **summarise(scores),
        "run": " + ".join(run.summary["run"] for run in runs),
        "split": ", ".join(map(fold_name, numbers)),
        "folds": numbers,
        "failed": {case: why for run in runs for case, why in dict(run.summary.get("failed", {})).items()},
    }
    folders = {case: run.folder for run in runs for case in run.scores}
    return replace(first, summary=summary, scores=case_means(scores, "dsc"), by_class=scores, folders=folders)
