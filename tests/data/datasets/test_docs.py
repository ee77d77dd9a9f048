"""The example of `docs/datasets.md`, run as it stands there, on a real scan."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from anatomask.data.datasets import READERS, read_dataset
from anatomask.data.nifti import read_nifti
from anatomask.data.preprocess import prepare_case
from anatomask.data.settings import ReaderConfig
from anatomask.plugins import load_module

DOCS = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text()


def test_the_example_of_a_new_reader(real_data: Path, tmp_path: Path, plugin_of: Callable[[str], Path]) -> None:
    flare = real_data / "flare22"
    image = flare / "images" / "FLARE22_Tr_0001_0000.nii.gz"
    organs, affine = read_nifti(flare / "labels" / "FLARE22_Tr_0001.nii.gz")
    folder = tmp_path / "kits23" / "case_00000"
    folder.mkdir(parents=True)
    (folder / "imaging.nii.gz").symlink_to(image)
    kidneys = np.isin(organs, (2, 13)).astype(np.uint8)
    nib.save(nib.Nifti1Image(kidneys, affine), folder / "segmentation.nii.gz")
    assert read_dataset(folder.parent).reader == "folder"

    load_module(plugin_of("datasets.md"), "--plugin")

    raw = read_dataset(folder.parent)
    assert (raw.reader, [case.case for case in raw.cases]) == ("kits23", ["case_00000"])
    prepared = prepare_case(raw.cases[0], raw.schemes, raw.class_names, (6.0, 6.0, 6.0))
    assert prepared.label is not None
    assert 0 < np.median(prepared.images[0][prepared.label == 1]) < 300  # HU of a kidney


def test_the_tables_name_every_reader_and_every_option() -> None:
    rows = re.findall(r"^\| `(\w+)`", DOCS, flags=re.MULTILINE)
    assert [name for name in rows if name in READERS] == list(READERS)
    for option in ReaderConfig.__dataclass_fields__:
        assert f"--reader.{option.replace('_', '-')}" in DOCS
    for reader in READERS.values():
        assert reader.options <= set(ReaderConfig.__dataclass_fields__)
