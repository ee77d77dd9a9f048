from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.samples import LoaderConfig
from anatomask.data.shards import PreparedDataset
from anatomask.training.fixed_scans import FixedCases, choose_fixed_cases, read_fixed_scans

DRAW = MaskedDraw(LoaderConfig(patch_size=(32, 32, 32)))


@pytest.fixture
def dataset(prepared: Callable[..., PreparedDataset]) -> PreparedDataset:
    """Nine cases that share one record; those with an odd number have no label."""
    image = np.random.default_rng(0).integers(-900, 900, (40, 36, 20)).astype(np.int16)
    data = prepared(image, label=(image > 800).astype(np.uint8))
    (record,) = data.records.values()
    data.records |= {f"c{n}": dataclasses.replace(record, labelled=n % 2 == 0) for n in range(9)}
    return data


@pytest.mark.parametrize(
    ("splits", "trained_on", "cases", "held_out"),
    [
        ({"val": ("c1", "c2", "c3", "c4", "c5"), "test": ("c6",)}, ("c0",), ("c2", "c4", "c1", "c3"), True),
        ({"val": ("c1", "c2"), "test": ("c6",)}, ("c1", "c2"), ("c6",), True),
        ({"val": ("c1", "c2"), "test": ()}, ("c1",), ("c2",), True),
        ({"train": ("c3", "c1")}, ("c3", "c1"), ("c1", "c3"), False),
        ({"val": ("c2",), "test": ("c4",)}, ("c2", "c4"), ("c2", "c4"), False),
    ],
    ids=["labelled validation first", "validation is trained on", "partly", "no other", "all are trained on"],
)
def test_held_out_scans_come_first(
    dataset: PreparedDataset,
    splits: dict[str, tuple[str, ...]],
    trained_on: tuple[str, ...],
    cases: tuple[str, ...],
    held_out: bool,
) -> None:
    dataset.splits = splits
    assert choose_fixed_cases(dataset, trained_on) == FixedCases(cases, held_out)


def test_the_seed_decides_the_masks_and_each_scan_has_its_own(dataset: PreparedDataset) -> None:
    fixed = FixedCases(("one", "one"), held_out=True)
    first, second = read_fixed_scans(dataset, fixed, DRAW, seed=0)
    assert first.volume.shape == (1, 1, 32, 32, 32) and first.noise.shape == (2, 2, 8)
    assert torch.equal(first.volume, second.volume) and not torch.equal(first.noise, second.noise)
    assert torch.equal(read_fixed_scans(dataset, fixed, DRAW, seed=0)[0].noise, first.noise)
    assert not torch.equal(read_fixed_scans(dataset, fixed, DRAW, seed=1)[0].noise, first.noise)


def test_no_label_of_a_training_case_is_read(dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    read = PreparedDataset.read_crop

    def spy(self: PreparedDataset, *arguments: object, label: bool) -> object:
        asked.append(label)
        return read(self, *arguments, label=label)  # type: ignore[arg-type]

    monkeypatch.setattr(PreparedDataset, "read_crop", spy)
    (scan,) = read_fixed_scans(dataset, FixedCases(("one",), held_out=False), DRAW, seed=0)
    assert scan.organs is None and asked == [False]
    (scan,) = read_fixed_scans(dataset, FixedCases(("one",), held_out=True), DRAW, seed=0)
    assert scan.organs is not None and scan.organs.any() and asked == [False, True]
