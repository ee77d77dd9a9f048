"""Summary of an evaluation: the content of `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anatomask.data.addresses import public_address
from anatomask.data.shards import PreparedDataset
from anatomask.evaluation.results import CaseScore, summarise
from anatomask.weights.files import network_of


def summary_of(
    run: str,
    initialisation: str,
    split: str,
    checkpoint: str,
    header: Mapping[str, Any],
    dataset: PreparedDataset,
    scores: Sequence[CaseScore],
    failures: Mapping[str, str],
) -> dict[str, Any]:
    """Compose the fields of `summary.json`.

    Args:
        run: name of the run.
        initialisation: name of the run whose weights the network started from, or "random".
        split: name of the split whose cases were evaluated.
        checkpoint: `best` or `last`.
        header: header of the run's weights.
        dataset: holds the cases.
        scores: scores of all classes of all cases that were evaluated.
        failures: reason by case, for each case that was not.
    """
    return {
        "run": run,
        "method": header["initialisation"]["method"],
        "initialisation": initialisation,
        "via": header["initialisation"].get("via"),
        "network": network_of(header).label(),
        "loaded": header.get("loaded"),
        "train_fraction": header.get("train_fraction"),
        "dataset": dataset.name,
        "data": public_address(dataset.path),
        "split": split,
        "fold": header.get("fold"),
        "checkpoint": checkpoint,
        **summarise(scores),
        "nsd_tolerance_mm": {name: dataset.nsd_tolerance[c] for c, name in sorted(dataset.class_names.items())},
        "failed": dict(failures),
    }
