"""Overview of a survey: summary of the facts of its cases, and the files that hold them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from anatomask.data.datasets.base import RawDataset
from anatomask.data.survey import BINS, CaseFacts, ImageFacts
from anatomask.data.suspicions import Suspicion


@dataclass(frozen=True)
class ClassRow:
    """One class over all cases that have it."""

    id: int
    name: str
    cases: int
    median_ml: float
    minimum_ml: float
    maximum_ml: float


@dataclass(frozen=True)
class Intensities:
    """One channel's voxels over all cases."""

    edges: tuple[float, ...]
    """Edges of the bins, one more than `voxels`; the outermost bins include what lies beyond."""
    voxels: tuple[float, ...]


def images_of(cases: Iterable[CaseFacts]) -> list[ImageFacts]:
    """List the image facts of the cases that can be read."""
    return [facts.images for facts in cases if facts.images is not None]


def class_rows(raw: RawDataset, cases: Sequence[CaseFacts]) -> list[ClassRow]:
    """Summarise the volumes of every class of the data set that any case has."""
    rows = []
    for c, name in raw.class_names.items():
        volumes = [
            facts.label.classes[c].organ.ml for facts in cases if facts.label is not None and c in facts.label.classes
        ]
        if volumes:
            rows.append(ClassRow(c, name, len(volumes), float(np.median(volumes)), min(volumes), max(volumes)))
    return rows


def intensities(cases: Sequence[CaseFacts], channel: int) -> Intensities:
    """Merge the histograms of a channel from its cases, spreading the voxels of each bin evenly over it."""
    channels = [images.channels[channel] for images in images_of(cases)]
    low, high = min(one.low for one in channels), max(one.high for one in channels)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    voxels = np.zeros(BINS)
    for one in channels:
        total = sum(one.histogram)
        if one.high > one.low:
            own = np.linspace(one.low, one.high, len(one.histogram) + 1)
            below = np.interp(edges, own, np.cumsum((0.0, *one.histogram)))
        else:
            below = np.where(edges > one.low, float(total), 0.0)
        below[0], below[-1] = 0, total
        voxels += np.diff(below)
    return Intensities(tuple(map(float, edges)), tuple(map(float, voxels)))


def document(raw: RawDataset, cases: Sequence[CaseFacts], found: Sequence[Suspicion]) -> dict[str, Any]:
    """Collect everything that the survey knows, for `survey.json`."""
    readable = bool(images_of(cases))
    return {
        "reader": raw.reader,
        "remarks": list(raw.remarks),
        "channels": [
            {
                "name": name,
                "scheme": scheme,
                "intensities": asdict(intensities(cases, index)) if readable else None,
            }
            for index, (name, scheme) in enumerate(zip(raw.channel_names, raw.schemes, strict=True))
        ],
        "classes": [asdict(row) for row in class_rows(raw, cases)],
        "suspicions": [asdict(suspicion) for suspicion in found],
        "cases": [{name: value for name, value in asdict(facts).items() if name != "thumbnail"} for facts in cases],
    }


def cases_csv(cases: Sequence[CaseFacts], found: Sequence[Suspicion]) -> str:
    """Format a table with a row per case, for a spreadsheet."""
    names = (
        *("case", "labelled", "orientation", *_axes("voxels"), *_axes("spacing_mm")),
        *("minimum", "median", "maximum", "classes", "labelled_ml", "suspicious"),
    )
    rows = [_case_row(facts, [one for one in found if one.case == facts.case]) for facts in cases]
    return _csv(names, rows)


def classes_csv(rows: Sequence[ClassRow]) -> str:
    """Format a table with a row per class."""
    return _csv(("id", "name", "cases", "median_ml", "minimum_ml", "maximum_ml"), [asdict(row) for row in rows])


def orientations_of(cases: Sequence[CaseFacts]) -> Counter[str]:
    """Count the cases stored in each orientation, the most frequent first."""
    return Counter(dict(Counter(images.orientation for images in images_of(cases)).most_common()))


def _case_row(facts: CaseFacts, found: Sequence[Suspicion]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": facts.case, "labelled": facts.labelled}
    row["suspicious"] = "; ".join(f"{one.kind}: {one.reason}" for one in found)
    if facts.images is not None:
        first = facts.images.channels[0]
        row |= dict(zip(_axes("voxels"), facts.images.shape, strict=True))
        row |= dict(zip(_axes("spacing_mm"), facts.images.spacing, strict=True))
        row |= {"orientation": facts.images.orientation}
        row |= {"minimum": first.minimum, "median": first.median, "maximum": first.maximum}
    if facts.label is not None:
        row["classes"] = len(facts.label.classes)
        row["labelled_ml"] = sum(found.organ.ml for found in facts.label.classes.values())
    return row


def _axes(name: str) -> tuple[str, str, str]:
    return f"{name}_r", f"{name}_a", f"{name}_s"


def _csv(names: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
