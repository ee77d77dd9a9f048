"""Bad folders of prepared shards."""

from __future__ import annotations

import json
from typing import Any

from anatomask.data.index import _own_digest
from tests.bad_input.kinds import EVALUATE, GO_ON, NEW_FINETUNING, NEW_PRETRAINING, SMALL, SWEEP, Kind, Spoil
from tests.bad_input.spoiling import (
    DEEP,
    RESULTS,
    Change,
    cut,
    duplicate,
    every,
    flip,
    of_bytes,
    of_json,
    of_lines,
    pipe,
    remove,
    text,
)

DATASET, CASES, PRINT, SPLITS = (
    f"data/{name}" for name in ("dataset.json", "cases.jsonl", "fingerprint.json", "splits.json")
)
SHARD, ORIGINAL = "data/cases/anna.parquet", "data/originals/anna.nii.gz"
DAMAGED = "is damaged.*anatomask prepare --overwrite"


def bad_index(name: str, spoil: Spoil, says: str, command: str = NEW_PRETRAINING) -> Kind:
    """Return the kind of a folder whose index is bad."""
    return Kind(name, command, says, spoil)


def bad_result(name: str, spoil: Spoil, says: str) -> Kind:
    """Return the kind of a case that cannot be evaluated, in a run that was not evaluated before."""
    return Kind(name, f"{EVALUATE} --split train", says, every(*map(remove, RESULTS), spoil), skips=True)


def records(change: Change) -> Spoil:
    """Change the record of the first case, anna."""

    def changed(lines: list[str]) -> list[str]:
        record = json.loads(lines[0])
        other = change(record)
        return [json.dumps(record if other is None else other), *lines[1:]]

    return of_lines(CASES, changed)


def renamed(case: str) -> Spoil:
    """Give anna another name, in the index and in the splits."""

    def change(splits: dict[str, list[str]]) -> dict[str, list[str]]:
        return {name: [case if one == "anna" else one for one in cases] for name, cases in splits.items()}

    return every(records(lambda record: record | {"case": case}), of_json(SPLITS, change))


def respaced(content: dict[str, Any]) -> dict[str, Any]:
    """Return a `dataset.json` of another spacing, with its checksum."""
    content["spacing"] = [2.0, 2.0, 3.0]
    content["digests"]["dataset.json"] = _own_digest(content)
    return content


def all_in(split: str) -> Spoil:
    """Put all cases into one split."""
    return of_json(
        SPLITS,
        lambda splits: dict.fromkeys(splits, ()) | {split: [case for cases in splits.values() for case in cases]},
    )


def overlapping(splits: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return splits whose test case is a training case, too."""
    return splits | {"train": [*splits["train"], *splits["test"]]}


KINDS = [
    *(
        bad_index(f"no {path}", remove(path), rf"{path} is missing; write it with `anatomask prepare --out")
        for path in (DATASET, CASES, PRINT, SPLITS)
    ),
    *(
        bad_index(f"an empty {path}", text(path, ""), f"{path}|train names case")
        for path in (DATASET, CASES, PRINT, SPLITS)
    ),
    *(
        bad_index(f"bytes in {path}", text(path, b"\xff\xfe{"), f"{path} {DAMAGED}")
        for path in (DATASET, CASES, PRINT, SPLITS)
    ),
    *(bad_index(f"many levels in {path}", text(path, DEEP), path) for path in (DATASET, CASES, PRINT, SPLITS)),
    *(bad_index(f"a number as {path}", text(path, "5"), path) for path in (DATASET, CASES, PRINT, SPLITS)),
    *(bad_index(f"a pipe as {path}", pipe(path), path) for path in (DATASET, CASES, PRINT, SPLITS)),
    bad_index(
        "shards of another version", of_json(DATASET, lambda c: c | {"format": 99}), "another format version; run"
    ),
    bad_index(
        "no spacing in the index", of_json(DATASET, lambda c: c.pop("spacing") and None), f"dataset.json {DAMAGED}"
    ),
    bad_index(
        "a spacing of words", of_json(DATASET, lambda c: c | {"spacing": ["a", "b", "c"]}), f"dataset.json {DAMAGED}"
    ),
    bad_index(
        "a spacing of two numbers", of_json(DATASET, lambda c: c | {"spacing": [1, 2]}), f"dataset.json {DAMAGED}"
    ),
    bad_index(
        "an unknown entry in the index", of_json(DATASET, lambda c: c | {"colour": 1}), f"dataset.json {DAMAGED}"
    ),
    bad_index(
        "a class that is no number",
        of_json(DATASET, lambda c: c | {"class_names": {"one": "liver"}}),
        f"dataset.json {DAMAGED}",
    ),
    bad_index("a record without its shape", records(lambda r: r.pop("shape") and None), f"cases.jsonl {DAMAGED}"),
    bad_index("a record with a shape of words", records(lambda r: r | {"shape": "big"}), "cases.jsonl"),
    bad_index("a record of a negative shape", records(lambda r: r | {"shape": [-20, 18, 16]}), "cases.jsonl"),
    bad_index("a record of a huge shape", records(lambda r: r | {"shape": [10**9, 10**9, 10**9]}), "cases.jsonl"),
    bad_index("a record of bricks of 0", records(lambda r: r | {"brick": 0}), "cases.jsonl"),
    bad_index("a record of an unknown codec", records(lambda r: r | {"codec": "rar"}), "cases.jsonl"),
    bad_index("a record cut off", of_bytes(CASES, lambda content: content[:-40]), f"cases.jsonl {DAMAGED}"),
    bad_index("the same record twice", of_lines(CASES, lambda lines: [lines[0], *lines]), "cases.jsonl.*anna"),
    bad_index("a case outside the folder", renamed("../../evil"), r"\.\./\.\./evil"),
    bad_index("a case of a whole path", renamed("/etc/passwd"), "/etc/passwd"),
    bad_index("a case without a name", renamed(""), "cases.jsonl"),
    bad_index("splits of unknown cases", of_json(SPLITS, lambda c: c | {"train": ["gina"]}), f"splits.json {DAMAGED}"),
    bad_index("splits that are a list", text(SPLITS, "[]"), f"splits.json {DAMAGED}"),
    bad_index("splits of numbers", text(SPLITS, '{"train": 5}'), f"splits.json {DAMAGED}"),
    bad_index(
        "no split for training", of_json(SPLITS, lambda c: c.pop("train") and None), "no split train; there are val"
    ),
    bad_index("a case in train and in test", of_json(SPLITS, overlapping), "splits.json"),
    bad_index(
        "a case twice in a split of shards", of_json(SPLITS, lambda c: c | {"train": c["train"] * 2}), "splits.json"
    ),
    bad_index("no case to train on", all_in("unlabeled_test"), "has no cases in train, unlabeled"),
    bad_index("no labelled case to train on", all_in("val"), "has no labelled training cases; prepare", NEW_FINETUNING),
    bad_index(
        "a fingerprint of NaN", of_json(PRINT, lambda c: c["channels"][0].update(mean=float("nan"))), "fingerprint.json"
    ),
    bad_index(
        "a fingerprint of words", of_json(PRINT, lambda c: c["channels"][0].update(std="wide")), "fingerprint.json"
    ),
    bad_index(
        "a flipped digit of a record", records(lambda r: r["channels"][0].update(mean=1.5)), f"cases.jsonl {DAMAGED}"
    ),
    bad_index(
        "a flipped digit of a fingerprint",
        of_json(PRINT, lambda c: c["channels"][0].update(std=9.0)),
        r"fingerprint.json is damaged \(it does not match its checksum.*prepare --overwrite",
    ),
    bad_index(
        "a flipped digit of the spacing",
        of_json(DATASET, lambda c: c | {"spacing": [2, 2, 3]}),
        f"dataset.json {DAMAGED}",
    ),
    bad_index("a fingerprint of no channels", of_json(PRINT, lambda c: c | {"channels": []}), "fingerprint.json"),
    bad_index(
        "a fingerprint without the mean",
        of_json(PRINT, lambda c: c["channels"][0].pop("mean") and None),
        f"fingerprint.json {DAMAGED}",
    ),
    Kind(
        "shards twice",
        f"{NEW_PRETRAINING} --data data ./data",
        "data names data twice, once as",
    ),
    Kind(
        "shards of another spacing beside the first",
        f"{NEW_PRETRAINING} --data data other",
        "--data: .*other has voxels of 2 x 2 x 3 mm, .*data has 2 x 2 x 2 mm; prepare both alike",
        every(duplicate("data", "other"), of_json("other/dataset.json", respaced)),
    ),
    Kind("a second folder that is not there", f"{NEW_PRETRAINING} --data data nowhere", "nowhere.*check the path"),
    Kind("a fold of shards without folds", f"{NEW_FINETUNING} --fold 0", "data has no folds; make them with.*folds 5"),
    Kind(
        "a fold that the shards lack",
        f"{NEW_FINETUNING} --fold 2",
        "--fold 2: .*data has no such fold; there are 0",
        of_json(SPLITS, lambda splits: splits | {"fold_0": splits["train"][:1]}),
    ),
    Kind("shards that are a file", f"pretrain {SMALL} --data scans/dataset.json", "scans/dataset.json"),
    Kind(
        "a sweep over shards that are missing",
        f"{SWEEP} --finetune-data nowhere",
        "nowhere: there is no such file or folder.*check the path",
    ),
    Kind(
        "a sweep over two data sets of one name",
        f"{SWEEP} --finetune-data data more/data",
        "two folders are named data; rename one",
        every(text("more/x", ""), duplicate("data", "more/data")),
    ),
    Kind(
        "a sweep without labels to score",
        f"{SWEEP} --split val",
        "--split val: .*has no labelled cases",
        all_in("train"),
    ),
    Kind(
        "an evaluation of a split without labels",
        f"{EVALUATE} --split unlabeled",
        "no labelled cases in 'unlabeled'; --split may be",
    ),
    Kind(
        "an evaluation of a split that is not there",
        f"{EVALUATE} --split nothing",
        "no labelled cases in 'nothing'; --split may be",
    ),
    Kind(
        "an evaluation of an empty test split",
        EVALUATE,
        "no labelled cases in 'test'; --split may be train",
        all_in("train"),
    ),
    Kind("a split that prepare finds damaged", GO_ON, "splits.json is damaged.*delete it", text(SPLITS, "[]")),
    Kind("a shard that prepare finds cut off", GO_ON, "cases/anna.parquet is damaged.*delete it and run", cut(SHARD)),
    Kind(
        "a shard that prepare finds flipped",
        GO_ON,
        r"cases/cora.parquet is damaged: brick \d+ of image_0 does not match its checksum; delete it and run",
        every(flip("data/cases/cora.parquet"), remove(PRINT)),
    ),
    bad_result(
        "a ground truth that is cut off", cut("data/originals/cora.nii.gz", 60), "cora.*cannot be read.*prepare"
    ),
    bad_result("a shard that an evaluation finds cut off", cut("data/cases/cora.parquet"), "cora.parquet is damaged"),
    bad_result("a shard that an evaluation misses", remove("data/cases/cora.parquet"), "cora.parquet"),
]
