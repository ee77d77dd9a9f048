"""Folder of predictions: what makes two the same, which cases are finished, and what `--overwrite` removes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anatomask.data.claims import Writer, require_same
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.label_names import ITK_SNAP, SLICER
from anatomask.evaluation.prediction import LABEL_MAP, PROBABILITIES
from anatomask.evaluation.settings import InferenceConfig
from anatomask.evaluation.windows import VERSION
from anatomask.weights.files import weights_digest

SETTINGS = "prediction.json"
CASES = "cases"
"""Key of the settings that lists the cases whose files may be there. More cases may come, so it decides nothing."""
OTHER_OUT = "choose another --out"
REMEDY = f"{OTHER_OUT}, or --overwrite predicts anew"
PREDICTION = Writer("prediction", SETTINGS, (), ("source", "weights", CASES), OTHER_OUT)


def prediction_identity(
    source: Path, checkpoint: str, weights: Sequence[Path], inference: InferenceConfig, probabilities: bool
) -> dict[str, Any]:
    """Return what makes two predictions the same, by the user's field names.

    Args:
        source: folder or file of the scans.
        checkpoint: `best` or `last`.
        weights: folders of these checkpoints, one for each run.
        inference: settings of the sliding windows, of which `batch` changes nothing.
        probabilities: True if the softmax is written.
    """
    return {
        "source": str(source.resolve()),
        "checkpoint": checkpoint,
        "weights": sorted(weights_digest(folder) for folder in weights),
        "inference": {"overlap": inference.overlap, "mirror": inference.mirror, "windows": VERSION},
        "probabilities": probabilities,
    }


def claim_prediction(folder: Storage, identity: Mapping[str, Any], cases: Sequence[str], *, overwrite: bool) -> None:
    """Take a folder for predictions with these settings, whether new or resumed.

    Args:
        folder: folder of the label maps.
        identity: as of `prediction_identity`.
        cases: cases that will be written.
        overwrite: delete what an earlier prediction wrote there.

    Raises:
        UserError: the folder holds predictions with other settings, which are named, or files of something else.
        OSError: the folder cannot be written.
    """
    before = PREDICTION.earlier(folder)
    known: set[str] = set()
    if before is None:
        if others := folder.foreign(".", r"\..*"):
            raise UserError(
                f"{folder.show(others[0].removeprefix('./'))} is there, but no prediction of anatomask; {OTHER_OUT}"
            )
    elif not (isinstance(before[CASES], list) and all(isinstance(case, str) for case in before[CASES])):
        raise UserError(f"{folder.show(SETTINGS)} is damaged ({CASES} is no list of names); {OTHER_OUT}")
    elif overwrite:
        for case in before[CASES]:
            for ending in (LABEL_MAP, PROBABILITIES):
                folder.clear(f"{case}{ending}")
        for name in (ITK_SNAP, SLICER):
            folder.clear(name)
    else:
        known = set(before[CASES])
        settings = {name: value for name, value in before.items() if name != CASES}
        require_same(folder.show(), "predictions", settings, identity, REMEDY)
    folder.write_json(SETTINGS, {**identity, CASES: sorted(known | set(cases))})


def finished_cases(folder: Storage, cases: Sequence[str]) -> set[str]:
    """Return those of `cases` whose label maps are written."""
    return set(folder.names(".", LABEL_MAP)) & set(cases)
