"""Scans by which a pretraining is monitored: always the same ones, under the same masks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.normalisation import normalise
from anatomask.data.samples import centred_origin, inside_scan
from anatomask.data.shards import PreparedDataset
from anatomask.masking import touched_patches

SCANS = 4
MASKS = 2
"""Number of random masks per scan, as in Fig. 1 and 3 of the paper."""


@dataclass(frozen=True)
class FixedCases:
    """Choice of the scans."""

    cases: tuple[str, ...]
    held_out: bool
    """True if none of them is trained on, so that their labels may be read."""


def choose_fixed_cases(dataset: PreparedDataset, trained_on: Collection[str]) -> FixedCases:
    """Choose validation cases, else test cases, that are not trained on, labelled ones first; else training cases."""
    for split in ("val", "test"):
        held_out = [case for case in dataset.splits.get(split, ()) if case not in trained_on]
        if held_out:
            labelled_first = sorted(held_out, key=lambda case: not dataset.records[case].labelled)
            return FixedCases(tuple(labelled_first[:SCANS]), held_out=True)
    return FixedCases(tuple(sorted(trained_on)[:SCANS]), held_out=False)


@dataclass(frozen=True)
class FixedScan:
    """One of the scans, on the host."""

    case: str
    volume: Tensor
    """Middle of the scan, normalised (1, C, *patch_size)."""
    noise: Tensor
    """Uniform random numbers (MASKS, 2, n): for the random masks, and for filling up the self-masks."""
    organs: Tensor | None
    """Patches that touch an organ, (n,) bool; None where there is no label or it must not be read."""
    among: Tensor | None
    """Patches that may be masked, (1, n) bool. None: all."""


def read_fixed_scans(dataset: PreparedDataset, fixed: FixedCases, draw: MaskedDraw, seed: int) -> list[FixedScan]:
    """Read the middles of the scans, of the size that `draw` draws, with masks from `seed`.

    Raises:
        UserError: as `PreparedDataset.read_crop`.
    """
    size = draw.loader.patch_size
    patches = int(np.prod([edge // draw.patch for edge in size]))
    noise = np.random.default_rng([seed, 3]).random((len(fixed.cases), MASKS, 2, patches), dtype=np.float32)
    scans = []
    for case, own_noise in zip(fixed.cases, torch.from_numpy(noise), strict=True):
        shape = dataset.records[case].shape
        origin = centred_origin([extent // 2 for extent in shape], shape, size)
        image, label = dataset.read_crop(case, origin, size, label=fixed.held_out)
        volume = normalise(torch.from_numpy(image)[None], torch.from_numpy(dataset.normalisation(case))[None])
        organs = None if label is None else touched_patches(torch.from_numpy(label), draw.patch)
        among = None
        if draw.among != "all":
            found = draw.candidates(dataset, case, image, inside_scan(origin, shape, size))
            among = torch.from_numpy(found)[None] if found.any() else None
        scans.append(FixedScan(case, volume, own_noise, organs, among))
    return scans
