from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from anatomask.data.classes import select_classes
from anatomask.data.datasets import read_dataset
from anatomask.data.datasets.base import RawDataset
from anatomask.data.nifti import read_nifti
from anatomask.errors import UserError


@pytest.fixture
def raw(nnunet_source: Path) -> RawDataset:
    return read_dataset(nnunet_source)


def test_kept_classes_are_renumbered_and_the_others_become_background(raw: RawDataset) -> None:
    whole = raw.cases[0].label
    assert whole
    before, _ = read_nifti(whole.path)
    chosen = pickle.loads(pickle.dumps(select_classes(raw, ["right"])))  # as into a worker
    label = chosen.cases[0].label
    after, _ = label.read(label.path)
    assert chosen.class_names == {1: "right"}
    assert np.array_equal(after, before == 2)
    turned = select_classes(raw, ["right", "left"])
    other = turned.cases[0].label
    assert other
    swapped, _ = other.read(other.path)
    assert turned.class_names == {1: "right", 2: "left"}
    assert np.array_equal(swapped, np.choose(before.astype(int), [0, 2, 1]))


def test_no_names_keep_all_and_an_unknown_name_is_refused(raw: RawDataset) -> None:
    assert select_classes(raw, []) is raw
    with pytest.raises(UserError, match="middle: no such class; there are left, right"):
        select_classes(raw, ["left", "middle"])


def test_a_value_that_the_data_set_does_not_list_is_refused_before_it_is_dropped(
    raw: RawDataset, nnunet_source: Path
) -> None:
    import nibabel as nib

    path = nnunet_source / "labelsTr" / "a.nii.gz"
    voxels, affine = read_nifti(path)
    nib.save(nib.Nifti1Image(np.where(voxels == 1, 9, voxels).astype(np.uint8), affine), path)
    label = select_classes(raw, ["right"]).cases[0].label
    assert label
    with pytest.raises(UserError, match="holds 9"):
        label.read(label.path)
