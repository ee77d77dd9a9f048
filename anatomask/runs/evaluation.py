"""Evaluation in a run's folder: what makes two the same, and which cases are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anatomask.data.addresses import public_address
from anatomask.data.claims import Writer, require_same
from anatomask.data.index import data_digest
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.evaluation.results import (
    CASES_FILE,
    IDENTITY_FILE,
    PREDICTIONS,
    SUMMARY_FILE,
    CaseScore,
    evaluation_files,
    from_csv,
)
from anatomask.evaluation.settings import InferenceConfig, Metric
from anatomask.evaluation.windows import VERSION
from anatomask.runs.belongings import is_run
from anatomask.weights.files import weights_digest

OVERWRITE = "--overwrite evaluates it anew"
EVALUATION = Writer(
    "evaluation",
    IDENTITY_FILE,
    (PREDICTIONS, CASES_FILE, SUMMARY_FILE),
    ("split", "checkpoint", "weights"),
    "move it elsewhere",
    OVERWRITE,
)


def evaluation_identity(
    dataset: PreparedDataset,
    split: str,
    checkpoint: str,
    weights: Path,
    inference: InferenceConfig,
    metrics: Sequence[Metric] | None = None,
) -> dict[str, Any]:
    """Return what makes two evaluations the same: scores of another identity are never counted in.

    Args:
        dataset: holds the cases.
        split: name of the split that is evaluated.
        checkpoint: `best` or `last`.
        weights: folder of this checkpoint.
        inference: settings of the sliding windows, of which `batch` changes nothing.
        metrics: metrics that were named. Default: none were, as in older versions.
    """
    return {
        "data": public_address(dataset.path),
        "prepared": data_digest(dataset.storage, splits=False),
        "split": split,
        "checkpoint": checkpoint,
        "weights": weights_digest(weights),
        "inference": {"overlap": inference.overlap, "mirror": inference.mirror, "windows": VERSION},
        **({"metrics": sorted(metrics)} if metrics is not None else {}),
    }


def claim_evaluation(folder: Storage, identity: Mapping[str, Any], *, overwrite: bool) -> None:
    """Take the folder of a run, or another, for an evaluation; `overwrite` removes what an earlier evaluation wrote.

    A damaged identity is replaced in the folder of a run alone: elsewhere, nothing else says whose the files are.

    Raises:
        UserError: the folder holds another evaluation, whose differing fields are named, and `overwrite` is not set; or
            it holds files that no evaluation wrote.
    """
    of_a_run = is_run(Path(folder.root))
    writer = EVALUATION if of_a_run else replace(EVALUATION, remedy_damaged="")
    if overwrite and folder.exists(IDENTITY_FILE) and (of_a_run or writer.earlier(folder) is not None):
        for path in evaluation_files(Path(folder.root)):
            path.unlink()
    elif (before := writer.earlier(folder)) is not None:
        same = before.get("prepared") == identity.get("prepared")  # wherever the data lie
        ignored = ("data",) if same else ()
        kept, now = ({name: value for name, value in one.items() if name not in ignored} for one in (before, identity))
        require_same(folder.show(), "an evaluation", kept, now, OVERWRITE)
        return
    folder.write_json(IDENTITY_FILE, dict(identity))


def finished_cases(folder: Storage, cases: Sequence[str]) -> set[str]:
    """Return those of `cases` that have scores in the folder of a run."""
    return set(folder.names(PREDICTIONS, ".csv")) & set(cases)


def read_scores(folder: Storage, case: str) -> list[CaseScore]:
    """Read the scores of a finished case.

    Raises:
        UserError: they are damaged.
    """
    path = f"{PREDICTIONS}/{case}.csv"
    text = folder.read(path).decode(errors="replace")
    return from_csv(text, folder.show(path), "delete that file to evaluate the case again, or --overwrite all")
