"""Published numbers of the paper (Li et al., ECCV 2024, tables 4 to 6), shown beside the user's own."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

COMPARISONS = ("4", "5", "6")
"""Tables that compare methods; the others are ablations."""


@dataclass(frozen=True)
class Published:
    """Mean and SD over patients, in percent."""

    method: str
    network: str
    dataset: str
    metric: str
    mean: float
    sd: float


def published() -> Iterator[Published]:
    """Return every score of the comparison tables."""
    with (resources.files("anatomask.reports") / "paper_results.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["table"] in COMPARISONS:
                yield Published(
                    row["method"], row["backbone"], row["dataset"], row["metric"], float(row["mean"]), float(row["sd"])
                )


def published_note(method: str, network: str | None, dataset: str) -> str | None:
    """Format a sentence with the paper's scores of this method, network and data set; None where it has none."""
    scores = [
        f"{score.metric} {score.mean:.1f} ± {score.sd:.1f}"
        for score in published()
        if score.network == network
        and (score.method.lower(), score.dataset.lower()) == (method.lower(), dataset.lower())
    ]
    return f"The paper has {', '.join(scores)} for {method} with {network} on {dataset}." if scores else None
