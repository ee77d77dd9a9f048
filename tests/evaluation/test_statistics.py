from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anatomask.evaluation import statistics
from anatomask.evaluation.statistics import (
    Interval,
    difference_interval,
    holm,
    mean_curve,
    paired_differences,
    signed_rank_p,
    updates_to_reach,
    verdict,
)

TWO_PRETRAININGS = [0, 0, 0, 0, 1, 1, 1, 1]
Effects = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.standard_normal(shape)


def skewed(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Gamma with skewness 1, mean 0 and variance 1."""
    return (generator.gamma(4, size=shape) - 4) / 2


def simulate(
    generator: np.random.Generator,
    seed_sd: float,
    patient_sd: float,
    rest_sd: float,
    *,
    seeds: int = 8,
    patients: int = 16,
    patient_effects: Effects = normal,
) -> np.ndarray:
    """Differences (S, P) with mean 0."""
    return (
        seed_sd * generator.standard_normal((seeds, 1))
        + patient_sd * patient_effects(generator, (1, patients))
        + rest_sd * generator.standard_normal((seeds, patients))
    )


# --- the interval ---


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("seed_sd", "patient_sd", "rest_sd", "patient_effects"),
    [
        (1, 1, 1, normal),
        (0, 1, 1, normal),  # no seed effect
        (1, 0, 1, normal),  # no patient effect
        (0.3, 1, 0.5, skewed),
        pytest.param(0, 0, 1, normal, marks=SLOW),  # neither
        pytest.param(0.3, 1, 1, normal, marks=SLOW),
        pytest.param(2, 1, 0.5, normal, marks=SLOW),
        pytest.param(1, 3, 0.5, normal, marks=SLOW),
        pytest.param(0.5, 1, 3, normal, marks=SLOW),
        pytest.param(1, 1, 1, skewed, marks=SLOW),
    ],
)
def test_the_interval_covers_in_94_to_97_percent_of_1000_simulated_comparisons(
    seed_sd: float, patient_sd: float, rest_sd: float, patient_effects: Effects
) -> None:
    """8 seeds in two pretraining groups × 16 patients.

    The interval moves with its data (a test below), so the share of intervals that miss is also that of false
    positives where the true difference is 0.
    """
    generator = np.random.default_rng(20)
    missed, effect = 0, 0.8
    for run in range(1000):
        differences = effect + simulate(generator, seed_sd, patient_sd, rest_sd, patient_effects=patient_effects)
        interval = difference_interval(differences, TWO_PRETRAININGS, resamples=999, seed=run)
        missed += not interval.low <= effect <= interval.high
    assert 30 <= missed <= 60


@pytest.mark.parametrize(("seeds", "lowest"), [(2, 0.85), (3, 0.91), (4, 0.91)])
@pytest.mark.parametrize("sds", [(1, 1, 1), (0, 1, 1), (1, 0, 1), (0.3, 1, 2)])
def test_few_seeds_give_wide_intervals_that_still_cover(
    seeds: int, lowest: float, sds: tuple[float, float, float]
) -> None:
    generator = np.random.default_rng(21)
    covered = 0
    for _ in range(1000):
        interval = difference_interval(simulate(generator, *sds, seeds=seeds))
        assert interval.method == "t"
        assert interval.over_seeds
        covered += interval.low <= 0 <= interval.high
    assert covered / 1000 >= lowest


def test_fewer_seeds_give_a_wider_interval() -> None:
    generator = np.random.default_rng(3)

    def width(seeds: int) -> float:
        intervals = [difference_interval(simulate(generator, 1, 1, 1, seeds=seeds), resamples=999) for _ in range(100)]
        return float(np.median([interval.high - interval.low for interval in intervals]))

    widths = [width(seeds) for seeds in (2, 3, 4, 8)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 2 * widths[-1]


def test_one_seed_is_scipys_t_interval_over_patients() -> None:
    differences = simulate(np.random.default_rng(4), 0, 1, 1, seeds=1)
    interval = difference_interval(differences)
    reference = stats.ttest_1samp(differences[0], 0).confidence_interval()
    assert (interval.low, interval.high) == pytest.approx(tuple(reference))
    assert not interval.over_seeds


def test_one_seed_per_pretraining_is_an_interval_over_patients() -> None:
    differences = simulate(np.random.default_rng(5), 1, 1, 1, seeds=2)
    interval = difference_interval(differences, ["a", "b"])
    reference = stats.ttest_1samp(differences.mean(axis=0), 0).confidence_interval()
    assert (interval.low, interval.high) == pytest.approx(tuple(reference))
    assert not interval.over_seeds


def test_without_a_patient_effect_it_is_scipys_t_interval_over_seeds() -> None:
    rows = np.array([0.1, 0.4, -0.2])
    interval = difference_interval(np.repeat(rows[:, None], 16, axis=1))
    reference = stats.ttest_1samp(rows, 0).confidence_interval()
    assert (interval.low, interval.high) == pytest.approx(tuple(reference))


def test_with_two_groups_it_is_scipys_pooled_t_interval_over_seeds() -> None:
    """The mean over two groups is half of a difference of two samples, one with its sign turned."""
    first, second = np.array([0.1, 0.4, -0.2]), np.array([1.3, 0.7])
    rows = np.concatenate([first, second])
    interval = difference_interval(np.repeat(rows[:, None], 16, axis=1), ["a", "a", "a", "b", "b"])
    reference = stats.ttest_ind(first, -second).confidence_interval()
    assert interval.mean == pytest.approx((first.mean() + second.mean()) / 2)
    assert (2 * interval.low, 2 * interval.high) == pytest.approx(tuple(reference))


@pytest.mark.parametrize("axis", [0, 1])
def test_with_many_units_of_one_kind_it_agrees_with_scipys_bca_bootstrap(axis: int) -> None:
    units = np.random.default_rng(6).gamma(4, size=200)
    differences = np.repeat(units[:, None], 8, axis=1) if axis == 0 else np.repeat(units[None], 8, axis=0)
    interval = difference_interval(differences, resamples=5000)
    reference = stats.bootstrap((units,), np.mean, n_resamples=5000, rng=np.random.default_rng(7))
    width = reference.confidence_interval.high - reference.confidence_interval.low
    assert interval.method == "bootstrap-t"
    assert interval.low == pytest.approx(reference.confidence_interval.low, abs=0.08 * width)
    assert interval.high == pytest.approx(reference.confidence_interval.high, abs=0.08 * width)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(2, 5))
def test_variance_parts_of_a_resample_are_those_of_the_repeated_array(
    seed: int, sizes: list[int], patients: int
) -> None:
    """Counts stand for an array whose rows and columns are repeated; its analysis of variance is spelled out here."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((sum(sizes), patients))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    rows = [np.flatnonzero(groups == group) for group in range(len(sizes))]
    drawn = [generator.choice(members, len(members)) for members in rows]
    columns = generator.integers(patients, size=patients)
    seed_counts = np.bincount(np.concatenate(drawn), minlength=len(values)).astype(float)
    patient_counts = np.bincount(columns, minlength=patients).astype(float)
    found = statistics._variance_parts(values, rows, seed_counts[None], patient_counts[None])

    seed_squares = interaction = 0.0
    for members in drawn:
        block = values[np.ix_(members, columns)]
        for seed_row, patient in itertools.product(range(block.shape[0]), range(patients)):
            rest = block[seed_row, patient] - block[seed_row].mean() - block[:, patient].mean() + block.mean()
            interaction += rest**2
        seed_squares += sum((row.mean() - block.mean()) ** 2 for row in block)
    averages = np.mean([values[np.ix_(members, columns)].mean(axis=0) for members in drawn], axis=0)
    degrees = sum(sizes) - len(sizes)
    scale = sum(size * (1 / (len(sizes) * size)) ** 2 for size in sizes) / max(degrees, 1)
    expected = (
        averages.mean(),
        scale * seed_squares,
        averages.var(ddof=1) / patients,
        scale * interaction / (patients - 1) / patients,
    )
    assert [float(part[0]) for part in found] == pytest.approx(expected, abs=1e-12)


def test_the_variance_is_unbiased() -> None:
    """Its expectation is the variance of the mean in the crossed design: σs²/S + σp²/P + σe²/(S P)."""
    generator = np.random.default_rng(8)
    ones = np.ones((1, 8)), np.ones((1, 16))
    rows = statistics._rows_of_groups(TWO_PRETRAININGS, 8)
    estimates = []
    for _ in range(4000):
        _, seed_part, patient_part, shared = statistics._variance_parts(simulate(generator, 1, 2, 3), rows, *ones)
        estimates.append(float((seed_part + patient_part - shared)[0]))
    assert np.mean(estimates) == pytest.approx(1 / 8 + 4 / 16 + 9 / 128, rel=0.03)


def test_groups_are_fixed_and_count_equally() -> None:
    """A difference between pretrainings moves the mean but does not widen the interval."""
    differences = simulate(np.random.default_rng(9), 1, 1, 1)
    apart = differences + 10.0 * np.array(TWO_PRETRAININGS)[:, None]
    near, far = difference_interval(differences, TWO_PRETRAININGS), difference_interval(apart, TWO_PRETRAININGS)
    assert far.mean == pytest.approx(near.mean + 5)
    assert far.high - far.low == pytest.approx(near.high - near.low)
    assert difference_interval(apart).high - difference_interval(apart).low > 2 * (far.high - far.low)
    uneven = np.repeat([[1.0], [1.0], [1.0], [3.0]], 5, axis=1)
    assert difference_interval(uneven, ["a", "a", "a", "b"]).mean == pytest.approx(2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(-3, 3), st.floats(0.01, 10), st.sampled_from([3, 8]))
def test_the_interval_moves_and_scales_with_the_differences(seed: int, shift: float, scale: float, seeds: int) -> None:
    differences = simulate(np.random.default_rng(seed), 1, 1, 1, seeds=seeds)
    first = difference_interval(differences, resamples=199)
    second = difference_interval(shift - scale * differences, resamples=199)
    assert second.low == pytest.approx(shift - scale * first.high, abs=1e-6)
    assert second.high == pytest.approx(shift - scale * first.low, abs=1e-6)


def test_the_same_seed_gives_the_same_interval_and_order_of_rows_does_not_matter_to_the_mean() -> None:
    differences = simulate(np.random.default_rng(10), 1, 1, 1)
    assert difference_interval(differences, seed=1) == difference_interval(differences, seed=1)
    assert difference_interval(differences, seed=1) != difference_interval(differences, seed=2)


@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_differences_that_are_all_equal_have_an_interval_without_width(seeds: int) -> None:
    interval = difference_interval(np.full((seeds, 16), 0.5), resamples=99)
    assert (interval.low, interval.mean, interval.high) == (0.5, 0.5, 0.5)


# --- bad input ---


def test_a_patient_without_a_score_is_named() -> None:
    arm, reference = np.zeros((2, 5)), np.zeros((2, 5))
    reference[1, 3] = np.nan
    with pytest.raises(ValueError, match="reference: patient 3 has no score with the seed in row 1"):
        paired_differences(arm, reference)
    with pytest.raises(ValueError, match="patient 3"):
        difference_interval(arm - reference)
    with pytest.raises(ValueError, match="patient 3"):
        signed_rank_p(arm - reference)


def test_arms_of_other_shapes_and_wrong_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        paired_differences(np.zeros((2, 5)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="no scores"):
        paired_differences(np.zeros((0, 5)), np.zeros((0, 5)))
    with pytest.raises(ValueError, match="3 groups are named for 2 rows"):
        difference_interval(np.zeros((2, 5)), [0, 0, 1])
    with pytest.raises(ValueError, match="at least 2 patients"):
        difference_interval(np.zeros((2, 1)))


def test_paired_differences_are_arm_minus_reference() -> None:
    assert paired_differences(np.array([[0.5, 0.7]]), np.array([[0.4, 0.9]])) == pytest.approx(np.array([[0.1, -0.2]]))


# --- tests ---


def test_signed_rank_is_scipys_on_patients_averages() -> None:
    differences = simulate(np.random.default_rng(11), 1, 1, 1) + 0.5
    assert signed_rank_p(differences) == stats.wilcoxon(differences.mean(axis=0)).pvalue
    uneven = signed_rank_p(differences[:3], ["a", "a", "b"])
    assert uneven == stats.wilcoxon((differences[:2].mean(axis=0) + differences[2]) / 2).pvalue
    assert signed_rank_p(np.zeros((3, 16))) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_closed_test_of_bonferroni_rejects(p_values: list[float], level: float) -> None:
    """Holm's procedure is the closure of Bonferroni's: a hypothesis falls with every intersection it is part of."""
    rejected = [
        all(
            min(p_values[k] for k in others) <= level / len(others)
            for size in range(1, len(p_values) + 1)
            for others in itertools.combinations(range(len(p_values)), size)
            if index in others
        )
        for index in range(len(p_values))
    ]
    adjusted = holm(p_values)
    close = [abs(value - level) < 1e-9 for value in adjusted]
    assert [(value <= level) or near for value, near in zip(adjusted, close, strict=True)] == [
        falls or near for falls, near in zip(rejected, close, strict=True)
    ]


def test_holm_on_the_worked_example_of_two_comparisons() -> None:
    assert holm([0.04, 0.01]) == pytest.approx([0.04, 0.02])
    assert holm([0.03, 0.04, 0.01]) == pytest.approx([0.06, 0.06, 0.03])
    assert holm([0.6, 0.7]) == pytest.approx([1, 1])
    assert holm([]) == []


# --- verdict ---


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.008, 0.009, "no difference"),
        (-0.01, 0.01, "no difference"),
        (0.001, 0.009, "no difference"),  # excludes 0, but is too small to matter
        (-0.012, 0.009, "undecided"),
        (-0.03, 0.05, "undecided"),
        (0.0, 0.02, "undecided"),
        (0.001, 0.02, "better"),
        (0.02, 0.05, "better"),
        (-0.03, -0.002, "worse"),
    ],
)
def test_verdict(low: float, high: float, expected: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high, "t", 8, 16, True)) == expected


# --- learning curves ---


def test_updates_until_a_share_is_reached_lie_between_two_points() -> None:
    curve = [(600, 0.5), (300, 0.1), (900, 0.7)]
    assert updates_to_reach(curve, 0.6, share=0.95) == pytest.approx(600 + 300 * 0.07 / 0.2)
    assert updates_to_reach(curve, 0.5, share=1) == 600
    assert updates_to_reach(curve, 0.1) == 300
    assert updates_to_reach(curve, 0.8) is None


def test_the_first_crossing_counts_where_a_curve_falls_again() -> None:
    assert updates_to_reach([(0, 0.0), (100, 0.6), (200, 0.2), (300, 0.9)], 0.3, share=1) == pytest.approx(50)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0.05, 1), st.floats(0.1, 1))
def test_the_curve_is_below_the_target_before_and_at_it_then(
    scores: list[float], reference: float, share: float
) -> None:
    updates = np.arange(len(scores)) * 100.0
    found = updates_to_reach(list(zip(updates, scores, strict=True)), reference, share)
    grid = np.linspace(0, updates[-1], 1001)
    values = np.interp(grid, updates, scores)
    if found is None:
        assert max(scores) < share * reference
    else:
        assert (
            np.interp(found, updates, scores) == pytest.approx(max(share * reference, scores[0]), abs=1e-6)
            or found == 0
        )
        assert (values[grid < found - 1e-6] < share * reference).all()


def test_mean_curve_of_several_seeds() -> None:
    band = mean_curve([[(100, 0.2), (200, 0.4)], [(200, 0.8), (100, 0.2)], [(100, 0.5), (200, 0.6), (300, 0.9)]])
    assert band.updates.tolist() == [100, 200]
    assert band.mean == pytest.approx([0.3, 0.6])
    assert band.sd == pytest.approx([np.std([0.2, 0.2, 0.5], ddof=1), 0.2])
    assert mean_curve([[(100, 0.2)]]).sd.tolist() == [0]


def test_curves_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(ValueError, match="in common"):
        mean_curve([[(100, 0.2)], [(200, 0.2)]])
    with pytest.raises(ValueError, match="in common"):
        mean_curve([])
    with pytest.raises(ValueError, match="missing"):
        updates_to_reach([(100, np.nan)], 0.5)
    with pytest.raises(ValueError, match="no points"):
        updates_to_reach([], 0.5)
