from __future__ import annotations

import torch

from anatomask.data.normalisation import normalise


def test_normalise_clips_and_scales_each_channel() -> None:
    image = torch.tensor([-1000, 0, 50, 3000], dtype=torch.int16).view(1, 1, 1, 1, 4).expand(1, 2, 1, 1, 4)
    settings = torch.tensor([[[-100.0, 100.0, 10.0, 5.0], [-torch.inf, torch.inf, 0.0, 1.0]]])
    out = normalise(image, settings)
    assert out[0, 0, 0, 0].tolist() == [-22.0, -2.0, 8.0, 18.0]
    assert out[0, 1, 0, 0].tolist() == [-1000.0, 0.0, 50.0, 3000.0]
