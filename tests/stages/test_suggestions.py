from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anatomask.cli.arguments import parse
from anatomask.data.records import triple
from anatomask.data.samples import LoaderConfig
from anatomask.data.settings import ReaderConfig
from anatomask.recipes import RECIPES
from anatomask.stages.suggestions import after_prepare, after_pretraining, after_survey, suggest_crop

EDGES = st.tuples(*[st.integers(1, 900)] * 3)
SPACINGS = st.tuples(*[st.floats(0.3, 8)] * 3)


@given(st.lists(EDGES, min_size=1, max_size=5), SPACINGS, st.integers(4096, 4_000_000), st.sampled_from([8, 16, 32]))
def test_a_crop_fits_and_is_a_multiple_of_the_stride(
    shapes: list[tuple[int, int, int]], spacing: tuple[float, float, float], voxels: int, stride: int
) -> None:
    crop = suggest_crop(shapes, spacing, voxels, stride)
    assert all(edge % stride == 0 and edge >= 32 for edge in crop)
    assert math.prod(crop) <= max(voxels, 32**3)
    median = [sorted(extents)[len(extents) // 2] for extents in zip(*shapes, strict=True)]
    assert all(edge < max(32, extent) + stride for edge, extent in zip(crop, median, strict=True))


@pytest.mark.parametrize(
    ("shape", "spacing", "voxels", "expected"),
    [
        ((267, 267, 400), (1.5, 1.5, 1.5), 112 * 112 * 128, (96, 112, 144)),  # a trunk, in its proportions
        ((93, 93, 130), (4.0, 4.0, 3.0), 64**3, (48, 64, 80)),
        ((40, 40, 30), (1.5, 1.5, 1.5), 112 * 112 * 128, (48, 48, 32)),  # a small scan whole
        ((512, 512, 20), (0.5, 0.5, 6.0), 64**3, (80, 96, 32)),  # thick slices: no edge is below 32
    ],
)
def test_a_crop_has_the_proportions_of_the_scans(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], voxels: int, expected: tuple[int, int, int]
) -> None:
    assert suggest_crop([shape], spacing, voxels, 16) == expected


def test_the_next_command_reads_the_same_scans_and_names_what_a_shell_would_divide() -> None:
    reader = ReaderConfig(image="images/*.nii.gz", positives_only=True)
    (_, command) = after_survey("my scans", (1.0, 1.0, 1.0), [(93, 93, 130)], "my scans", "folder", reader)
    assert shlex.split(command.removeprefix("Next: ")) == [
        *("anatomask", "prepare", "--source", "my scans", "--dataset", "folder", "--reader.positives-only"),
        *("--reader.image", "images/*.nii.gz", "--out", "shards/my scans", "--preprocess.spacing", "1", "1", "1"),
    ]
    (_, command) = after_prepare("x", (1.0, 1.0, 1.0), [(93, 93, 130)], labelled=False, layout="nnunet", channels=2)
    assert command.endswith(" --network.in-channels 2")


@pytest.mark.parametrize("spacing", [(0.8, 0.8, 5.0), (0.5, 0.5, 6.0)])
def test_the_suggested_crop_of_a_real_scan_of_thick_slices_is_accepted(
    spacing: tuple[float, float, float], tmp_path: Path
) -> None:
    (_, command) = after_prepare("x", spacing, [(512, 512, 24)], labelled=False, layout="nnunet")
    size = command.partition("--loader.patch-size ")[2].split()[:3]
    assert LoaderConfig(patch_size=triple(map(int, size), int)).patch_size[2] == 32


def test_after_a_pretraining_the_finetuning_has_its_recipe_and_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = "anatomask finetune --recipe small --init runs/x --data"
    assert after_pretraining("runs/x", ["a b"], labelled=True, crop=(64, 64, 32)) == (
        f"Next: {flags} 'a b' --loader.patch-size 64 64 32"
    )
    assert after_pretraining("runs/x", ["a", "b"], labelled=False, crop=(64, 64, 32)) == (
        f"Next, with labelled scans that are prepared in FOLDER: {flags} FOLDER --loader.patch-size 64 64 32"
    )


@pytest.mark.parametrize("network", ["unetr", "unimiss", "swin_unetr"])
def test_after_a_pretraining_the_finetuning_is_that_of_its_network(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    command = after_pretraining("scratch", ["a"], labelled=True, crop=(96, 96, 96), network=network)
    flags = shlex.split(command.partition("anatomask finetune ")[2].partition(" --loader")[0])
    config = parse("finetune", flags, RECIPES).config
    own = {"unetr": "selfmedmae", "unimiss": "unimiss", "swin_unetr": "swin-ssl"}[network]
    assert config.optimiser == RECIPES[own].settings("finetune").optimiser
    assert config.network.name == network


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
