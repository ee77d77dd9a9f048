"""Files of which some bytes are changed: whatever their libraries raise, the case is named and the others are read."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anatomask.data.datasets import read_dataset
from anatomask.data.preprocess import readable_grids
from anatomask.data.survey import survey_case

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (8, 8, 8)).astype(np.int16)
HEADER_BYTES = 352


def nifti() -> bytes:
    return nib.Nifti1Image(VOXELS, np.diag([2.0, 2.0, 3.0, 1.0])).to_bytes()


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez(path, image=VOXELS, spacing=np.ones(3), patient=np.array("p"))
    return path.read_bytes()


CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.one_of(st.sampled_from([0, 127, 255]), st.integers(0, 255))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", ["nii", "nii.gz", "npz"])
@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(changes=CHANGES, compressed=st.booleans())
def test_changed_bytes_end_no_case_but_their_own(
    ending: str, changes: list[tuple[int, int]], compressed: bool, npz: bytes, tmp_path: Path
) -> None:
    content = bytearray(npz if ending == "npz" else nifti())
    if ending == "nii.gz" and compressed:  # the damage is done to what is compressed already
        content = bytearray(gzip.compress(content))
    reach = HEADER_BYTES if ending == "nii" else len(content)
    for place, byte in changes:
        content[place % reach] = byte
    if ending == "nii.gz" and not compressed:
        content = bytearray(gzip.compress(content))
    source = tmp_path / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    (source / f"damaged.{ending}").write_bytes(content)
    good = {"npz": npz, "nii": nifti(), "nii.gz": gzip.compress(nifti())}[ending]
    (source / f"good.{ending}").write_bytes(good)
    raw = read_dataset(source)
    readable_grids(raw.cases)
    facts = {one.case: survey_case(one, raw.schemes, {}) for one in raw.cases}
    assert sorted(facts) == ["damaged", "good"]
    assert facts["good"].image_error == ""


def test_an_affine_whose_axes_coincide_is_named_and_the_other_scan_is_read(tmp_path: Path) -> None:
    affine = np.array([[1e8, 1e8, 0, 0], [0, 1e-7, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(VOXELS, affine), tmp_path / "bad.nii")
    (tmp_path / "good.nii").write_bytes(nifti())
    raw = read_dataset(tmp_path)
    assert len(readable_grids(raw.cases)) == 1
    assert "bad.nii has an affine without inverse" in survey_case(raw.cases[0], raw.schemes, {}).image_error


@pytest.mark.parametrize("change", [(b"'descr'", b"'des\0r'"), (b"(8, 8, 8)", b"(8, 8, 8("), (b"'<i2'", b"'|O8'")])
def test_a_header_without_sense_is_named_and_the_other_case_is_read(
    change: tuple[bytes, bytes], npz: bytes, tmp_path: Path
) -> None:
    assert change[0] in npz
    (tmp_path / "bad.npz").write_bytes(npz.replace(*change))
    (tmp_path / "good.npz").write_bytes(npz)
    raw = read_dataset(tmp_path)
    assert len(readable_grids(raw.cases)) in (1, 2)  # an object's shape can be read
    reasons = [survey_case(one, raw.schemes, {}).image_error for one in raw.cases]
    assert "bad.npz cannot be read" in reasons[0] and reasons[1] == ""
