"""Figures 1 and 3 of the paper, of an untrained network on a real scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anatomask
from anatomask.data.scans import prepared_scan
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.methods.masked import Picture
from anatomask.nested import plain
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.reports import masks
from anatomask.reports.masks import MaskedCase, masked_cases, masks_caption, masks_figure
from anatomask.weights.files import describe_architecture, write_weights

NETWORK = STUNetConfig(base=2)
METHOD = AnatoMaskConfig(decoder_width=16, sparse_backend="dense", patch=8)
Make = Callable[..., str]


@pytest.fixture
def pretrained(tmp_path: Path) -> Make:
    """Writes the weights of an untrained method as those of a run on a data set."""

    def write(dataset: PreparedDataset, **changes: Any) -> str:
        torch.manual_seed(0)
        header = {
            "kind": "pretraining",
            "architecture": describe_architecture(NETWORK),
            "method": {**plain(METHOD), "label": METHOD.label()},
            "encoder": METHOD.encoder,
            "stages": METHOD.stages(NETWORK),
            "patch_size": [32, 32, 32],
            "spacing": list(dataset.spacing),
            "fingerprint": dataset.fingerprint.to_dict(),
            "dataset": dataset.name,
            "data": dataset.path,
            **changes,
        }
        write_weights(tmp_path / "pre", METHOD.build(NETWORK).state_dict(), header)
        return str(tmp_path / "pre")

    return write


def test_the_part_about_the_organs_and_its_masks_are_drawn(
    head: PreparedDataset, pretrained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "EDGE", 48)
    monkeypatch.setattr(masks, "MASKS", 2)
    run = pretrained(head)
    (case,), dataset = masked_cases(run, 3)
    stored, label = dataset.read_volume("one", label=True)
    assert label is not None and case.label is not None and case.image.shape == (48, 48, 48)
    places = [np.argwhere(volume[0] if volume.ndim == 4 else volume) for volume in (label, case.label)]
    assert len(places[1]) > 0.5 * len(places[0])
    first = places[1][0]  # the same voxel, found again by its class and its neighbours
    window = case.image[tuple(slice(max(at - 2, 0), at + 3) for at in first)]
    whole = np.lib.stride_tricks.sliding_window_view(stored[0], window.shape)
    assert (whole == window).all(axis=(3, 4, 5)).any()

    scan = prepared_scan(dataset, "one")
    assert scan.spacing == case.spacing
    seen = anatomask.self_mask(run, replace(scan, stored=case.image[None]), 2)
    assert torch.equal(seen.self_mask, case.picture.self_mask) and seen.patch == 8
    figure = masks_figure([case], dataset.class_names)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["Input and organs", "Patch loss", "Random mask", "Self-mask"]
    figure.canvas.draw()


def test_the_caption_counts_hidden_patches_that_touch_organs() -> None:
    label = np.zeros((16, 16, 16), np.uint8)
    label[:8, :8, :8] = 1  # one patch of eight
    empty = torch.zeros(1, 16, 16, 16)
    random, own = torch.zeros(2, 2, 2, dtype=torch.bool), torch.zeros(2, 2, 2, dtype=torch.bool)
    random[0] = True  # four patches
    own[0, 0, 0] = own[1, 1, 1] = True
    picture = Picture(empty, random, empty, torch.zeros(2, 2, 2), own)
    case = MaskedCase("one", label, label, (0, 1), (1, 1, 1), picture)
    assert case.on_organs == (0.25, 0.5)
    assert "25 % of the patches that the random masks hide touch an organ, 50 % of the self-masks'." in masks_caption(
        "pre", [case]
    )
    assert "%" not in masks_caption("pre", [MaskedCase("one", label, None, (0, 1), (1, 1, 1), picture)])


def test_a_scan_without_labels_is_shown_at_its_middle(
    head_scan: PreparedDataset, pretrained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "EDGE", 32)
    monkeypatch.setattr(masks, "MASKS", 1)
    (case,), dataset = masked_cases(pretrained(head_scan), 1)
    assert case.label is None and case.on_organs is None
    masks_figure([case], dataset.class_names).canvas.draw()


@pytest.mark.parametrize(
    ("changes", "message"), [({"kind": "segmentation"}, "holds no pretraining"), ({"data": None}, "data")]
)
def test_other_weights_are_refused(
    changes: dict[str, Any], message: str, head_scan: PreparedDataset, pretrained: Make
) -> None:
    with pytest.raises(UserError, match=message):
        masked_cases(pretrained(head_scan, **changes), 1)
