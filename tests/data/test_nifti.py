"""Headers that nibabel would read without a word, or mend with one that names no file."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.data.nifti import header_doubt, read_nifti, require_spacing
from anatomask.errors import UserError

SCALING, PIXDIM, UNITS = 112, 76, 123
"""Bytes of a NIfTI-1 header: scl_slope and scl_inter, pixdim, and xyzt_units."""


def written(path: Path, changes: dict[int, bytes]) -> Path:
    """A scan whose header has these bytes at these places."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), path.with_suffix("").with_suffix(".nii"))
    content = bytearray(path.with_suffix("").with_suffix(".nii").read_bytes())
    for place, data in changes.items():
        content[place : place + len(data)] = data
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("slope", "intercept"),
    [(np.nan, 0), (np.nan, np.nan), (np.inf, 0), (-np.inf, 0), (1, np.inf), (1, np.nan)],
)
def test_a_scaling_that_is_not_finite_is_refused(name: str, slope: float, intercept: float, tmp_path: Path) -> None:
    path = written(tmp_path / name, {SCALING: struct.pack("<ff", slope, intercept)})
    with pytest.raises(UserError, match=r"a\.nii.* (scl_slope|intercept)"):
        read_nifti(path)


@pytest.mark.parametrize(("slope", "intercept", "expected"), [(0, 0, 1), (0, np.nan, 1), (2, 0, 2)])
def test_a_scaling_that_is_finite_or_absent_is_read(
    slope: float, intercept: float, expected: float, tmp_path: Path
) -> None:
    plain, _ = read_nifti(written(tmp_path / "a.nii", {}))
    voxels, _ = read_nifti(written(tmp_path / "b.nii", {SCALING: struct.pack("<ff", slope, intercept)}))
    np.testing.assert_array_equal(voxels, expected * plain.astype(np.float64))


@pytest.mark.parametrize(
    ("code", "unit"), [(0, ""), (2, ""), (10, ""), (1, "metres"), (9, "metres"), (3, "micrometres")]
)
def test_lengths_in_other_units_are_refused(code: int, unit: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii.gz", {UNITS: bytes([code])})
    if not unit:
        assert header_doubt(path) == ""
        return require_spacing(path)
    assert f"lengths in {unit}" in header_doubt(path)
    with pytest.raises(UserError, match=rf"a\.nii\.gz gives lengths in {unit} by its header"):
        require_spacing(path)


def test_what_nibabel_mends_is_a_doubt_of_ours_and_no_line_of_its_own(tmp_path: Path) -> None:
    assert header_doubt(written(tmp_path / "a.nii.gz", {})) == ""
    path = written(tmp_path / "b.nii.gz", {PIXDIM + 4: struct.pack("<fff", 0, 0, 0)})
    assert "pixdim[1,2,3] should be non-zero" in header_doubt(path)
    read = "import sys, pathlib; from anatomask.data.nifti import read_nifti; read_nifti(pathlib.Path(sys.argv[1]))"
    settings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    shown = subprocess.run([sys.executable, "-c", read, path], capture_output=True, text=True, env=settings)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")
