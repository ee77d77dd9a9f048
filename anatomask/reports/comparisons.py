"""Comparisons between the rows of a table: what is better, what is not, and what cannot be told.

Each row is compared with its twin from scratch, and the best of a data set with all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from anatomask.evaluation.results import case_means
from anatomask.evaluation.statistics import NO_DIFFERENCE, holm
from anatomask.reports.evidence import ArmRun, Comparison, compare, p_value, points
from anatomask.reports.provenance import pretrainings_of, shared
from anatomask.reports.seeds import Arm
from anatomask.reports.tables import METRICS, Row, best_runs, by_dataset, in_what_differ, row_names

SCRATCH = "scratch"
"""Method of a row that starts from random weights."""
TITLES = ("Comparison", "Pairs", "points [95 %]", "p", "p (Holm)", "Verdict")


@dataclass(frozen=True)
class RowComparison:
    """Comparison of two rows of a table in one metric."""

    dataset: str
    metric: str
    rows: tuple[int, int]
    """Positions of the row and of the one whose scores are subtracted."""
    comparison: Comparison


def compare_rows(arms: Sequence[Arm], rows: Sequence[Row]) -> list[RowComparison]:
    """Compare the rows of each data set that were scored alike, in DSC and NSD.

    Holm's correction is over the comparisons of one metric on one data set.
    """
    made = []
    sources = [pretrainings_of(arm) for arm in arms]
    for dataset, members in by_dataset([(row.dataset, row.data) for row in rows]).items():
        for metric in METRICS:
            found = []
            for pair in _pairs(arms, rows, members, metric):
                comparison = _compare(arms, rows, sources, pair, metric)
                if comparison is not None:
                    found.append(RowComparison(dataset, metric, pair, comparison))
            adjusted = holm([one.comparison.p for one in found])
            made += [
                replace(one, comparison=replace(one.comparison, p_holm=p))
                for one, p in zip(found, adjusted, strict=True)
            ]
    return made


def twin_of(arms: Sequence[Arm], rows: Sequence[Row], index: int) -> int | None:
    """Find the row from scratch that differs from a row in its start alone, else in little more; None without one."""
    row = rows[index]
    others = [
        other
        for other, candidate in enumerate(rows)
        if candidate.method == SCRATCH
        and (candidate.dataset, candidate.data, candidate.train_fraction) == (row.dataset, row.data, row.train_fraction)
        and not in_what_differ([row, candidate])
    ]
    return min(others, key=lambda other: not is_twin(arms[index], arms[other]), default=None)


def is_twin(arm: Arm, scratch: Arm) -> bool:
    """Return whether runs are known to differ in their start, and their seeds, alone."""
    first, second = (run[0].summary.get("training") for run in (arm, scratch))
    return bool(first and second and first["starts"] == second["starts"])


def comparisons_table(made: Sequence[RowComparison], rows: Sequence[Row]) -> Table:
    """Build a rich table of the comparisons in DSC for 80 columns; what is not better or worse is dim."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in (TITLES[0], TITLES[1], f"DSC {TITLES[2]}", *TITLES[3:]):
        numeric = title not in (TITLES[0], TITLES[-1])
        table.add_column(title, justify="right" if numeric else "left", no_wrap=title != TITLES[0], overflow="fold")
    for one in made:
        if one.metric == "dsc":
            decided = one.comparison.verdict in ("better", "worse")
            table.add_row(*map(Text, comparison_cells(one, rows)), style="" if decided else "dim")
    return table


def comparisons_markdown(made: Sequence[RowComparison], rows: Sequence[Row]) -> str:
    """Format the comparisons in DSC and NSD as a GitHub-flavoured table; empty without any."""
    if not made:
        return ""
    lines = [comparison_titles(), ["---", "---:", "---:", "---:", "---:", "---"]]
    for one in made:
        name, *others = comparison_cells(one, rows)
        lines.append([f"{name}, {one.metric.upper()}", *others])
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def comparison_titles() -> list[str]:
    """Return the titles of `comparison_cells`."""
    return [TITLES[0], TITLES[1], f"Difference [{TITLES[2].replace(' [', ', ')}", *TITLES[3:]]


def comparison_notes(made: Sequence[RowComparison], arms: Sequence[Arm], rows: Sequence[Row]) -> list[str]:
    """List what a reader needs to trust the comparisons."""
    sentences = []
    if made:
        margin = f"{100 * NO_DIFFERENCE:g}"
        sentences = [
            "Comparisons: mean difference over cases, and over pairs of runs of one seed, with its 95 % interval; p of "
            "Wilcoxon's signed-rank test over cases, with Holm's correction over the comparisons of a data set; it "
            "leaves out chance in the seeds, so it can be small where the interval holds 0.",
            f"No difference: the interval lies within ±{margin} point; undecided: it holds 0 and reaches beyond that.",
            "Bold: the best, and what it was not shown to be better than.",
        ]
    fixed = [_title(one, rows) for one in made if one.metric == "dsc" and any(one.comparison.by_pretraining)]
    if fixed:
        sentences.append(
            "Several runs of a row share a pretraining, so the interval holds for these pretrainings, which count "
            f"equally, and not for others: {', '.join(fixed)}."
        )
    few = [_title(one, rows) for one in made if one.metric == "dsc" and not one.comparison.interval.over_seeds]
    if few:
        sentences.append(f"One seed, so the interval holds for these very runs, not for other seeds: {', '.join(few)}.")
    apart = [_title(one, rows) for one in made if one.metric == "dsc" and not _common_seeds(arms, one.rows)]
    if apart:
        sentences.append(f"Pairs of runs whose seeds differ or are not known: {', '.join(apart)}.")
    return sentences


def not_worse(made: Sequence[RowComparison], best: Mapping[str, set[int]]) -> dict[str, set[int]]:
    """Add to the best rows of each metric those that none of them was shown to be better than."""
    found = {metric: set(indices) for metric, indices in best.items()}
    for one in made:
        first, second = one.rows
        if first in best[one.metric] and one.comparison.verdict in ("no difference", "undecided"):
            found[one.metric].add(second)
        if second in best[one.metric] and one.comparison.verdict in ("no difference", "undecided"):
            found[one.metric].add(first)
    return found


def twin_notes(arms: Sequence[Arm], rows: Sequence[Row]) -> Iterator[str]:
    """Say which rows lack a twin from scratch, with the command that trains it, and which have one that is none."""
    for index, row in enumerate(rows):
        if row.method == SCRATCH:
            continue
        twin = twin_of(arms, rows, index)
        if twin is None:
            run = arms[index][0].folder
            again = scratch_command(run, f"{run.name}-scratch")
            yield (
                f"{row_label(index, rows)} on {row.dataset} has no run from scratch beside it, without which nothing "
                f"shows that its start helped: make one with {again}, evaluate it, and name it in --runs."
            )
        elif not is_twin(arms[index], arms[twin]):
            yield (
                f"{row_label(twin, rows)} differs from {row_label(index, rows)} in more than the start, or it is not "
                "known whether it does."
            )


def scratch_command(run: Path, name: str, flags: str = "") -> str:
    """Format the command that trains the twin from scratch of a finetuning under a name, with further flags."""
    if (run / "config.yaml").is_file():
        return f"`anatomask finetune --config {run}/config.yaml --init scratch --name {name}{flags}`"
    return "`anatomask finetune` with the same flags, but --init scratch"


def _pairs(arms: Sequence[Arm], rows: Sequence[Row], members: Sequence[int], metric: str) -> list[tuple[int, int]]:
    """List the pairs of rows of one data set: each with its twin from scratch, and the best with all others."""
    twins = [
        (index, twin) for index in members if rows[index].method != SCRATCH for twin in [twin_of(arms, rows, index)]
    ]
    pairs = [(index, twin) for index, twin in twins if twin is not None]
    best = min(best_runs([rows[index] for index in members])[metric], default=None)
    if best is not None:
        pairs += [(members[best], other) for other in members if other != members[best]]
    known: dict[frozenset[int], tuple[int, int]] = {}
    for pair in pairs:
        known.setdefault(frozenset(pair), pair)
    return list(known.values())


def _compare(
    arms: Sequence[Arm], rows: Sequence[Row], sources: Sequence[Sequence[str]], pair: tuple[int, int], metric: str
) -> Comparison | None:
    """Compare two rows by their runs; None where they have too few cases in common, or no scores.

    `sources` names the pretraining of each run of each row.
    """
    names = row_label(pair[0], rows), f"{row_label(pair[1], rows)} "  # two rows of one name are two arms
    common = _common_seeds(arms, pair)
    runs = {}
    for name, index in zip(names, pair, strict=True):
        seeds = rows[index].seeds if common else range(len(arms[index]))
        scores = [case_means(run.by_class, metric) for run in arms[index]]
        if any(len(cases) < 2 or cases.keys() != scores[0].keys() for cases in scores):
            return None
        paired = [
            (seed, cases, source)
            for seed, cases, source in zip(seeds, scores, sources[index], strict=True)
            if not common or seed in common
        ]
        groups = shared([source for _, _, source in paired])
        runs[name] = [ArmRun(seed, cases, group) for (seed, cases, _), group in zip(paired, groups, strict=True)]
    if runs[names[0]][0].dsc.keys() != runs[names[1]][0].dsc.keys():
        return None
    return replace(compare(runs, names), reference=names[1].strip())


def _common_seeds(arms: Sequence[Arm], pair: tuple[int, int]) -> set[int]:
    """List the seeds that the runs of two rows share; none where a run does not tell its own."""
    known = [[run.summary.get("training") for run in arms[index]] for index in pair]
    first, second = ({one["seed"] for one in of_arm if one} for of_arm in known)
    return first & second


def comparison_cells(one: RowComparison, rows: Sequence[Row]) -> list[str]:
    """Format a comparison: names, pairs, difference with its interval, both p-values, verdict."""
    made, interval = one.comparison, one.comparison.interval
    difference = f"{points(interval.mean)} [{points(interval.low)}, {points(interval.high)}]"
    return [_title(one, rows), str(interval.seeds), difference, p_value(made.p), p_value(made.p_holm), made.verdict]


def _title(one: RowComparison, rows: Sequence[Row]) -> str:
    names = f"{one.comparison.arm} – {one.comparison.reference}"
    return names if len({(row.dataset, row.data) for row in rows}) == 1 else f"{one.dataset}: {names}"


def row_label(index: int, rows: Sequence[Row]) -> str:
    """Name a row by its method; by its start, or its run, too, where others of its data set share that."""
    row = rows[index]
    others = [other for other in rows if (other.dataset, other.data) == (row.dataset, row.data)]
    method, start, _ = row_names(row, rows)
    known = [row_names(other, rows)[:2] for other in others]
    if [one for one, _ in known].count(method) == 1:
        return method
    return f"{method} ({start if known.count((method, start)) == 1 else row.run.partition(' + ')[0]})"
