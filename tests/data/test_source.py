from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.settings import PreprocessConfig, ReaderConfig
from anatomask.data.source import read_source
from anatomask.data.splits import SplitConfig
from anatomask.errors import UserError

OWN, RECIPE = (1.0, 1.5, 2.0), (4.0, 4.0, 4.0)


@pytest.mark.parametrize(
    ("preprocess", "spacing"),
    [
        (PreprocessConfig(spacing=OWN, default_spacing=RECIPE), OWN),
        (PreprocessConfig(default_spacing=RECIPE), RECIPE),
        (PreprocessConfig(), (2.0, 2.0, 3.0)),  # planned: the median of the scans
    ],
)
def test_a_spacing_is_the_users_or_the_recipes_or_planned(
    nnunet_source: Path, preprocess: PreprocessConfig, spacing: tuple[float, float, float]
) -> None:
    source = read_source(nnunet_source, "auto", "", ReaderConfig(), preprocess, SplitConfig())
    assert source.info.spacing == pytest.approx(spacing)
    assert source.settings["preprocess.spacing"] == pytest.approx(list(spacing))
    told = "voxels of 2 x 2 x 3 mm are planned from 4 labelled scans as nnU-Net does: the median; --preprocess.spacing"
    assert any(told in text for text in source.raw.remarks) == (preprocess == PreprocessConfig())
    assert (source.info.name, source.raw.reader) == (nnunet_source.name, "nnunet")
    assert sorted(case for cases in source.splits.values() for case in cases) == ["a", "b", "c", "d", "u"]


def test_totalsegmentator_has_a_spacing_of_its_own(tmp_path: Path) -> None:
    for case in ("s0001", "s0002"):
        (tmp_path / case / "segmentations").mkdir(parents=True)
        scan = nib.Nifti1Image(np.arange(60).reshape(3, 4, 5).astype(np.int16), np.diag([3.0, 3.0, 3.0, 1.0]))
        nib.save(scan, tmp_path / case / "ct.nii.gz")
        nib.save(
            nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), scan.affine), tmp_path / case / "segmentations/liver.nii.gz"
        )
    config = PreprocessConfig(default_spacing=RECIPE)
    source = read_source(tmp_path, "totalsegmentator", "mine", ReaderConfig(), config, SplitConfig())
    assert source.info.spacing == (1.5, 1.5, 1.5) and source.info.name == "mine"


def test_a_median_of_nothing_is_refused(nnunet_source: Path) -> None:
    for path in nnunet_source.rglob("*_0000.nii.gz"):
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="has a header that can be read"):
        read_source(nnunet_source, "auto", "", ReaderConfig(), PreprocessConfig(), SplitConfig())
