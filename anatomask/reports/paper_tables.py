"""Tables 1 to 6 of the paper with our results in their cells: published score, ours, difference, interval, seeds.

Our runs and the paper's share no patients, and its scores are known as means alone: a difference is that of our mean
from the published one, and its interval tells what other cases and seeds would make of ours.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from anatomask.evaluation.results import case_means
from anatomask.evaluation.statistics import Interval, difference_interval
from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.recipes.paper import RECIPE_OF
from anatomask.recipes.parts import TARGETS
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.reports.paper import ABLATIONS, COMPARISONS, OURS, Published, published
from anatomask.reports.provenance import Training, but_seed
from anatomask.reports.seeds import Arm, averaged, row_of
from anatomask.reports.tables import METRICS, Row
from anatomask.sweeps.space import paper_spaces

TITLES = {
    "1": "Decoder and masking",
    "2": "Self-distillation, significance and dynamics",
    "3": "Mask ratio",
    "4": "TotalSegmentator",
    "5": "FLARE22 and AMOS22",
    "6": "AutoPET II",
}
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
        return difference_interval(np.array([[one[case] for case in cases] for one in scores]) - percent / 100)


@dataclass(frozen=True)
class PaperRow:
    """Row of a table."""

    names: tuple[str, ...]
    published: Mapping[tuple[Place, str], Published]
    """Published score by place and metric."""
    ours: Mapping[Place, Ours]
    commands: Mapping[Place, Sequence[str]] = field(default_factory=dict)
    """Commands that make what is missing, by the place with a published score."""


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables."""

    number: str
    titles: tuple[str, ...]
    """Titles of the columns that name a row."""
    metrics: tuple[str, ...]
    places: Sequence[Place]
    """Groups of columns: those of the paper, then ours that have no published score."""
    rows: Sequence[PaperRow]
    notes: Sequence[str]

    @property
    def title(self) -> str:
        """Number and subject."""
        return f"Table {self.number}: {TITLES[self.number]}"


@dataclass(frozen=True)
class Candidate:
    """Runs of ours that could stand in a cell."""

    row: Row
    ours: Ours
    variant: Mapping[str, Any] | None
    """Fields that the tables of variants vary, as the pretraining had them; None where it is not known."""
    folder: str
    """Folder of the first run, from which others can start."""

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
    variants: dict[Any, Mapping[str, Any] | None] = {}
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
        variants[key] = None if pretraining is None else variant_of(pretraining.settings)
    found = []
    for key, members in pools.items():
        runs = tuple(run for run, _ in members)
        found.append(Candidate(members[0][1], Ours(runs, _mean_scores(runs)), variants[key], str(runs[0].folder)))
    return found


def paper_tables(
    found: Sequence[Candidate],
    numbers: Sequence[str] | None = None,
    makers: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> list[PaperTable]:
    """Lay out the paper's tables.

    Args:
        found: runs of ours.
        numbers: numbers of the tables. Default: those with one of the paper's scores and ours in a cell, and those of
            variants of which ours has two.
        makers: command that makes the missing scores of a table and a data set, by its number and its title.
    """
    made = []
    for number in ABLATIONS + COMPARISONS if numbers is None else numbers:
        table = _variants_table(number, found) if number in ABLATIONS else _methods_table(number, found)
        table = replace(
            table, rows=[replace(row, commands=_made_by(row.commands, number, makers)) for row in table.rows]
        )
        compared = [row for row in table.rows if any(place in row.ours for place, _ in row.published)]
        tried = sum(bool(row.ours) for row in table.rows)
        if numbers is not None or compared or (number in ABLATIONS and tried > 1):
            made.append(table)
    return made


def _made_by(
    missing: Mapping[Place, Sequence[str]], number: str, makers: Mapping[tuple[str, str], str]
) -> dict[Place, Sequence[str]]:
    """Put a command that makes a whole table in place of those for each missing score."""
    known = {place: makers.get((number, place.dataset)) for place in missing}
    return {place: [maker] if (maker := known[place]) else commands for place, commands in missing.items()}


def variant_of(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the fields of a pretraining that the tables of variants vary; None for another method than AnatoMask's."""
    method = settings.get("method")
    if not isinstance(method, Mapping) or method.get("name", AnatoMaskConfig.name) != AnatoMaskConfig.name:
        return None
    fields = {name for space in paper_spaces().values() for row in space.rows.values() for name in row}
    values = {name: method.get(leaf, getattr(AnatoMaskConfig(), leaf)) for name in fields for leaf in [_leaf(name)]}
    return _used(values)


def _variants_table(number: str, found: Sequence[Candidate]) -> PaperTable:
    """Lay out a table of AnatoMask's variants: each row is a point of its space."""
    name, space = next((name, space) for name, space in paper_spaces().items() if space.paper == number)
    scores = {score.method: score for score in published((number,))}
    first = next(iter(scores.values()))
    place = Place(first.dataset, first.network)
    data = _data_of(found, first.dataset)
    sweep = ["anatomask", "sweep", "--space", name, "--target", _target(first.dataset), "--split", "test"]
    command = shlex.join([*sweep, "--pretrain-data", data, "--finetune-data", data])
    rows = []
    for title, score in scores.items():
        wanted = variant_of({"method": {_leaf(field): value for field, value in space.rows[title].items()}})
        ours = _best([one for one in found if one.variant == wanted], lambda one: one.place)
        names = tuple(part.partition("=")[2] for part in title.split("; "))
        missing = {} if place in ours else {place: [command]}
        rows.append(PaperRow(names, {(place, "dsc"): score}, ours, missing))
    titles = tuple(part.partition("=")[0].replace("_", " ") for part in first.method.split("; "))
    return _table(number, titles, ("dsc",), [place], rows)


def _methods_table(number: str, found: Sequence[Candidate]) -> PaperTable:
    """Lay out a table that compares methods: the paper's rows, then ours with other methods and networks."""
    scores = list(published((number,)))
    places = [Place(dataset) for dataset in dict.fromkeys(score.dataset for score in scores)]
    plain = [one for one in found if one.variant in (None, variant_of({"method": {}}), _spark())]
    elsewhere = {score.dataset for score in published()} - {place.dataset for place in places}
    shown = [one for one in plain if one.place.dataset not in elsewhere]
    if number != "4":  # the pretraining's own data set, in whose place other data may stand
        shown = [one for one in shown if one.place.dataset in {place.dataset for place in places}]
    names = dict.fromkeys((score.method, score.network) for score in scores)
    ours_alone = dict.fromkeys((one.row.method, one.row.network or "") for one in shown)
    rows = []
    for method, network in dict.fromkeys((*names, *ours_alone)):
        members = [one for one in shown if (one.row.method, one.row.network or "") == (method, network)]
        ours = _best(members, lambda one: Place(one.place.dataset, conditions=one.place.conditions), _as_the_paper)
        mine = {
            (Place(score.dataset), score.metric.lower()): score
            for score in scores
            if (score.method, score.network) == (method, network)
        }
        missing = [place for place in places if place not in ours and (method, network) in names]
        commands = {place: _commands(method, network, place.dataset, found) for place in missing}
        rows.append(PaperRow((_as_published(method), _as_published(network)), mine, ours, commands))
    return _table(number, ("Method", "Network"), METRICS, places, rows)


def _table(
    number: str, titles: tuple[str, ...], metrics: tuple[str, ...], places: Sequence[Place], rows: Sequence[PaperRow]
) -> PaperTable:
    """Add the groups of columns that only ours has, and the notes."""
    others = dict.fromkeys(place for row in rows for place in row.ours if place not in places)
    notes = []
    if any(place in row.ours for row in rows for place in places):
        notes.append(
            "Difference: our mean from the published one, in points, with its 95 % interval over our cases and seeds; "
            "the published mean is taken as exact. Splits are drawn anew, so the test cases are not the paper's."
        )
    if others:
        notes.append(f"Other data, networks or conditions than published, so no difference: {_titles(others)}.")
    return PaperTable(number, titles, metrics, [*places, *others], rows, notes)


def _titles(places: Mapping[Place, None]) -> str:
    return "; ".join(place.title for place in places)


def _as_the_paper(one: Candidate) -> bool:
    """Return whether networks on other data than the pretraining's started as the paper's: from one on the first."""
    return bool(one.ours.runs[0].summary.get("via"))


def _best(
    found: Sequence[Candidate],
    place_of: Callable[[Candidate], Place],
    preferred: Callable[[Candidate], bool] = lambda one: False,
) -> dict[Place, Ours]:
    """Choose what stands in each place: a preferred candidate, then the one with most seeds, of equals the first."""
    chosen: dict[Place, Ours] = {}
    for one in sorted(found, key=lambda one: (not preferred(one), -one.ours.seeds)):
        chosen.setdefault(place_of(one), one.ours)
    return chosen


def _commands(method: str, network: str, dataset: str, found: Sequence[Candidate]) -> list[str]:
    """List the commands that make a missing score, from what there is on."""
    recipe = RECIPE_OF[method, network]
    own = [one for one in found if (one.row.method, one.row.network) == (method, network)]
    on_first = [one for one in own if one.place == Place("TotalSegmentator", network)]
    commands, start = [], on_first[0].folder if on_first else ""
    target, name = _target(dataset), f"{recipe}-{_target(dataset)}"
    if not start:
        data = _data_of(found, "TotalSegmentator")
        commands.append(
            _command("pretrain", recipe=recipe, target="totalsegmentator", data=data, name=f"{recipe}-pretrained")
        )
        start = f"runs/{recipe}-pretrained"
        if target != "totalsegmentator":
            first = f"{recipe}-totalsegmentator"
            commands.append(
                _command("finetune", recipe=recipe, target="totalsegmentator", data=data, init=start, name=first)
            )
            start = f"runs/{first}"
    data = _data_of(found, dataset)
    commands.append(_command("finetune", recipe=recipe, target=target, data=data, init=start, name=name))
    return [*commands, _command("evaluate", run=f"runs/{name}")]


def _command(verb: str, **flags: str) -> str:
    return shlex.join(["anatomask", verb, *(part for name, value in flags.items() for part in (f"--{name}", value))])


def _data_of(found: Sequence[Candidate], dataset: str) -> str:
    """Return the prepared folder of a data set, as one of our runs has it; else where the documentation puts it."""
    known = [one.row.data for one in found if _same(one.row.dataset, dataset) and one.row.data]
    return known[0] if known else f"shards/{_target(dataset)}"


def _target(dataset: str) -> str:
    return next(name for name, target in TARGETS.items() if target.title == dataset)


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


def _as_published(name: str) -> str:
    """Put the paper's name of a method or network before ours, where they differ."""
    theirs = next((paper for paper, ours in OURS.items() if ours == name), None)
    return name if theirs is None else f"{theirs} ({name})"


def _spark() -> Mapping[str, Any] | None:
    return variant_of({"method": {"masking": "random"}})


def _used(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the fields that random masks do not use."""
    unused = OF_TEACHER if values["method.masking"] == "random" else ()
    return {name: value for name, value in values.items() if name not in unused}


def _leaf(field: str) -> str:
    return field.rpartition(".")[2]


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower()
