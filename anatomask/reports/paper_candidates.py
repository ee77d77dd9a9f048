"""Runs of ours that could stand in the paper's tables: their scores, their place, and what their pretraining varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from anatomask.evaluation.results import case_means
from anatomask.evaluation.statistics import Interval, difference_interval
from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.recipes.parts import TARGETS
from anatomask.reports.epochs import epochs_of, is_intermediate
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.reports.provenance import Training, but_seed, pretrainings_of, shared
from anatomask.reports.seeds import Arm, averaged, row_of
from anatomask.reports.tables import METRICS, Row
from anatomask.sweeps.space import paper_spaces

OF_TEACHER = ("method.teacher", "method.significance", "method.r0", "method.rT")
"""Fields that random masks do not use."""


@dataclass(frozen=True)
class Place:
    """Data, network and conditions of a group of columns; methods' tables name the network in their rows."""

    dataset: str
    network: str = ""
    conditions: str = ""
    """Conditions in which a score differs from a published one: the split, the share of labels."""

    @property
    def title(self) -> str:
        """Name of the group."""
        return ", ".join(filter(None, (self.dataset, self.network, self.conditions)))


@dataclass(frozen=True)
class Ours:
    """Scores of runs that differ in their seeds alone, fractions."""

    runs: tuple[EvaluatedRun, ...]
    scores: Mapping[str, tuple[float, float | None]]
    """Mean and SD over cases by metric."""
    groups: tuple[str, ...] = ()
    """Pretraining of each run where several runs share one; else empty."""

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return len(self.runs)

    def difference(self, metric: str, percent: float) -> Interval | None:
        """Estimate the difference from a published mean; None for one case, or for cases that not all runs have."""
        scores = [case_means(run.by_class, metric) for run in self.runs]
        cases = sorted(scores[0])
        if len(cases) < 2 or any(one.keys() != scores[0].keys() for one in scores):
            return None
        differences = np.array([[one[case] for case in cases] for one in scores]) - percent / 100
        return difference_interval(differences, self.groups or None)


@dataclass(frozen=True)
class Candidate:
    """Runs of ours that could stand in a cell."""

    row: Row
    ours: Ours
    trainings: Sequence[Training]
    """Trainings that the first runs come from."""
    folder: str
    """Folder of the first run, from which others can start."""

    @property
    def pretraining(self) -> Training | None:
        """Pretraining that the first run comes from; None where it is not known."""
        return next((one for one in self.trainings if one.verb == "pretrain"), None)

    @cached_property
    def variant(self) -> Mapping[str, Any] | None:
        """Fields that the tables of variants vary, as the pretraining had them; None where it is not known."""
        return None if self.pretraining is None else variant_of(self.pretraining.settings)

    @property
    def epochs(self) -> float:
        """Number of epochs for which it was pretrained; 0 where it is not known."""
        return epochs_of(self.trainings) or 0.0

    @property
    def intermediate(self) -> bool:
        """True if the networks started from a checkpoint before the end of their pretraining."""
        return is_intermediate(self.trainings)

    @property
    def place(self) -> Place:
        """Data, network and conditions."""
        title = next((one.title for one in TARGETS.values() if _same(one.title, self.row.dataset)), self.row.dataset)
        return Place(title, self.row.network or "", _conditions(self.row))


def candidates(arms: Sequence[Arm], origins: Sequence[Sequence[Training]]) -> list[Candidate]:
    """Gather the runs that differ in the seeds of their pretraining and finetuning alone.

    Args:
        arms: runs of each row of the report.
        origins: trainings that the runs of each arm come from.
    """
    pools: dict[Any, list[tuple[EvaluatedRun, Row]]] = {}
    origin: dict[Any, Sequence[Training]] = {}
    taken: dict[Any, list[tuple[Any, ...]]] = {}
    for number, (arm, trainings) in enumerate(zip(arms, origins, strict=True)):
        pretraining = next((one for one in trainings if one.verb == "pretrain"), None)
        row, kinship = row_of(arm), arm[0].summary.get("training")
        key: Any = number
        if kinship and pretraining:
            key = (kinship["starts"], frozenset(map(but_seed, trainings)), _scored(row))
            if any(_seeds(run, trainings) == seeds for run in arm for seeds in taken.get(key, ())):
                key = number  # it differs in more than its seeds, such as the checkpoint that it starts from
            taken.setdefault(key, []).extend(_seeds(run, trainings) for run in arm)
        pools.setdefault(key, []).extend((run, row) for run in arm)
        origin.setdefault(key, trainings)
    found = []
    for key, members in pools.items():
        runs = tuple(run for run, _ in members)
        groups = shared(pretrainings_of(runs))
        ours = Ours(runs, _mean_scores(runs), tuple(groups) if any(groups) else ())
        found.append(Candidate(members[0][1], ours, origin[key], str(runs[0].folder)))
    return found


def variant_of(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the fields of a pretraining that the tables of variants vary; None for another method than AnatoMask's."""
    method = settings.get("method")
    if not isinstance(method, Mapping) or method.get("name", AnatoMaskConfig.name) != AnatoMaskConfig.name:
        return None
    fields = {name for space in paper_spaces().values() for row in space.rows.values() for name in row}
    values = {name: method.get(leaf, getattr(AnatoMaskConfig(), leaf)) for name in fields for leaf in [_leaf(name)]}
    return _used(values)


def _conditions(row: Row) -> str:
    """Name the conditions in which a score differs from a published one."""
    target = next((one for one in TARGETS.values() if _same(one.title, row.dataset)), None)
    parts = []
    if row.folds:
        parts.append(f"{len(row.folds)} of {row.of_folds} folds")
    elif row.split != "test":
        parts.append(f"split {row.split}")
    if row.train_fraction not in (None, 1.0):
        parts.append(f"{100 * row.train_fraction:.3g} % of labels")
    if target is not None and row.classes and len(row.classes) != target.classes:
        parts.append(f"{len(row.classes)} classes")
    return ", ".join(parts)


def _scored(row: Row) -> tuple[Any, ...]:
    return row.dataset, row.data, row.network, row.method, _conditions(row), row.case_names


def _mean_scores(runs: Sequence[EvaluatedRun]) -> dict[str, tuple[float, float | None]]:
    """Average each case's scores over runs, then compute mean and SD over cases."""
    found = {}
    for metric in METRICS:
        values = list(averaged([case_means(run.by_class, metric) for run in runs]).values())
        if values:
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
            found[metric] = (float(np.mean(values)), sd)
    return found


def _seeds(run: EvaluatedRun, trainings: Sequence[Training]) -> tuple[Any, ...]:
    """Return the seeds of a run and of what it comes from."""
    return run.summary["training"]["seed"], *(one.seed for one in trainings)


def _used(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the fields that random masks do not use."""
    unused = OF_TEACHER if values["method.masking"] == "random" else ()
    return {name: value for name, value in values.items() if name not in unused}


def _leaf(field: str) -> str:
    return field.rpartition(".")[2]


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower()
