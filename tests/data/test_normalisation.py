from __future__ import annotations

import numpy as np
import torch

from anatomask.data.fingerprint import Fingerprint, Histogram, body_voxels
from anatomask.data.intensities import describe_channel, normalisation_rows
from anatomask.data.normalisation import normalise


def test_normalise_clips_and_scales_each_channel() -> None:
    image = torch.tensor([-1000, 0, 50, 3000], dtype=torch.int16).view(1, 1, 1, 1, 4).expand(1, 2, 1, 1, 4)
    settings = torch.tensor([[[-100.0, 100.0, 10.0, 5.0], [-torch.inf, torch.inf, 0.0, 1.0]]])
    out = normalise(image, settings)
    assert out[0, 0, 0, 0].tolist() == [-22.0, -2.0, 8.0, 18.0]
    assert out[0, 1, 0, 0].tolist() == [-1000.0, 0.0, 50.0, 3000.0]


def test_a_channel_of_one_value_in_a_background_stays_small() -> None:
    mask = np.zeros((1, 4, 4, 4), np.int16)
    mask[0, 1:3] = 16384
    (own,) = [describe_channel(volume, "zscore") for volume in mask]
    fingerprint = Fingerprint.from_histograms(("prior",), ("zscore",), [Histogram.of(body_voxels(mask[0], "zscore"))])
    rows = torch.from_numpy(normalisation_rows(("zscore",), fingerprint, [own]))[None]
    assert normalise(torch.from_numpy(mask)[None], rows).unique().tolist() == [-1.0, 0.0]
