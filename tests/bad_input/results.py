"""Bad results of evaluations, and reports of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tests.bad_input.kinds import EVALUATE, REPORT, Kind, Spoil
from tests.bad_input.spoiling import DEEP, of_json, of_lines, remove, text

SUMMARY, SCORES, CLAIM = (f"runs/finetuned/{name}" for name in ("summary.json", "cases.csv", "evaluation.json"))
FIELDS = ("run", "method", "initialisation", "dataset", "cases", "dsc", "nsd", "data")


def with_field(field: str, value: Any, summary: dict[str, Any]) -> dict[str, Any]:
    """Return the summary with another value of one field."""
    return summary | {field: value}


def without(field: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Leave a field out."""
    return {name: value for name, value in summary.items() if name != field}


def without_columns(folder: str) -> Spoil:
    """Leave only the columns that older versions wrote, and give the first class of each case no voxels."""

    def change(root: Path) -> None:
        for path in (root / folder).glob("*.csv"):
            lines = [line.split(",")[:8] for line in path.read_text().splitlines()]
            lines[1][5:] = ["", "", "0"]
            path.write_text("\n".join(map(",".join, lines)) + "\n")

    return change


KINDS = [
    Kind(
        "an evaluation of other settings",
        f"{EVALUATE} --inference.overlap 0.25",
        "holds an evaluation with other settings: inference.overlap.*--overwrite evaluates it anew",
    ),
    Kind("an evaluation whose claim is damaged", EVALUATE, "evaluation.json is damaged.*--overwrite", text(CLAIM, "{")),
    Kind(
        "an evaluation whose claim is a number", EVALUATE, "evaluation.json is damaged.*--overwrite", text(CLAIM, "5")
    ),
    Kind("an evaluation whose claim is deep", EVALUATE, "evaluation.json", text(CLAIM, DEEP)),
    Kind(
        "a report of a run that is not there",
        "report --runs nowhere",
        "nowhere: there is no such file or folder; check the path",
    ),
    Kind(
        "a report of a pretraining", "report --runs runs/pretrained", "summary.json is missing; run `anatomask evaluate"
    ),
    Kind("a report of masks of a finetuned run", f"{REPORT} --pretrained runs/finetuned", "holds no pretraining"),
    Kind("a report of masks of no run", f"{REPORT} --pretrained nowhere", "nowhere.*check the path"),
    Kind("a report of a sweep that drew nothing", f"{REPORT} --sweeps runs", "study.png is missing.*anatomask sweep"),
    Kind("a report of a table that the paper lacks", f"{REPORT} --tables 7", "tables"),
    Kind("a report without cases.csv", REPORT, "cases.csv is missing; run `anatomask evaluate", remove(SCORES)),
    Kind("a report of one run twice", "report --runs runs/finetuned runs/finetuned", "finetuned"),
    Kind("a summary that is damaged", REPORT, "summary.json is damaged.*--overwrite", text(SUMMARY, "{")),
    Kind(
        "a summary that is a number",
        REPORT,
        "summary.json has no field 'run'; evaluate the run again",
        text(SUMMARY, "5"),
    ),
    Kind("a summary that is deep", REPORT, "summary.json", text(SUMMARY, DEEP)),
    *(
        Kind(
            f"a summary without {name}",
            REPORT,
            f"summary.json has no field '{name}'; evaluate the run again",
            of_json(SUMMARY, partial(without, name)),
        )
        for name in FIELDS
    ),
    Kind(
        "a summary whose training is a word",
        REPORT,
        "training lacks seed, seeds and starts; evaluate the run again",
        of_json(SUMMARY, lambda c: c | {"training": "long"}),
    ),
    Kind(
        "a summary whose HD95 is a word",
        REPORT,
        "summary.json: hd95_mm lacks mean and sd; evaluate the run again",
        of_json(SUMMARY, lambda c: c | {"hd95_mm": "far"}),
    ),
    Kind(
        "a metric that there is not",
        f"{EVALUATE} --scoring.metrics dice",
        "invalid choice 'dice' for argument '--scoring.metrics'. Expected one of .*nsd",
    ),
    Kind(
        "an evaluation with other metrics",
        f"{EVALUATE} --scoring.metrics nsd",
        "holds an evaluation with other settings: metrics is .*--overwrite evaluates it anew",
    ),
    Kind(
        "a rule that older scores cannot follow",
        f"{EVALUATE} --scoring.absent flare",
        "scoring.absent: the scores of case .* are of an older version.*--overwrite",
        without_columns("runs/finetuned/predictions"),
    ),
    Kind(
        "a summary whose fold is a word", REPORT, "fold lacks number", of_json(SUMMARY, lambda c: c | {"fold": "one"})
    ),
    Kind(
        "a summary whose mean is a word",
        REPORT,
        "summary.json",
        of_json(SUMMARY, lambda c: c["dsc"].update(mean="good")),
    ),
    *(
        Kind(
            f"a summary whose {name} is {value}",
            REPORT,
            f"summary.json: {name} must be {words}, not .*; evaluate again with --overwrite",
            of_json(SUMMARY, partial(with_field, name, value)),
        )
        for name, value, words in (
            ("failed", 5, "fields"),
            ("failed", [1], "fields"),
            ("classes", 5, "fields"),
            ("folds", 5, "a list"),
            ("initialisation", [1], "text"),
            ("network", [1], "text"),
            ("nsd_tolerance_mm", 5, "fields"),
            ("cases", "many", "a whole number"),
        )
    ),
    Kind(
        "a summary of folds without a fold",
        REPORT,
        "summary.json: folds are named without a fold",
        of_json(SUMMARY, lambda c: c | {"folds": [0], "fold": None}),
    ),
    Kind(
        "a summary whose tolerance is a word",
        REPORT,
        "summary.json: nsd_tolerance_mm must be numbers by class",
        of_json(SUMMARY, lambda c: c | {"nsd_tolerance_mm": {"liver": "wide"}}),
    ),
    Kind("a report of one run by two names", "report --runs runs/finetuned ./runs/finetuned", "twice, once as ./runs"),
    Kind("a report into a bucket", f"{REPORT} --out s3://bucket/report", "out must be a folder"),
    Kind(
        "a summary whose data set is a list",
        REPORT,
        "summary.json",
        of_json(SUMMARY, lambda c: c.update(dataset=[1])),
    ),
    Kind(
        "a summary whose data set leads outside",
        REPORT,
        "summary.json|dataset",
        of_json(SUMMARY, lambda c: c.update(dataset=5)),
    ),
    Kind("scores that are garbage", REPORT, "cases.csv", text(SCORES, b"\x00\xff\x00garbage")),
    Kind("scores that are empty", REPORT, "cases.csv", text(SCORES, "")),
    Kind(
        "scores without a column",
        REPORT,
        "cases.csv is not a table of scores.*--overwrite",
        of_lines(SCORES, lambda lines: [lines[0].replace("dsc", "dice"), *lines[1:]]),
    ),
    Kind(
        "scores that are words",
        REPORT,
        "cases.csv is not a table of scores",
        of_lines(SCORES, lambda lines: [lines[0], "a,b,c,one,e,f,g,h"]),
    ),
    Kind(
        "scores of 300 %",
        REPORT,
        "cases.csv",
        of_lines(SCORES, lambda lines: [lines[0], "finetuned,scans,bert,1,liver,3.0,3.0,9"]),
    ),
]
