"""Prepared data for sweeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from anatomask.data.index import write_index
from anatomask.data.shards import PreparedDataset


@pytest.fixture
def labelled_folder(prepared: Callable[..., PreparedDataset]) -> Callable[[str, int], PreparedDataset]:
    """Prepare, by the folder's name and a seed, two labelled cases: "one", for training, and "two", of which only the
    record exists."""

    def make(name: str, seed: int) -> PreparedDataset:
        image = np.random.default_rng(seed).integers(-200, 200, (20, 20, 20)).astype(np.int16)
        one = prepared(image, label=(image > 0).astype(np.uint8), root=name)
        records = [one.records["one"], dataclasses.replace(one.records["one"], case="two")]
        splits = {"train": ["one"], "unlabeled": [], "val": ["two"]}
        write_index(one.path, one.info, records, splits, one.fingerprint)
        return PreparedDataset.open(one.path)

    return make


@pytest.fixture
def labelled(labelled_folder: Callable[[str, int], PreparedDataset]) -> PreparedDataset:
    """One such data set."""
    return labelled_folder("prepared", 0)
