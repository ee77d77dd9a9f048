from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.datasets import read_dataset
from anatomask.data.nifti import read_nifti
from anatomask.data.preprocess import prepare_case
from anatomask.data.settings import ReaderConfig
from anatomask.data.splits import SplitConfig, dataset_splits
from anatomask.errors import UserError


@pytest.fixture
def source(real_data: Path, tmp_path: Path) -> Path:
    """Three patients, one of them with a second study that shows no lesion."""
    folder = tmp_path / "FDG-PET-CT-Lesions"
    for patient in ("PETCT_sts_002", "PETCT_sts_003", "PETCT_sts_012"):
        shutil.copytree(real_data / "autopet2" / "FDG-PET-CT-Lesions" / patient, folder / patient)
    study = folder / "PETCT_sts_002" / "03-23-2003-NA-PET-CT Ganzkoerper  primaer mit KM-10445"
    shutil.copytree(folder / "PETCT_sts_002" / "study_1", study)
    label = nib.Nifti1Image.from_filename(study / "SEG.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), study / "SEG.nii.gz")
    return tmp_path


def test_lesions_are_where_the_sugar_goes(real_data: Path) -> None:
    raw = read_dataset(real_data / "autopet2")
    assert (raw.channel_names, raw.class_names) == (("CTres", "SUV"), {1: "tumour"})
    for case in raw.cases:
        (ct, affine), (suv, _) = (image.read(image.path) for image in case.images)
        assert case.label is not None
        label, label_affine = case.label.read(case.label.path)
        np.testing.assert_allclose(label_affine, affine, atol=1e-3)
        assert suv[label == 1].mean() > 2 * suv[label == 0].mean()
        assert -100 < np.median(ct[label == 1]) < 150  # soft tissue, in HU
        assert suv.min() >= 0


def test_suv_keeps_its_fractions_and_ct_is_whole_hu(real_data: Path) -> None:
    raw = read_dataset(real_data / "autopet2")
    assert raw.schemes == ("ct", "quantitative")
    case = raw.cases[0]
    suv, affine = read_nifti(case.images[1].path)
    spacing = nib.affines.voxel_sizes(affine)
    prepared = prepare_case(case, raw.schemes, raw.class_names, spacing)
    assert [image.dtype for image in prepared.images] == [np.int16, np.float16]
    turned = nib.as_closest_canonical(nib.Nifti1Image(suv, affine)).get_fdata()
    np.testing.assert_allclose(prepared.images[1], turned, rtol=1e-3, atol=1e-4)


def test_studies_of_a_patient_stay_together(source: Path) -> None:
    raw = read_dataset(source)
    cases = {case.case: case.patient for case in raw.cases}
    assert cases == {
        "PETCT_sts_002_03-23-2003-NA-PET-CT_Ganzkoerper_primaer_mit_KM-10445": "PETCT_sts_002",
        "PETCT_sts_002_study_1": "PETCT_sts_002",
        "PETCT_sts_003_study_1": "PETCT_sts_003",
        "PETCT_sts_012_study_1": "PETCT_sts_012",
    }
    for seed in range(5):
        splits = dataset_splits(raw, SplitConfig(seed=seed))
        owner = {case: split for split, members in splits.items() for case in members}
        assert len({owner[case] for case, patient in cases.items() if patient == "PETCT_sts_002"}) == 1


def test_positives_alone_and_the_list_of_cases(source: Path) -> None:
    raw = read_dataset(source, options=ReaderConfig(positives_only=True))
    assert len(raw.cases) == 3
    assert all(case.case.endswith("study_1") for case in raw.cases)
    assert raw.remarks == ("1 studies without lesions left out",)
    wanted = source.parent / "cases.txt"
    wanted.write_text("PETCT_sts_003_study_1\n\n PETCT_sts_012_study_1 \n")
    raw = read_dataset(source, options=ReaderConfig(cases=str(wanted)))
    assert [case.case for case in raw.cases] == ["PETCT_sts_003_study_1", "PETCT_sts_012_study_1"]


def test_a_study_that_lacks_a_file_is_a_case_that_fails(source: Path) -> None:
    study = source / "FDG-PET-CT-Lesions" / "PETCT_sts_003" / "study_1"
    (study / "SUV.nii.gz").unlink()
    (study / "SEG.nii.gz").write_bytes(b"cut")
    raw = read_dataset(source, options=ReaderConfig(positives_only=True))
    assert len(raw.cases) == 3  # nobody knows whether it is positive
    case = next(case for case in raw.cases if case.patient == "PETCT_sts_003")
    with pytest.raises(UserError, match=r"study_1/SUV\.nii\.gz is missing"):
        prepare_case(case, raw.schemes, raw.class_names, (3, 3, 3))
