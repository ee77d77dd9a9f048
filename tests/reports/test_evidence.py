"""Comparisons of arms, their tables and their figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from anatomask.evaluation.statistics import difference_interval, signed_rank_p
from anatomask.reports.evidence import (
    ArmRun,
    arms_table,
    compare,
    compare_all,
    comparisons_table,
    evidence_markdown,
    organs_table,
)
from anatomask.reports.evidence_figure import evidence_figure

PATIENTS = [f"pt_{number:03d}" for number in range(1, 17)]
PRIMARY = [("AnatoMask", "scratch"), ("AnatoMask", "SparK")]


def run(seed: int, level: float, pretraining: str = "", *, spread: float = 0.02, late: float = 400) -> ArmRun:
    """A run whose patients have DSC around `level` and whose curve rises to it, halfway at `late` updates."""
    generator = np.random.default_rng([seed, int(1000 * level)])
    effects = np.random.default_rng(1).normal(0, 0.06, len(PATIENTS)) + generator.normal(0, spread, len(PATIENTS))
    dsc = dict(zip(PATIENTS, (level + effects).tolist(), strict=True))
    end = float(np.mean(list(dsc.values())))
    updates = (200, 400, 600, 800, 1000)
    curve = [(update, end / (1 + np.exp((late - update) / 120))) for update in updates]
    nsd: dict[float, dict[str, float]] = {
        tolerance: {name: score + shift for name, score in dsc.items()} for tolerance, shift in ((2, 0.05), (3, 0.1))
    }
    organs = {"brainstem": {name: score + 0.1 for name, score in dsc.items()}, "chiasm": {PATIENTS[0]: 0.3}}
    return ArmRun(seed, dsc, pretraining, nsd, organs, curve)


def pretrained(name: str, levels: np.ndarray, late: float) -> list[ArmRun]:
    return [run(seed, level, f"{name} {seed // 4}", late=late) for seed, level in enumerate(levels)]


@pytest.fixture
def arms() -> dict[str, list[ArmRun]]:
    generator = np.random.default_rng(2)
    return {
        "scratch": [run(seed, 0.62 + level, late=450) for seed, level in enumerate(generator.normal(0, 0.015, 8))],
        "SparK": pretrained("s", 0.63 + generator.normal(0, 0.012, 8), 330),
        "AnatoMask": pretrained("a", 0.66 + generator.normal(0, 0.012, 8), 280),
    }


def array(runs: Sequence[ArmRun]) -> np.ndarray:
    return np.array([[run.dsc[patient] for patient in PATIENTS] for run in runs])


def test_a_comparison_pairs_runs_by_seed_and_patient(arms: dict[str, list[ArmRun]]) -> None:
    differences = array(arms["AnatoMask"]) - array(arms["scratch"])
    groups = [0, 0, 0, 0, 1, 1, 1, 1]
    shuffled = {name: runs[::-1] for name, runs in arms.items()}
    shuffled["scratch"] = [
        ArmRun(run.seed, {patient: run.dsc[patient] for patient in reversed(PATIENTS)}) for run in arms["scratch"][2:]
    ] + arms["scratch"][:2]
    made = compare(shuffled, ("AnatoMask", "scratch"))
    assert made.interval == difference_interval(differences, groups)
    assert made.p == signed_rank_p(differences, groups)
    assert made.by_pretraining == {
        "a 0": pytest.approx(differences[:4].mean()),
        "a 1": pytest.approx(differences[4:].mean()),
    }
    assert made.verdict == "better"


def test_only_seeds_of_both_arms_count(arms: dict[str, list[ArmRun]]) -> None:
    arms["scratch"] = arms["scratch"][:3] + arms["scratch"][5:6]
    made = compare(arms, ("AnatoMask", "scratch"))
    assert made.interval.seeds == 4
    assert made.interval.method == "t"
    differences = array([arms["AnatoMask"][seed] for seed in (0, 1, 2, 5)]) - array(arms["scratch"])
    assert made.interval.mean == pytest.approx((differences[:3].mean() + differences[3].mean()) / 2)


def test_two_pretrained_arms_are_grouped_by_both_pretrainings(arms: dict[str, list[ArmRun]]) -> None:
    assert list(compare(arms, ("AnatoMask", "SparK")).by_pretraining) == ["a 0 and s 0", "a 1 and s 1"]


def test_holms_correction_is_over_the_primary_comparisons_alone(arms: dict[str, list[ArmRun]]) -> None:
    first, second, third = compare_all(arms, PRIMARY, [("SparK", "scratch")])
    assert first.p_holm is not None and second.p_holm is not None
    assert max(first.p_holm, second.p_holm) == pytest.approx(max(2 * min(first.p, second.p), first.p, second.p))
    assert min(first.p_holm, second.p_holm) == pytest.approx(2 * min(first.p, second.p))
    assert third.p_holm is None


def test_what_has_no_runs_yet_is_left_out(arms: dict[str, list[ArmRun]]) -> None:
    arms["SparK"] = []
    (only,) = compare_all(arms, PRIMARY)
    assert (only.reference, only.p_holm) == ("scratch", None)
    text = evidence_markdown(arms, PRIMARY)
    assert "| SparK | 0 | – | – |" in text
    assert compare_all({"scratch": []}, PRIMARY) == []
    assert "Comparison" not in evidence_markdown({"scratch": arms["scratch"]}, PRIMARY)


def test_a_patient_without_a_score_is_named(arms: dict[str, list[ArmRun]]) -> None:
    scores = dict(arms["SparK"][2].dsc)
    del scores["pt_005"]
    arms["SparK"][2] = ArmRun(2, scores, "s 0")
    with pytest.raises(ValueError, match="SparK, seed 2: no score for patient pt_005"):
        compare_all(arms, PRIMARY)
    arms["SparK"][2] = ArmRun(2, {**scores, "pt_005": float("nan")}, "s 0")
    with pytest.raises(ValueError, match="SparK, seed 2: no score for patient pt_005"):
        compare_all(arms, PRIMARY)


def test_arms_that_cannot_be_paired_are_refused(arms: dict[str, list[ArmRun]]) -> None:
    with pytest.raises(ValueError, match="no runs with the same seed"):
        compare({"a": arms["scratch"][:2], "b": arms["scratch"][2:]}, ("a", "b"))
    with pytest.raises(ValueError, match="scratch has several runs with one seed"):
        compare({**arms, "scratch": arms["scratch"] * 2}, ("AnatoMask", "scratch"))


def test_the_table_of_arms() -> None:
    arms = {
        "scratch": [
            ArmRun(0, {"a": 0.5, "b": 0.7}, nsd={2: {"a": 0.6, "b": 0.6}}, curve=[(100, 0.2), (200, 0.6)]),
            ArmRun(1, {"a": 0.6, "b": 0.8}, nsd={2: {"a": 0.8, "b": 0.6}}, curve=[(100, 0.2), (200, 0.8)]),
        ],
        "AnatoMask": [ArmRun(0, {"a": 0.5, "b": 0.5}, "p", curve=[(100, 0.7), (200, 0.7)])],
        "SparK": [ArmRun(0, {"a": 0.5, "b": 0.5}, "p", curve=[(100, 0.1), (1200, 0.2)])],
    }
    lines = arms_table(arms).splitlines()
    assert lines[0] == "| Arm | Seeds | DSC [%] | SD over seeds | NSD at 2 mm [%] | Updates to 95 % of scratch's end |"
    # SD over patients of 0.55 and 0.75, over seeds of 0.6 and 0.7; 0.95 × 0.7 lies at 93 % of the way from 0.2 to 0.7.
    assert lines[2] == "| scratch | 2 | 65.0 ± 14.1 | 7.1 | 65.0 ± 7.1 | 193 |"
    assert lines[3] == "| AnatoMask | 1 | 50.0 ± 0.0 | – | – | at most 100 |"
    assert lines[4] == "| SparK | 1 | 50.0 ± 0.0 | – | – | not within 1,200 |"


def test_the_table_of_comparisons(arms: dict[str, list[ArmRun]]) -> None:
    made = compare_all(arms, PRIMARY)
    line = comparisons_table(made).splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    interval = made[0].interval
    assert cells[:2] == ["AnatoMask – scratch", "8"]
    assert cells[2] == f"+{100 * interval.mean:.1f} [+{100 * interval.low:.1f}, +{100 * interval.high:.1f}]"
    assert cells[3].startswith("a 0 +") and ", a 1 +" in cells[3]
    assert cells[4:] == ["< 0.001", "< 0.001", "better"]
    reverse = comparisons_table(compare_all(arms, [("scratch", "AnatoMask")]))
    assert "worse" in reverse and "−" in reverse


def test_organs_are_averaged_over_the_patients_who_have_them(arms: dict[str, list[ArmRun]]) -> None:
    lines = organs_table(arms).splitlines()
    assert lines[0] == "| DSC [%] | scratch | SparK | AnatoMask |"
    assert lines[3] == "| chiasm | 30.0 | 30.0 | 30.0 |"
    assert organs_table({"scratch": [ArmRun(0, {"a": 0.5})]}) == ""


def test_a_run_is_built_from_the_scores_of_organs() -> None:
    dsc = {"a": {"parotid": 0.6, "chiasm": 0.2}, "b": {"parotid": 0.8}}
    built = ArmRun.from_organs(
        3, dsc, pretraining="p", nsd={2: {"a": {"parotid": 0.7, "chiasm": 0.5}}}, curve=[(1, 0.1)]
    )
    assert built.dsc == {"a": pytest.approx(0.4), "b": 0.8}
    assert built.nsd == {2: {"a": pytest.approx(0.6)}}
    assert built.organs == {"parotid": {"a": 0.6, "b": 0.8}, "chiasm": {"a": 0.2}}
    assert (built.seed, built.pretraining, built.curve) == (3, "p", [(1, 0.1)])


def test_notes_say_which_intervals_hold_for_less(arms: dict[str, list[ArmRun]]) -> None:
    assert "Student's t" not in evidence_markdown(arms, PRIMARY)
    few = {name: runs[:1] for name, runs in arms.items()}
    text = evidence_markdown(few, PRIMARY)
    assert "holds for these runs only: AnatoMask – scratch, AnatoMask – SparK." in text
    assert "Student's t instead of the bootstrap, for few seeds or patients: AnatoMask – scratch" in text


@pytest.mark.parametrize("labels", [False, True])
def test_the_figure_is_a_picture_with_a_panel_for_labels(
    arms: dict[str, list[ArmRun]], tmp_path: Path, labels: bool
) -> None:
    path = tmp_path / "new" / "evidence.png"
    by_labels = {10: arms, 89: {name: runs[:1] for name, runs in arms.items() if name != "SparK"}} if labels else None
    evidence_figure(arms, path, by_labels=by_labels)
    assert [file.name for file in path.parent.iterdir()] == ["evidence.png"]
    picture = matplotlib.image.imread(path)[..., :3]
    height, width = picture.shape[:2]
    assert width / height == pytest.approx((2 if labels else 1) * 4.8 / 3.6, rel=0.01)
    for colour in ((0.35,) * 3, (31 / 255, 119 / 255, 180 / 255), (1.0, 127 / 255, 14 / 255)):
        for start in range(0, width - 1, width // (2 if labels else 1)):
            panel = picture[:, start : start + width // (2 if labels else 1)]
            assert (np.abs(panel - colour).max(axis=-1) < 0.02).sum() > 100


def test_a_figure_without_curves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run has a learning curve"):
        evidence_figure({"scratch": [ArmRun(0, {"a": 0.5})]}, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []
