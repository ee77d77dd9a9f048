"""N workers make the updates that one makes with the same global batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

WORKER = Path(__file__).with_name("parallel_worker.py")


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "case",
    [
        "segmentation",
        "pretraining",
        "unequal shares",
        "accumulated",
        "recomputed",
        "sharded",
        "sharded segmentation",
        "sharded and accumulated",
        "frozen at first",
        "sharded and frozen at first",
        "two views",
        "keys",
        "sharded keys",
        "turned views",
        "sharded turned views",
        "volumes and slices",
        "sharded volumes and slices",
        "visible patches",
        "sharded visible patches",
    ],
)
def test_losses_gradients_and_weights_are_those_of_one_worker(
    gloo_workers: Callable[[Path, int], dict[str, dict[str, Tensor]]], case: str, world: int
) -> None:
    """In float64, for the batch-wide Dice and for AnatoMask with its teacher, norms pooled over the batch."""
    one, several = gloo_workers(WORKER, 1)[case], gloo_workers(WORKER, world)[case]
    assert one.keys() == several.keys()
    largest = max(float(tensor.abs().max()) for name, tensor in one.items() if "gradient" in name)
    for name, expected in one.items():
        scale = max(float(expected.abs().max()), 1e-6 * largest if "gradient" in name else 1e-6)
        assert float((several[name] - expected).abs().max()) < 1e-9 * scale, name
