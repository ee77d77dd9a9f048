"""DICOM series, written with pydicom, and changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

INTERCEPT = -1024


def write_series(folder: Path, voxels: np.ndarray, affine: np.ndarray, **tags: Any) -> list[Path]:
    """Write a slice per file, named in an order that is not that of the slices; return the files by slice."""
    folder.mkdir(parents=True, exist_ok=True)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    columns = (to_lps @ affine)[:3]
    sizes = np.linalg.norm(columns[:, :3], axis=0)
    series = generate_uid()
    files = []
    for k in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{(k * 7919) % 1000:03d}.dcm"
        file = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID, file.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        file.SeriesInstanceUID, file.SeriesNumber, file.Modality, file.PatientID = series, 3, "CT", "patient 7"
        file.Rows, file.Columns = voxels.shape[1], voxels.shape[0]
        file.ImageOrientationPatient = [f"{v:.10g}" for v in [*columns[:, 0] / sizes[0], *columns[:, 1] / sizes[1]]]
        file.ImagePositionPatient = [f"{v:.9g}" for v in columns @ [0, 0, k, 1]]
        file.PixelSpacing = [f"{sizes[1]:.9g}", f"{sizes[0]:.9g}"]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
        file.RescaleSlope, file.RescaleIntercept = 1, INTERCEPT
        file.PixelData = (voxels[:, :, k].T - INTERCEPT).astype(np.uint16).tobytes()
        for name, value in tags.items():
            setattr(file, name, value)
        file.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def change(path: Path, **tags: Any) -> None:
    """Set tags of a file; None removes one."""
    file = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    file.save_as(path)
