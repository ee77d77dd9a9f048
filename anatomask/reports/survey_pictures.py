"""Pictures of a survey: two slices of each case that is shown, and the contact sheet of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anatomask.data.datasets import RawCase, RawDataset
from anatomask.data.datasets.folder import looks_like_ct
from anatomask.data.memory import TooLarge
from anatomask.data.overview import intensities
from anatomask.data.slices import best_slice
from anatomask.data.survey import CaseFacts, read_case
from anatomask.data.suspicions import Suspicion
from anatomask.reports.contact_sheet import Distribution, Plane, Tile, contact_sheet

WINDOW_HU = (-500.0, 500.0)
"""Range of HU between black and white in a CT's slices."""


def chosen_cases(cases: Sequence[RawCase], found: Sequence[Suspicion], most: int) -> list[RawCase]:
    """Choose at most `most` cases: the suspicious ones, as far as there is room, then others, spread evenly."""
    suspicious = {suspicion.case for suspicion in found}
    flagged = [index for index, raw in enumerate(cases) if raw.case in suspicious][:most]
    others = [index for index, raw in enumerate(cases) if raw.case not in suspicious]
    room = min(most - len(flagged), len(others))
    spread = [others[round(float(rank))] for rank in np.linspace(0, len(others) - 1, room)]
    return [cases[index] for index in (*flagged, *spread)]


def tile_of(raw: RawCase, memory: int | None = None) -> Tile:
    """Cut two slices of a case: where most of its labels are, else through the middle of what stands out.

    Raises:
        TooLarge: reading it takes more than `memory` bytes. Default: what the machine has free.
    """
    try:
        volumes = read_case(raw, memory)
    except TooLarge:
        raise
    except Exception:  # the facts say why
        return Tile(raw.case, ())
    image, label = volumes.images[0], volumes.label
    steps = tuple(slice(None, None, max(1, n // 128)) for n in image.shape)
    small = image[steps]
    low, high = (float(value) for value in np.percentile(small, (1, 99.5)))
    if label is not None and label.any():
        parts = label[steps]
        y, z = best_slice(parts.transpose(0, 2, 1)), best_slice(parts)
    else:
        bright = np.nonzero(small > low + 0.2 * (high - low))
        centres = [
            int(np.median(where)) if len(where) else n // 2 for where, n in zip(bright, small.shape, strict=True)
        ]
        y, z = centres[1:]
    y, z = y * (steps[1].step or 1), z * (steps[2].step or 1)
    r, a, s = volumes.spacing
    window = WINDOW_HU if looks_like_ct(small) else (low, high)
    whole = None if label is None else np.clip(label, 0, 255).astype(np.uint8)
    planes = (
        _plane(image[:, y], None if whole is None else whole[:, y], (r, s), window),
        _plane(image[:, :, z], None if whole is None else whole[:, :, z], (r, a), window),
    )
    return Tile(raw.case, planes, window)


def _plane(image: np.ndarray, label: np.ndarray | None, spacing: tuple[float, float], window: Sequence[float]) -> Plane:
    """Cut a slice to what is brighter than a twentieth of the window, or labelled."""
    seen = image > window[0] + 0.05 * (window[1] - window[0])
    if label is not None:
        seen |= label > 0
    if not seen.any():
        return Plane(image, spacing, label)
    box = tuple(
        slice(max(int(where[0]) - 2, 0), int(where[-1]) + 3)
        for where in (np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0)))
    )
    return Plane(image[box], spacing, None if label is None else label[box])


def draw_sheet(
    path: Path,
    source: str,
    raw: RawDataset,
    cases: Sequence[CaseFacts],
    tiles: Sequence[Tile],
    found: Sequence[Suspicion],
) -> None:
    """Draw the contact sheet: the tiles, and each channel's intensities over all cases.

    Args:
        path: file to write (PNG).
        source: folder of the scans, for the caption.
        raw: the data set.
        cases: facts of all its cases.
        tiles: tiles of the cases that are shown.
        found: suspicions.
    """
    distributions = [
        Distribution(name, *(merged.edges, merged.voxels))
        for index, name in enumerate(raw.channel_names)
        for merged in [intensities(cases, index)]
    ]
    suspicious = len({suspicion.case for suspicion in found})
    caption = (
        f"{source}: {len(tiles)} of {len(cases)} cases, {suspicious} suspicious. Coronal and axial slice, "
        "patient's right on the left, by the affine of each scan."
    )
    contact_sheet(tiles, distributions, raw.class_names, caption, path)
