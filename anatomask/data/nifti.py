"""Reading NIfTI files, with an error message for each defect."""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from anatomask.data.grids import places_voxels, same_grid
from anatomask.data.listing import require_file
from anatomask.data.memory import in_units, require_room
from anatomask.errors import UserError, reason

UNREADABLE = (
    ImageFileError, HeaderDataError, EOFError, OSError, ValueError, OverflowError, MemoryError, zlib.error
)  # fmt: skip
"""Errors that nibabel raises for files that are cut off or have nonsense headers (MemoryError: impossible sizes)."""


BLOCK = 1 << 20
"""Bytes read at once where a file is only checked."""
DEFLATE = 1032
"""Bytes that one byte of a gzip file expands to at most."""
UNITS = {1: "metres", 3: "micrometres"}
"""Units of length of a header that are not read, by the lowest three bits of its `xyzt_units`."""
SCALED = 8
"""Bytes per voxel of a file whose header has a slope and an intercept."""

imageglobals.logger.setLevel(logging.CRITICAL)  # what it would print names no file; `header_doubt` says it of a case


def open_nifti(path: Path) -> nib.Nifti1Image:
    """Open a 3-D scan and check its header; voxels are read on access.

    Raises:
        UserError: the file is missing, not NIfTI, not 3-D, smaller than its header says, its affine has no inverse, or
            its scaling is not finite.
    """
    require_file(path)
    try:
        image: Any = nib.load(path)
        stored = type(image.header)(_stored_header(path, image), check=False)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); get it again or leave it out") from error
    if len(image.shape) < 3 or min(image.shape) < 1 or math.prod(image.shape[3:]) != 1:
        raise UserError(f"{path} has shape {image.shape}; one 3-D volume is expected, so split or drop the others")
    if not (stored["qform_code"] or stored["sform_code"] or all(stored["pixdim"][1:4])):  # nibabel makes a 0 a 1
        raise UserError(f"{path} has no spacing (its header has a voxel edge of 0); write the voxel size into it")
    if not places_voxels(image.affine):
        raise UserError(f"{path} has an affine without inverse; repair its header")
    slope, intercept = float(stored["scl_slope"]), float(stored["scl_inter"])
    if not math.isfinite(slope) or (slope and not math.isfinite(intercept)):  # nibabel would read it unscaled
        raise UserError(
            f"{path} has scl_slope {slope} and scl_inter {intercept} in its header, so that its values are unknown; "
            "convert the scan again, or leave it out"
        )
    promised = math.prod(image.shape) * image.get_data_dtype().itemsize
    most = path.stat().st_size * (DEFLATE if path.name.endswith(".gz") else 1)
    if promised > most:
        raise UserError(
            f"{path} is damaged or cut off (its header promises {in_units(promised)}, and a file of its size holds "
            f"{in_units(most)} at most); get it again or leave it out"
        )
    return image


def nifti_grid(path: Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Read the shape (D, H, W) and the affine (4, 4) of a 3-D scan from its header alone.

    Raises:
        UserError: as `open_nifti`.
    """
    image = open_nifti(path)
    a, b, c = image.shape[:3]
    return (a, b, c), image.affine


def nifti_header(path: Path) -> nib.Nifti1Header | None:
    """Read the header of a scan, without its extensions; None for NIfTI-2, whose fields are others.

    Raises:
        UserError: as `open_nifti`.
    """
    header = open_nifti(path).header
    if isinstance(header, nib.Nifti2Header):
        return None
    header = header.copy()
    header.extensions.clear()
    return header


def require_spacing(path: Path) -> None:
    """Check that a header says how large voxels are, in millimetres.

    Raises:
        UserError: it says nothing but 1 x 1 x 1 without a place, as programs write that know no voxel size; or it
            declares another unit; or as `open_nifti`.
    """
    header = open_nifti(path).header
    placed = header["qform_code"] or header["sform_code"]
    if not placed and np.allclose(header["pixdim"][1:4], 1):
        raise UserError(
            f"{path} has no spacing (neither sform nor qform, and voxels of 1 × 1 × 1); convert the scan again, or "
            "write the voxel size and the orientation into its header"
        )
    if unit := _other_unit(header):
        raise UserError(
            f"{path} gives lengths in {unit} by its header (xyzt_units), and only millimetres are read; convert its "
            "voxel size and its place to mm, or correct the unit if they are in mm"
        )


def _other_unit(header: nib.Nifti1Header) -> str:
    """Return the unit of length that a header declares; empty for millimetres, and where it declares none."""
    return UNITS.get(int(header["xyzt_units"]) & 7, "")


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels (D, H, W), as stored or scaled to float, and the affine (4, 4) of a 3-D scan.

    Raises:
        UserError: as `open_nifti`, or the file is cut off, or the voxels are not finite, not real numbers, or
            exceed the available memory.
    """
    image = open_nifti(path)
    stored = image.get_data_dtype()
    if stored.kind not in "biuf":
        raise UserError(f"{path} holds {stored} voxels; one real number per voxel is expected")
    require_room(path, image.shape[:3], stored.itemsize + SCALED)
    try:
        voxels = _read_checked(path, image) if path.name.endswith(".gz") else np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged or cut off ({reason(error)}); get it again or leave it out") from error
    voxels = voxels.reshape(image.shape[:3])
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise UserError(f"{path} has {bad} voxels that are NaN or infinite; repair it or leave it out")
    return voxels, image.affine


def on_one_grid(path: Path, other: Path) -> bool:
    """Return whether two files have one grid by their headers; True where a header cannot be read.

    The case of such a file is then skipped with the reason.
    """
    try:
        grids = [nifti_grid(path), nifti_grid(other)]
    except UserError:
        return True
    try:
        same_grid(path, *grids[0], other, *grids[1])
    except UserError:
        return False
    return True


def header_doubt(path: Path) -> str:
    """Describe what makes a NIfTI header's geometry doubtful though readable; empty when nothing does.

    Raises:
        UserError: as `open_nifti`.
    """
    image = open_nifti(path)
    header = image.header
    if unit := _other_unit(header):
        return f"it gives lengths in {unit} (xyzt_units), and `prepare` reads only millimetres"
    if np.array_equal(image.affine, np.eye(4)):
        return "the affine is the identity, as when a header was lost: 1 mm voxels and RAS are probably not its own"
    if not header["qform_code"] and not header["sform_code"]:
        return "neither sform nor qform is set, so that the orientation is a guess of whoever reads the file"
    if header["qform_code"] and header["sform_code"]:
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*image.shape[:3], 1]
        apart = float(np.linalg.norm(corners @ (header.get_sform() - header.get_qform()).T, axis=1).max())
        if apart > nib.affines.voxel_sizes(image.affine).max():
            return f"sform and qform place the scan up to {apart:.0f} mm apart, and programs differ in which they read"
    faults = type(header).diagnose_binaryblock(_stored_header(path, image)).splitlines()
    return next((f"its header breaks NIfTI's rules: {fault}" for fault in faults), "")


def _stored_header(path: Path, image: nib.Nifti1Image) -> bytes:
    """Read the header as stored in the file: nibabel corrects what it reads, and drops the scaling."""
    with ImageOpener(str(path)) as stream:
        return stream.read(image.header.template_dtype.itemsize)


def _read_checked(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    """Read the voxels of a compressed file to its end, because the checksum comes last and nibabel stops before it."""
    with gzip.open(path) as stream:
        voxels = np.asanyarray(type(image).from_stream(stream).dataobj)
        while stream.read(BLOCK):
            pass
    return voxels
