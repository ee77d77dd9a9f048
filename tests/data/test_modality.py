"""Which real scans a network accepts, by their values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anatomask.data.fingerprint import ChannelFingerprint, Scheme
from anatomask.data.modality import label_values, require_kind
from anatomask.data.nifti import read_nifti
from anatomask.errors import UserError

CT, MR = "openkbp/imagesTr/kbp_001_0000.nii.gz", "scans/prostatex_0000_t2.nii.gz"
LABEL = "openkbp/labelsTr/kbp_001.nii.gz"


def channel(name: str, scheme: Scheme, least: float = -900.0) -> ChannelFingerprint:
    return ChannelFingerprint(name, scheme, least, 90.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("file", "name", "scheme", "refused"),
    [
        (CT, "CT", "ct", ""),
        (CT, "MR", "zscore", "is a CT in HU .*the network reads MR"),
        (CT, "T1w", "zscore", "is a CT in HU"),
        (CT, "CT", "zscore", ""),
        (CT, "CT or MR", "zscore", ""),
        (MR, "CT or MR", "zscore", ""),
        (CT, "CT, MR or PT", "zscore", ""),
        (CT, "intensity", "none", ""),
        (MR, "MR", "zscore", ""),
        (MR, "CT", "ct", "is no CT in HU .*the smallest is 0"),
        (LABEL, "CT", "ct", r"is a label map, not a scan \(its 6 values .* 0, 1, 2, 3, …\)"),
        (LABEL, "MR", "zscore", "is a label map"),
        (LABEL, "prior", "none", ""),
    ],
)
def test_real_scans(file: str, name: str, scheme: Scheme, refused: str, real_data: Path) -> None:
    voxels, _ = read_nifti(real_data / file)
    if not refused:
        return require_kind(file, [voxels], [channel(name, scheme)])
    with pytest.raises(UserError, match=f"^{file} {refused}"):
        require_kind(file, [voxels], [channel(name, scheme)])


def test_a_ct_whose_intercept_is_missing_is_none_in_hu(real_data: Path) -> None:
    voxels, _ = read_nifti(real_data / CT)
    with pytest.raises(UserError, match="rescale slope and intercept"):
        require_kind("scan", [voxels + 1024], [channel("CT", "ct")])


def test_a_network_of_masked_cts_reads_such_scans(real_data: Path) -> None:
    """All but the inside is 0 there; brighter scans are in other units, whatever the network has seen."""
    voxels, _ = read_nifti(real_data / CT)
    masked = np.where((voxels > 0) & (voxels < 90), voxels, 0)
    require_kind("scan", [masked], [channel("CT", "ct", least=2.0)])
    with pytest.raises(UserError, match="scan is no CT in HU"):
        require_kind("scan", [masked], [channel("CT", "ct")])
    with pytest.raises(UserError, match="scan is no CT in HU"):
        require_kind("scan", [voxels + 1024], [channel("CT", "ct", least=2.0)])


def test_a_mask_that_prepare_accepts_as_a_channel_is_accepted(real_data: Path) -> None:
    """Stored as fractions, its whole numbers may be anything."""
    voxels, _ = read_nifti(real_data / LABEL)
    require_kind("scan", [voxels.astype(np.float32)], [channel("prior", "zscore")])


def test_an_8_bit_scan_is_no_label_map_and_a_small_mask_is_one(real_data: Path) -> None:
    voxels, _ = read_nifti(real_data / MR)
    grey = (255 * (voxels / voxels.max())).astype(np.uint8)
    assert label_values(grey) is None
    mask = np.zeros((40, 40, 40), np.float32)
    mask[17, 18:20, 19] = 1  # between the voxels that are looked at first
    assert label_values(mask) is not None
    assert label_values(np.zeros((9, 9, 9))) is None
