"""Published numbers of the paper (Li et al., ECCV 2024, tables 1 to 6), shown beside the user's own."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

ABLATIONS = ("1", "2", "3")
"""Tables of AnatoMask's variants."""
COMPARISONS = ("4", "5", "6")
"""Tables that compare methods."""
OURS = {"Tang et al.": "Swin UNETR SSL", "MoCov2": "MoCo v2", "SwinUNETR": "Swin UNETR", "MiTnet": "MiT"}
"""Names in our tables of the paper's methods and networks, where they differ."""


@dataclass(frozen=True)
class Published:
    """Mean and SD over patients, in percent."""

    table: str
    method: str
    """Method by its name in our tables, or the variant's settings: `decoder=simple; masking=random`."""
    network: str
    """Network by its name in our tables."""
    dataset: str
    metric: str
    mean: float
    sd: float | None
    """SD over patients; None in the tables of variants."""


def published(tables: Sequence[str] = COMPARISONS) -> Iterator[Published]:
    """Return every score of some of the paper's tables, in their order."""
    with (resources.files("anatomask.reports") / "paper_results.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["table"] in tables:
                yield Published(
                    row["table"],
                    OURS.get(row["method"], row["method"]),
                    OURS.get(row["backbone"], row["backbone"]),
                    row["dataset"],
                    row["metric"],
                    float(row["mean"]),
                    float(row["sd"]) if row["sd"] else None,
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
