"""The organs of the real stand-ins, which are one CT with the labels of three data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anatomask.data.datasets import RawCase, RawDataset
from anatomask.data.nifti import read_nifti

NAMES_IN_TOTALSEGMENTATOR = {
    "right kidney": "kidney_right",
    "left kidney": "kidney_left",
    "inferior vena cava": "inferior_vena_cava",
    "postcava": "inferior_vena_cava",
    "right adrenal gland": "adrenal_gland_right",
    "left adrenal gland": "adrenal_gland_left",
    "bladder": "urinary_bladder",
}


@pytest.fixture
def organs_agree(real_data: Path) -> Callable[[RawDataset, RawCase], set[str]]:
    """Asserts that each class of a case is TotalSegmentator's mask of that name; returns the classes that it lacks."""
    masks = real_data / "totalsegmentator" / "Totalsegmentator_dataset" / "s0001" / "segmentations"

    def agree(raw: RawDataset, case: RawCase) -> set[str]:
        assert case.label is not None
        label, affine = case.label.read(case.label.path)
        absent = set()
        for c, name in raw.class_names.items():
            if not (label == c).any():
                absent.add(name)
                continue
            mask, mask_affine = read_nifti(masks / f"{NAMES_IN_TOTALSEGMENTATOR.get(name, name)}.nii.gz")
            np.testing.assert_allclose(affine, mask_affine, atol=1e-3)
            overlap = 2 * np.sum((mask != 0) & (label == c)) / (np.sum(mask != 0) + np.sum(label == c))
            assert overlap > 0.95, (name, overlap)
        return absent

    return agree
