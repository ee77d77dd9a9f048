"""Results of the arms of an experiment: their scores, the paired comparisons between them, and tables of both.

An arm is one way to initialise the network; its runs are finetunings that differ in seed and in the pretraining they
start from. Scores are fractions; tables show percent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from anatomask.evaluation.statistics import (
    NO_DIFFERENCE,
    Curve,
    Interval,
    Verdict,
    difference_interval,
    holm,
    mean_curve,
    paired_differences,
    signed_rank_p,
    updates_to_reach,
    verdict,
)

Scores = Mapping[str, float]
"""Score of each patient, by name."""
Pair = tuple[str, str]
"""Names of two arms that are compared: the arm, and the reference whose scores are subtracted."""

SHARE = 0.95
"""Share of the reference arm's final score whose first crossing is reported."""
NONE = "–"


@dataclass(frozen=True)
class ArmRun:
    """One finetuning, scored."""

    seed: int
    """Seed of the finetuning; runs of two arms with the same seed are a pair, with the same training cases."""
    dsc: Scores
    """Mean DSC over classes."""
    pretraining: str = ""
    """Name of the pretraining the run starts from; empty for one that starts from scratch."""
    nsd: Mapping[float, Scores] = field(default_factory=dict)
    """Mean NSD over classes at each tolerance in mm."""
    organs: Mapping[str, Scores] = field(default_factory=dict)
    """DSC of each organ, in the patients who have it."""
    curve: Curve = ()
    """Points (updates, mean DSC over patients); empty if only the end was scored."""

    @classmethod
    def from_organs(
        cls,
        seed: int,
        dsc: Mapping[str, Scores],
        *,
        pretraining: str = "",
        nsd: Mapping[float, Mapping[str, Scores]] = MappingProxyType({}),
        curve: Curve = (),
    ) -> ArmRun:
        """Build a run from the scores of each patient's organs (patient → organ → score); `nsd` has them per tolerance.

        A patient's score is the mean over the organs present.
        """
        organs: dict[str, dict[str, float]] = {}
        for patient, scores in dsc.items():
            for organ, score in scores.items():
                organs.setdefault(organ, {})[patient] = score
        means = {tolerance: _patient_means(scores) for tolerance, scores in nsd.items()}
        return cls(seed, _patient_means(dsc), pretraining, means, organs, curve)


Arms = Mapping[str, Sequence[ArmRun]]
"""Runs of each arm by the arm's name, in the order of the tables."""


@dataclass(frozen=True)
class Comparison:
    """One arm against another in DSC, over the seeds that both have."""

    arm: str
    reference: str
    interval: Interval
    by_pretraining: Mapping[str, float]
    """Mean difference for each pretraining: the arm's, or the arm's and the reference's."""
    p: float
    """P-value of Wilcoxon's signed-rank test on the patients' seed-averaged differences."""
    p_holm: float | None = None
    """P-value after Holm's correction; None where none is made."""

    @property
    def verdict(self) -> Verdict:
        """Name what the interval shows."""
        return verdict(self.interval)


def compare(arms: Arms, pair: Pair, *, seed: int = 0) -> Comparison:
    """Compare the DSC of two arms by their runs with the same seed; `seed` is the bootstrap's.

    Raises:
        ValueError: The arms share no seed, one has a seed twice, or a patient has no score in one of the runs.
    """
    arm, reference = pair
    runs = _runs_in_common(arms, pair)
    if not runs:
        raise ValueError(f"{arm} and {reference} have no runs with the same seed")
    patients = sorted(set().union(*(run.dsc for both in runs for run in both)))
    differences = paired_differences(
        _score_array(arm, [first for first, _ in runs], patients),
        _score_array(reference, [second for _, second in runs], patients),
    )
    groups = [" and ".join(filter(None, (first.pretraining, second.pretraining))) for first, second in runs]
    by_pretraining = {
        name: float(np.mean([row.mean() for row, group in zip(differences, groups, strict=True) if group == name]))
        for name in dict.fromkeys(groups)
    }
    interval = difference_interval(differences, groups, seed=seed)
    return Comparison(arm, reference, interval, by_pretraining, signed_rank_p(differences, groups))


def compare_all(arms: Arms, primary: Sequence[Pair], others: Sequence[Pair] = (), *, seed: int = 0) -> list[Comparison]:
    """Make each comparison whose arms have runs with the same seed.

    Holm's correction is over the `primary` comparisons, and made once there are runs for all of them.

    Raises:
        ValueError: As `compare` does.
    """
    made = {pair: compare(arms, pair, seed=seed) for pair in [*primary, *others] if _runs_in_common(arms, pair)}
    if all(pair in made for pair in primary):
        for pair, adjusted in zip(primary, holm([made[pair].p for pair in primary]), strict=True):
            made[pair] = replace(made[pair], p_holm=adjusted)
    return list(made.values())


def evidence_markdown(
    arms: Arms, primary: Sequence[Pair], others: Sequence[Pair] = (), *, reference: str = "scratch", seed: int = 0
) -> str:
    """Write the tables of an experiment as Markdown: arms, comparisons, organs if they were scored, and notes.

    Raises:
        ValueError: As `compare` does.
    """
    comparisons = compare_all(arms, primary, others, seed=seed)
    parts = [arms_table(arms, reference), comparisons_table(comparisons), organs_table(arms), notes(comparisons)]
    return "\n".join(part for part in parts if part)


def arms_table(arms: Arms, reference: str = "scratch") -> str:
    """Tabulate each arm's scores and the updates it needs to reach `SHARE` of the reference arm's final DSC."""
    tolerances = sorted({tolerance for runs in arms.values() for run in runs for tolerance in run.nsd})
    titles = ["Arm", "Seeds", "DSC [%]", "SD over seeds", *(f"NSD at {value:g} mm [%]" for value in tolerances)]
    rows = []
    for name, runs in arms.items():
        means = [_mean(run.dsc.values()) for run in runs]
        cells = [name, str(len(runs)), _over_patients(run.dsc for run in runs)]
        cells.append(f"{100 * np.std(means, ddof=1):.1f}" if len(runs) > 1 else NONE)
        cells += [_over_patients(run.nsd[value] for run in runs if value in run.nsd) for value in tolerances]
        rows.append([*cells, _reached(arms, name, reference)])
    return _markdown([*titles, f"Updates to {100 * SHARE:g} % of {reference}'s end"], rows)


def comparisons_table(comparisons: Sequence[Comparison]) -> str:
    """Tabulate comparisons: the difference in DSC points with its 95 % interval, the p-values and the verdict."""
    titles = ["Comparison", "Pairs", "Difference [DSC points]", "By pretraining", "p", "p (Holm)", "Verdict"]
    rows = []
    for made in comparisons:
        interval = made.interval
        groups = ", ".join(f"{name} {points(value)}" for name, value in made.by_pretraining.items() if name)
        rows.append(
            [
                f"{made.arm} – {made.reference}",
                str(interval.seeds),
                f"{points(interval.mean)} [{points(interval.low)}, {points(interval.high)}]",
                groups or NONE,
                p_value(made.p),
                p_value(made.p_holm),
                made.verdict,
            ]
        )
    return _markdown(titles, rows) if rows else ""


def organs_table(arms: Arms) -> str:
    """Tabulate each organ's DSC in each arm; empty if no run has scores of organs."""
    organs = dict.fromkeys(organ for runs in arms.values() for run in runs for organ in run.organs)
    rows = [
        [organ, *(_over_patients(run.organs[organ] for run in runs if organ in run.organs) for runs in arms.values())]
        for organ in organs
    ]
    return _markdown(["DSC [%]", *arms], rows) if rows else ""


def notes(comparisons: Sequence[Comparison]) -> str:
    """Write what a reader needs to trust the tables."""
    sentences = [
        "Scores: mean ± SD over patients, whose scores are averaged over seeds first.",
        "Updates: where the mean curve of all seeds crosses that score for the first time, by linear interpolation.",
    ]
    if comparisons:
        sentences += [
            "Differences: mean over pairs of runs with the same seed, and over pretrainings, with its 95 % interval "
            "(for other seeds and patients, and these pretrainings).",
            f"An interval within ±{100 * NO_DIFFERENCE:g} point is no difference, one that holds 0 and reaches "
            "beyond that is undecided.",
            "p: Wilcoxon's signed-rank test on patients' differences averaged over seeds; it treats patients as random "
            "but not seeds, so it can be small where the interval holds 0. Holm's correction is over the primary "
            "comparisons.",
        ]
    fixed = [f"{made.arm} – {made.reference}" for made in comparisons if not made.interval.over_seeds]
    if fixed:
        sentences.append(
            f"No pretraining has two seeds, so the interval holds for these runs only: {', '.join(fixed)}."
        )
    few = [f"{made.arm} – {made.reference}" for made in comparisons if made.interval.method == "t"]
    if few:
        sentences.append(f"Student's t instead of the bootstrap, for few seeds or patients: {', '.join(few)}.")
    return " ".join(sentences) + "\n"


def reference_score(arms: Arms, reference: str) -> float | None:
    """Find the last score of an arm's mean curve; None if the arm has no curves."""
    curves = [run.curve for run in arms.get(reference, ()) if run.curve]
    return float(mean_curve(curves).mean[-1]) if curves else None


def _reached(arms: Arms, name: str, reference: str) -> str:
    goal, curves = reference_score(arms, reference), [run.curve for run in arms[name] if run.curve]
    if goal is None or not curves:
        return NONE
    band = mean_curve(curves)
    updates = updates_to_reach(list(zip(band.updates, band.mean, strict=True)), goal, SHARE)
    if updates is None:
        return f"not within {band.updates[-1]:,.0f}"
    return f"at most {updates:,.0f}" if updates == band.updates[0] else f"{updates:,.0f}"


def _runs_in_common(arms: Arms, pair: Pair) -> list[tuple[ArmRun, ArmRun]]:
    """List the pairs of runs with the same seed, in the order of seeds."""
    first, second = (_by_seed(name, arms.get(name, ())) for name in pair)
    return [(first[seed], second[seed]) for seed in sorted(first) if seed in second]


def _by_seed(arm: str, runs: Sequence[ArmRun]) -> dict[int, ArmRun]:
    found = {run.seed: run for run in runs}
    if len(found) < len(runs):
        raise ValueError(f"{arm} has several runs with one seed: {sorted(run.seed for run in runs)}")
    return found


def _score_array(arm: str, runs: Sequence[ArmRun], patients: Sequence[str]) -> np.ndarray:
    """Collect the DSC `(S, P)` of every run and patient."""
    for run in runs:
        missing = [patient for patient in patients if not math.isfinite(run.dsc.get(patient, math.nan))]
        if missing:
            raise ValueError(f"{arm}, seed {run.seed}: no score for patient {', '.join(missing)}")
    return np.array([[run.dsc[patient] for patient in patients] for run in runs])


def _over_patients(scores: Iterable[Scores]) -> str:
    """Format the mean ± SD over patients of scores that are averaged over runs first."""
    by_patient: dict[str, list[float]] = {}
    for run in scores:
        for patient, score in run.items():
            by_patient.setdefault(patient, []).append(score)
    if not by_patient:
        return NONE
    means = [_mean(values) for values in by_patient.values()]
    return (
        f"{100 * _mean(means):.1f} ± {100 * np.std(means, ddof=1):.1f}" if len(means) > 1 else f"{100 * means[0]:.1f}"
    )


def _patient_means(scores: Mapping[str, Scores]) -> dict[str, float]:
    return {patient: _mean(organs.values()) for patient, organs in scores.items()}


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def points(value: float) -> str:
    """Format a difference in DSC points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def p_value(value: float | None) -> str:
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a GitHub-flavoured table whose first column is aligned to the left, the others to the right."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"
