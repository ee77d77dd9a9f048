from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anatomask.stages.suggestions import after_prepare, after_survey, suggest_crop

EDGES = st.tuples(*[st.integers(1, 900)] * 3)
SPACINGS = st.tuples(*[st.floats(0.3, 8)] * 3)


@given(st.lists(EDGES, min_size=1, max_size=5), SPACINGS, st.integers(4096, 4_000_000), st.sampled_from([8, 16, 32]))
def test_a_crop_fits_and_is_a_multiple_of_the_stride(
    shapes: list[tuple[int, int, int]], spacing: tuple[float, float, float], voxels: int, stride: int
) -> None:
    crop = suggest_crop(shapes, spacing, voxels, stride)
    assert all(edge % stride == 0 and edge >= stride for edge in crop)
    assert math.prod(crop) <= max(voxels, stride**3)
    median = [sorted(extents)[len(extents) // 2] for extents in zip(*shapes, strict=True)]
    assert all(edge < extent + stride for edge, extent in zip(crop, median, strict=True))


@pytest.mark.parametrize(
    ("shape", "spacing", "voxels", "expected"),
    [
        ((267, 267, 400), (1.5, 1.5, 1.5), 112 * 112 * 128, (96, 112, 144)),  # a trunk, in its proportions
        ((93, 93, 130), (4.0, 4.0, 3.0), 64**3, (48, 64, 80)),
        ((40, 40, 30), (1.5, 1.5, 1.5), 112 * 112 * 128, (48, 48, 32)),  # a small scan whole
        ((512, 512, 20), (0.5, 0.5, 6.0), 64**3, (128, 128, 16)),  # thick slices
    ],
)
def test_a_crop_has_the_proportions_of_the_scans(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], voxels: int, expected: tuple[int, int, int]
) -> None:
    assert suggest_crop([shape], spacing, voxels, 16) == expected


def test_the_next_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = after_survey("raw", (4.0, 4.0, 3.0), [(93, 93, 130)], "heads")
    assert told == [
        "Suggested: 4 x 4 x 3 mm, crops of 48 x 64 x 80 voxels (192 x 256 x 240 mm), recipe small on this machine",
        "Next: anatomask prepare --source raw --out shards/heads --preprocess.spacing 4 4 3",
    ]
    told = after_prepare("shards/heads", (4.0, 4.0, 3.0), [(93, 93, 130)], labelled=True, layout="nnunet")
    flags = "--recipe small --data shards/heads --loader.patch-size 48 64 80"
    assert told[1:] == [f"Next: anatomask pretrain {flags}", f"  or: anatomask finetune {flags}"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (_, command) = after_prepare("x", (1.5, 1.5, 1.5), [(267, 267, 400)], labelled=False, layout="autopet2")
    assert "pretrain --recipe paper-b --target autopet2 --data x" in command  # which has the two channels
