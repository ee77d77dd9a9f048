from __future__ import annotations

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatomask.errors import UserError
from anatomask.evaluation.results import CaseScore, case_means, check_summary, from_csv, mean_sd, summarise, to_csv

FRACTIONS = st.one_of(st.floats(0, 1), st.just(math.nan))
NAMES = st.text("abc,\" ;'ä_-", min_size=1, max_size=8)


def score(case: str, class_id: int, dsc: float, nsd: float) -> CaseScore:
    return CaseScore("run", "data", case, class_id, f"organ {class_id}", dsc, nsd, 0 if math.isnan(dsc) else 10)


TABLE = [
    score("a", 1, 0.9, 0.8),
    score("a", 2, 0.5, 0.6),
    score("b", 1, 0.4, 0.2),
    score("b", 2, math.nan, math.nan),
    score("c", 1, 0.0, 0.0),
    score("c", 2, 1.0, 1.0),
]


def test_a_case_is_the_mean_over_its_classes_and_the_table_over_cases() -> None:
    summary = summarise(TABLE)
    cases = [0.7, 0.4, 0.5]
    assert case_means(TABLE, "dsc") == pytest.approx({"a": 0.7, "b": 0.4, "c": 0.5})
    assert summary["cases"] == 3
    assert summary["dsc"] == pytest.approx({"mean": statistics.mean(cases), "sd": statistics.stdev(cases)})
    assert summary["nsd"]["mean"] == pytest.approx((0.7 + 0.2 + 0.5) / 3)


def test_a_class_is_the_mean_over_the_cases_that_hold_it() -> None:
    classes = summarise(TABLE)["classes"]
    assert list(classes) == ["organ 1", "organ 2"]
    assert classes["organ 2"]["cases"] == 2
    assert classes["organ 2"]["dsc"] == pytest.approx({"mean": 0.75, "sd": statistics.stdev([0.5, 1.0])})


def test_a_case_without_any_class_is_not_counted() -> None:
    summary = summarise([score("a", 1, 0.5, 0.5), score("empty", 1, math.nan, math.nan)])
    assert summary["cases"] == 1
    assert summary["dsc"] == {"mean": 0.5, "sd": None}


def test_the_summary_is_strict_json_even_without_scores() -> None:
    summary = summarise([score("empty", 1, math.nan, math.nan)])
    assert mean_sd([]) == {"mean": None, "sd": None}
    assert json.loads(json.dumps(summary, allow_nan=False))["dsc"]["mean"] is None


SCORES = st.builds(CaseScore, NAMES, NAMES, NAMES, st.integers(1, 104), NAMES, FRACTIONS, FRACTIONS, st.integers(0))


@given(st.lists(SCORES, unique_by=lambda score: (score.dataset, score.case, score.class_id)))
def test_scores_survive_the_file(scores: list[CaseScore]) -> None:
    read = from_csv(to_csv(scores), "cases.csv")
    assert len(read) == len(scores)
    for before, after in zip(scores, read, strict=True):
        assert (after.run, after.case, after.class_id, after.class_name, after.voxels) == (
            before.run,
            before.case,
            before.class_id,
            before.class_name,
            before.voxels,
        )
        assert (after.dsc, after.nsd) == pytest.approx((before.dsc, before.nsd), abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("text", ["run,case\na,b\n", to_csv(TABLE).replace("0.900000", "high"), to_csv(TABLE)[:-12]])
def test_a_damaged_table_is_named(text: str) -> None:
    with pytest.raises(UserError, match=r"somewhere/cases\.csv"):
        from_csv(text, "somewhere/cases.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("0.900000", "1.1"), "case a: 1.1 and 0.8 are no DSC and NSD, which lie in \\[0, 1\\]"),
        (("0.900000", "inf"), "case a: inf and 0.8 are no DSC"),
        (("0.900000", "-0.1"), "case a: -0.1 and 0.8 are no DSC"),
        (("0.800000,10", "0.800000,-10"), "case a has -10 voxels"),
        (("data,b,1", "data,a,1"), "class 1 of case a stands in it twice"),
        (("run,dataset", "garbage"), "it has no column dataset"),
    ],
)
def test_a_table_of_impossible_scores_is_refused(change: tuple[str, str], message: str) -> None:
    text = to_csv(TABLE)
    assert change[0] in text
    with pytest.raises(UserError, match=message):
        from_csv(text.replace(*change, 1), "cases.csv")


@pytest.mark.parametrize("text", ["", "\n", "garbage", "\0", "\x89PNG", "a,b\n" * 5])
def test_garbage_is_no_table_and_not_an_empty_one(text: str) -> None:
    with pytest.raises(UserError, match=r"cases\.csv is not a table of scores"):
        from_csv(text, "cases.csv")


def test_a_summary_without_a_field_is_named() -> None:
    with pytest.raises(UserError, match=r"x/summary\.json has no field 'dsc'"):
        check_summary({"run": "r", "method": "m", "initialisation": "i", "dataset": "d", "cases": 1}, "x/summary.json")


def test_a_summary_whose_scores_are_no_mean_and_sd_is_named() -> None:
    names = ("run", "method", "initialisation", "dataset", "cases", "nsd", "data")
    summary = {**dict.fromkeys(names, "x"), "dsc": 0.5}
    with pytest.raises(UserError, match=r"x/summary\.json: dsc lacks mean and sd"):
        check_summary(summary, "x/summary.json")


def test_the_remedy_is_the_callers() -> None:
    with pytest.raises(UserError, match=r"\); delete it$"):
        from_csv("run\na\n", "x.csv", "delete it")
