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

from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.recipes.paper import RECIPE_OF
from anatomask.recipes.parts import TARGETS
from anatomask.reports.paper import ABLATIONS, COMPARISONS, OURS, Published, published
from anatomask.reports.paper_candidates import Candidate, Ours, Place, variant_of
from anatomask.reports.provenance import but_seed
from anatomask.reports.tables import METRICS
from anatomask.sweeps.space import paper_spaces

TITLES = {
    "1": "Decoder and masking",
    "2": "Self-distillation, significance and dynamics",
    "3": "Mask ratio",
    "4": "TotalSegmentator",
    "5": "FLARE22 and AMOS22",
    "6": "AutoPET II",
}


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
    early = ", ".join(one.row.run for one in found if one.intermediate)
    note = f"Left out, as they start from a checkpoint before the end of their pretraining: {early}."
    found = [one for one in found if not one.intermediate]
    for number in ABLATIONS + COMPARISONS if numbers is None else numbers:
        table = _variants_table(number, found) if number in ABLATIONS else _methods_table(number, found)
        rows = [replace(row, commands=_made_by(row.commands, number, makers)) for row in table.rows]
        table = replace(table, rows=rows, notes=[*table.notes, *([note] if early else [])])
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


def _variants_table(number: str, found: Sequence[Candidate]) -> PaperTable:
    """Lay out a table of AnatoMask's variants: each row is a point of its space."""
    name, space = next((name, space) for name, space in paper_spaces().items() if space.paper == number)
    scores = {score.method: score for score in published((number,))}
    first = next(iter(scores.values()))
    place = Place(first.dataset, first.network)
    data = _data_of(found, first.dataset)
    sweep = ["anatomask", "sweep", "--space", name, "--target", _target(first.dataset), "--split", "test"]
    command = shlex.join([*sweep, "--pretrain-data", data, "--finetune-data", data])
    rows, remarks = [], list[str]()
    for title, score in scores.items():
        wanted = variant_of({"method": {field.rpartition(".")[2]: value for field, value in space.rows[title].items()}})
        label = AnatoMaskConfig(masking=space.rows[title].get("method.masking", "anatomask")).label()
        fitting = [one for one in found if (one.variant, one.row.method) == (wanted, label)]
        ours, passed_over = _best(fitting, lambda one: one.place)
        remarks += passed_over
        names = tuple(part.partition("=")[2] for part in title.split("; "))
        missing = {} if place in ours else {place: [command]}
        rows.append(PaperRow(names, {(place, "dsc"): score}, ours, missing))
    titles = tuple(part.partition("=")[0].replace("_", " ") for part in first.method.split("; "))
    return _table(number, titles, ("dsc",), [place], rows, remarks)


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
    rows, remarks = [], list[str]()
    for method, network in dict.fromkeys((*names, *ours_alone)):
        members = [one for one in shown if (one.row.method, one.row.network or "") == (method, network)]
        ours, passed_over = _best(
            members, lambda one: Place(one.place.dataset, conditions=one.place.conditions), _as_the_paper
        )
        remarks += passed_over
        mine = {
            (Place(score.dataset), score.metric.lower()): score
            for score in scores
            if (score.method, score.network) == (method, network)
        }
        missing = [place for place in places if place not in ours and (method, network) in names]
        commands = {place: _commands(method, network, place.dataset, found) for place in missing}
        rows.append(PaperRow((_as_published(method), _as_published(network)), mine, ours, commands))
    return _table(number, ("Method", "Network"), METRICS, places, rows, remarks)


def _table(
    number: str,
    titles: tuple[str, ...],
    metrics: tuple[str, ...],
    places: Sequence[Place],
    rows: Sequence[PaperRow],
    remarks: Sequence[str],
) -> PaperTable:
    """Add the groups of columns that only ours has, and the notes, of which `remarks` are the last."""
    others = dict.fromkeys(place for row in rows for place in row.ours if place not in places)
    notes = []
    if any(place in row.ours for row in rows for place in places):
        notes.append(
            "Difference: our mean from the published one, in points, with its 95 % interval over our cases and seeds; "
            "the published mean is taken as exact. Splits are drawn anew, so the test cases are not the paper's."
        )
    if any(one.groups for row in rows for place, one in row.ours.items() if place in places):
        notes.append(
            "Where several of our runs share a pretraining, the interval holds for these pretrainings, which count "
            "equally in the difference, and not for others."
        )
    if others:
        notes.append(f"Other data, networks or conditions than published, so no difference: {_titles(others)}.")
    return PaperTable(number, titles, metrics, [*places, *others], rows, [*notes, *dict.fromkeys(remarks)])


def _titles(places: Mapping[Place, None]) -> str:
    return "; ".join(place.title for place in places)


def _as_the_paper(one: Candidate) -> bool:
    """Return whether networks on other data than the pretraining's started as the paper's: from one on the first."""
    return bool(one.ours.runs[0].summary.get("via"))


def _best(
    found: Sequence[Candidate],
    place_of: Callable[[Candidate], Place],
    preferred: Callable[[Candidate], bool] = lambda one: False,
) -> tuple[dict[Place, Ours], list[str]]:
    """Choose what stands in each place, and name the pretrainings that it was preferred to.

    A preferred candidate comes first, then the one with the longest pretraining, then the one with most seeds, of
    equals the first.
    """
    ranked: dict[Place, list[Candidate]] = {}
    for one in sorted(found, key=lambda one: (not preferred(one), -one.epochs, -one.ours.seeds)):
        ranked.setdefault(place_of(one), []).append(one)
    notes = []
    for first, *others in ranked.values():
        left = [one for one in others if preferred(one) == preferred(first) and _differ(one, first)]
        if left:
            notes.append(
                "Of several pretrainings that fit, the longest stands in a cell, of equals the one with most seeds: "
                f"{_pretraining(first)}, not {', '.join(dict.fromkeys(map(_pretraining, left)))}."
            )
    return {place: members[0].ours for place, members in ranked.items()}, notes


def _differ(one: Candidate, other: Candidate) -> bool:
    """Return whether two pretrainings are known to differ in more than their seeds."""
    first, second = one.pretraining, other.pretraining
    return first is not None and second is not None and but_seed(first) != but_seed(second)


def _pretraining(one: Candidate) -> str:
    """Name the pretraining of a candidate and its length."""
    name = one.pretraining.name if one.pretraining else one.row.initialisation
    return f"{name} ({one.epochs:.6g} epochs)" if one.epochs else name


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
    known = [one.row.data for one in found if one.place.dataset == dataset and one.row.data]
    return known[0] if known else f"shards/{_target(dataset)}"


def _target(dataset: str) -> str:
    return next(name for name, target in TARGETS.items() if target.title == dataset)


def _as_published(name: str) -> str:
    """Put the paper's name of a method or network before ours, where they differ."""
    theirs = next((paper for paper, ours in OURS.items() if ours == name), None)
    return name if theirs is None else f"{theirs} ({name})"


def _spark() -> Mapping[str, Any] | None:
    return variant_of({"method": {"masking": "random"}})
