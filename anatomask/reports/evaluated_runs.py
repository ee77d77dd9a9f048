"""Evaluated runs as stored on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anatomask.data.addresses import is_address, public_address
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.results import (
    CASES_FILE,
    IDENTITY_FILE,
    SUMMARY_FILE,
    CaseScore,
    case_means,
    check_summary,
    from_csv,
)
from anatomask.reports.tables import by_dataset
from anatomask.runs.remote import is_of_checkpoints, local_folder
from anatomask.runs.siblings import kinship


@dataclass(frozen=True)
class EvaluatedRun:
    """Results of a run on disk."""

    folder: Path
    summary: Mapping[str, Any]
    scores: Mapping[str, float]
    """Mean DSC of each case."""
    by_class: Sequence[CaseScore] = ()
    """Scores of each class of each case."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Folder by case, where the cases are of several runs. Default: `folder`."""

    def folder_of(self, case: str) -> Path:
        """Return the folder with the prediction of a case."""
        return self.folders.get(case, self.folder)


def read_run(folder: str) -> EvaluatedRun:
    """Read the results of the run in `folder`, or of one at an address, without its checkpoints.

    Raises:
        UserError: the run was not evaluated, or its results are damaged; the message names the file.
    """
    path = local_folder(folder, lambda path: not is_of_checkpoints(path)) if is_address(folder) else Path(folder)
    storage, folder = Storage(path.absolute()), public_address(folder)
    for name in (SUMMARY_FILE, CASES_FILE):
        if not storage.exists(name):
            raise UserError(f"{folder}/{name} is missing; run `anatomask evaluate --run {folder}` first")
    remedy = f"run `anatomask evaluate --run {folder} --overwrite`"
    summary = check_summary(storage.read_json(SUMMARY_FILE, remedy), storage.show(SUMMARY_FILE))
    if "training" not in summary:  # of an older version
        summary = {**summary, "training": kinship(path)}
    if "inference" not in summary and storage.exists(IDENTITY_FILE):  # likewise
        identity = storage.read_json(IDENTITY_FILE, remedy)
        summary = {**summary, "inference": identity.get("inference") if isinstance(identity, Mapping) else None}
    scores = from_csv(storage.read(CASES_FILE).decode(errors="replace"), storage.show(CASES_FILE), remedy)
    means = case_means(scores, "dsc")
    if len(means) != summary["cases"]:
        raise UserError(
            f"{storage.show(CASES_FILE)} has scores of {len(means)} cases, but {SUMMARY_FILE} counts "
            f"{summary['cases']}; {remedy}"
        )
    return EvaluatedRun(path, summary, means, scores)


def runs_by_dataset(runs: Sequence[EvaluatedRun]) -> dict[str, list[EvaluatedRun]]:
    """Group runs by the data set on which they were evaluated; two folders of one name are two data sets."""
    members = by_dataset([(run.summary["dataset"], run.summary["data"]) for run in runs])
    return {dataset: [runs[index] for index in indices] for dataset, indices in members.items()}
