from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatomask.errors import UserError
from anatomask.evaluation.absent import by_rule
from anatomask.evaluation.results import (
    MEASURES,
    CaseScore,
    case_means,
    check_summary,
    from_csv,
    mean_sd,
    summarise,
    to_csv,
    value_of,
)
from anatomask.evaluation.settings import AbsentRule

FRACTIONS = st.one_of(st.floats(0, 1), st.just(math.nan))
NAMES = st.text("abc,\" ;'ä_-", min_size=1, max_size=8)


def score(case: str, class_id: int, dsc: float, nsd: float) -> CaseScore:
    absent = math.isnan(dsc)
    hd95 = math.nan if absent or not dsc else 12.5
    return CaseScore(
        "run", "data", case, class_id, f"organ {class_id}", dsc, nsd, 0 if absent else 10, hd95, 0 if absent else 2, 1
    )


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


COUNTS = st.one_of(st.none(), st.integers(0, 99))
SCORES = st.builds(
    CaseScore, NAMES, NAMES, NAMES, st.integers(1, 104), NAMES, FRACTIONS, FRACTIONS, st.integers(0),
    st.one_of(st.floats(0, 500), st.just(math.nan)), st.floats(0, 5000), st.floats(0, 5000), COUNTS, COUNTS, FRACTIONS,
)  # fmt: skip


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
        for name in ("dsc", "nsd", *MEASURES):
            assert value_of(after, name) == pytest.approx(value_of(before, name), abs=1e-6, nan_ok=True)


def test_a_table_of_an_older_version_is_read_without_the_other_measures() -> None:
    lines = to_csv(TABLE).splitlines()
    old = "\n".join(",".join(line.split(",")[:8]) for line in lines)
    read = from_csv(old, "cases.csv")
    assert [(score.case, score.class_id, score.voxels) for score in read] == [
        (score.case, score.class_id, score.voxels) for score in TABLE
    ]
    assert all(math.isnan(value_of(score, name)) for score in read for name in MEASURES)
    before, after = summarise(read), summarise(TABLE)
    assert before["dsc"] == after["dsc"] and before["classes"]["organ 2"]["cases"] == 2
    assert not {"hd95_mm", "hd95_missing"} & before.keys()


def test_the_summary_of_the_other_measures() -> None:
    summary = summarise(TABLE)
    assert summary["hd95_mm"] == {"mean": 12.5, "sd": 0.0} and summary["hd95_missing"] == 1
    assert summary["classes"]["organ 2"]["volume_ml"] == {"mean": 2.0, "sd": 0.0}
    assert "volume_ml" not in summary and "lesions" not in summary


@pytest.mark.parametrize(("rule", "expected"), [("totalsegmentator", math.nan), ("nnunet", 0.0), ("flare", 0.0)])
def test_a_class_that_is_predicted_where_the_reference_lacks_it(rule: AbsentRule, expected: float) -> None:
    found = by_rule(TABLE, rule)
    assert found[3].dsc == pytest.approx(expected, nan_ok=True) == pytest.approx(found[3].nsd, nan_ok=True)
    assert [one for one in found if one is not found[3]] == [one for one in TABLE if one is not TABLE[3]]
    assert summarise(found)["classes"]["organ 2"]["cases"] == (2 if math.isnan(expected) else 3)


@pytest.mark.parametrize(("rule", "expected"), [("totalsegmentator", math.nan), ("nnunet", math.nan), ("flare", 1.0)])
def test_a_class_that_both_lack(rule: AbsentRule, expected: float) -> None:
    found = by_rule([TABLE[0], replace(TABLE[3], predicted_volume_ml=0.0)], rule)
    assert found[1].dsc == pytest.approx(expected, nan_ok=True) == pytest.approx(found[1].nsd, nan_ok=True)


def test_nsd_that_was_not_computed_is_not_made_up() -> None:
    found = by_rule([replace(score, nsd=math.nan, nsd_2mm=score.nsd) for score in TABLE], "flare")
    assert found[3].dsc == found[3].nsd_2mm == 0
    assert all(math.isnan(score.nsd) and math.isnan(score.nsd_1mm) for score in found)


def test_a_rule_that_needs_what_older_scores_lack_says_so() -> None:
    old = [replace(score, predicted_volume_ml=math.nan) for score in TABLE]
    assert by_rule(old, "totalsegmentator") == old
    with pytest.raises(UserError, match=r"scoring\.absent: the scores of case b .*--overwrite"):
        by_rule(old, "nnunet")


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
        (("10,12.500000", "10,-12.5"), "case a has -12.5 for hd95_mm"),
        (("10,12.500000", "10,far"), "far"),
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
