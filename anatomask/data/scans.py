"""Scans in memory: as read from files, and prepared for a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from anatomask.data.datasets.base import RawImage, is_nifti, nifti_image
from anatomask.data.fingerprint import Fingerprint, Histogram, Scheme
from anatomask.data.intensities import describe_channel, normalisation_rows
from anatomask.data.memory import REMEDY
from anatomask.data.nifti import nifti_header
from anatomask.data.normalisation import normalise
from anatomask.data.preprocess import (
    check_voxels,
    ras_grid,
    read_images,
    require_extent,
    require_memory,
    resample_images,
    target_grid,
)
from anatomask.data.records import ChannelRecord, triple
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError


@dataclass(frozen=True)
class Scan:
    """A scan as its files hold it."""

    voxels: np.ndarray
    """Voxels (C, D, H, W), a channel per file, axes as nibabel reads them; CT in HU."""
    affine: np.ndarray
    """Affine (4, 4) from voxel indices to mm, right-anterior-superior."""
    name: str = "the scan"
    """Name in messages."""
    header: nib.Nifti1Header | None = None
    """Header of the first file, which a label map of the scan keeps."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along D, H, W."""
        return triple(nib.affines.voxel_sizes(self.affine), float)


@dataclass(frozen=True)
class PreparedScan:
    """Scan at a network's spacing, in RAS axes, and what normalises it. Voxels are normalised on access."""

    stored: np.ndarray
    """Voxels (C, D, H, W) as `prepare` stores them: CT whole HU."""
    schemes: tuple[Scheme, ...]
    """Normalisation scheme per channel: what its values are."""
    normalisation: np.ndarray
    """Low, high, mean and std per channel, (C, 4) float32; see `normalisation_rows`."""
    affine: np.ndarray
    """Affine (4, 4) from voxel indices of the prepared scan to mm, RAS."""
    original_shape: tuple[int, int, int]
    """Shape (D, H, W) of the original scan in voxels."""
    original_affine: np.ndarray
    """Affine (4, 4) of the original scan."""
    name: str = "the scan"
    """Name in messages."""
    original_header: nib.Nifti1Header | None = None
    """Header of the original scan, if it was read from NIfTI."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm (R, A, S); it differs from the network's by rounding to whole voxels."""
        return triple(nib.affines.voxel_sizes(self.affine), float)

    @property
    def volume(self) -> Tensor:
        """Normalised voxels, which a network reads: (C, D, H, W) float32 on the CPU."""
        return self.normalised(torch.device("cpu"))

    def normalised(self, device: torch.device) -> Tensor:
        """Normalise the voxels on a device: (C, D, H, W) float32."""
        return normalise(torch.from_numpy(self.stored).to(device), torch.from_numpy(self.normalisation).to(device))

    def otsu_threshold(self, channel: int) -> float:
        """Compute Otsu's threshold of one channel, in stored units."""
        return Histogram.of(self.stored[channel]).otsu_threshold()


def read_files(paths: Sequence[Path]) -> Scan:
    """Read a scan of one NIfTI file per channel, all on one grid.

    Raises:
        UserError: a file is missing, damaged, not 3-D or not finite, or the files' grids differ; the message names it.
    """
    return read_channels([nifti_image(path) for path in paths])


def read_channels(images: Sequence[RawImage]) -> Scan:
    """Read a scan of one image per channel, all on one grid.

    Raises:
        UserError: as `read_files`.
    """
    volumes, affine = read_images(images)
    path = images[0].path
    voxels = volumes[0][None] if len(volumes) == 1 else np.stack(volumes)
    return Scan(voxels, affine, str(path), nifti_header(path) if is_nifti(path) else None)


def prepare(scan: Scan, header: Mapping[str, Any], memory: int | None = None) -> PreparedScan:
    """Resample a scan to the spacing of a network's training data, and find what normalises it as they were.

    The result is that of `anatomask prepare`, from which `anatomask evaluate` predicts.

    Args:
        scan: scan as read from files.
        header: header of the weights; its `spacing` (mm) and `fingerprint` are used.
        memory: bytes that it may take at its peak. Default: what the machine has free.

    Raises:
        UserError: the channels are not as many as the network's, the scan is smaller than a voxel of the network's, all
            voxels are the same, or values are too large for their scheme.
        TooLarge: resampling would take more memory.
    """
    fingerprint = Fingerprint.from_dict(header["fingerprint"])
    schemes = tuple(channel.scheme for channel in fingerprint.channels)
    if len(scan.voxels) != len(schemes):
        wanted = ", ".join(channel.name for channel in fingerprint.channels)
        raise UserError(
            f"{scan.name} has {len(scan.voxels)} channels, the network reads {len(schemes)} ({wanted}); "
            "give one file per channel, in this order"
        )
    names = [scan.name] * len(schemes)
    original = triple(scan.voxels.shape[1:], int)
    own = ras_grid(original, scan.affine)
    require_memory(scan.name, own, header["spacing"], len(schemes), memory, REMEDY)
    require_extent(scan.name, own, header["spacing"])
    volumes = list(scan.voxels)
    check_voxels(names, volumes, schemes)
    grid = target_grid(original, scan.affine, header["spacing"])
    images = resample_images(volumes, schemes, grid)
    channels = [describe_channel(image, scheme) for image, scheme in zip(images, schemes, strict=True)]
    rows = normalisation_rows(schemes, fingerprint, channels)
    stored = _stacked(images)
    return PreparedScan(stored, schemes, rows, grid.affine, original, scan.affine, scan.name, scan.header)


def normalised_by(scan: PreparedScan, fingerprint: Fingerprint) -> PreparedScan:
    """Normalise a scan by another fingerprint of the same channels and schemes."""
    own = [ChannelRecord("", 0.0, float(mean), float(std)) for _, _, mean, std in scan.normalisation]
    return replace(scan, normalisation=normalisation_rows(scan.schemes, fingerprint, own))


def prepared_scan(dataset: PreparedDataset, case: str) -> PreparedScan:
    """Read a case of a prepared data set, which is normalised by the data set's fingerprint.

    Raises:
        UserError: as `PreparedDataset.read_crop`.
    """
    stored, _ = dataset.read_volume(case, label=False)
    record = dataset.records[case]
    affine, original = np.asarray(record.affine), np.asarray(record.original_affine)
    rows = dataset.normalisation(case)
    return PreparedScan(stored, dataset.info.schemes, rows, affine, record.original_shape, original, f"case {case}")


def _stacked(images: Sequence[np.ndarray]) -> np.ndarray:
    """Stack channels in one array, of their type if they agree, else float32, as a prepared data set reads them."""
    same = len({image.dtype for image in images}) == 1
    return np.stack([image if same else image.astype(np.float32) for image in images])
