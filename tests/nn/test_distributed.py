"""N workers compute what one computes with the same global batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anatomask.nn.distributed import all_reduce, workers

WORKER = Path(__file__).with_name("distributed_worker.py")

Results = dict[str, dict[str, Tensor]]


Found = Callable[[Path, int], Results]
"""What rank 0 of so many gloo workers found, by the worker's script and their number."""


def _error(mine: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Largest relative difference of a tensor. Biases before a norm have no gradient but rounding: see the largest."""
    assert mine.keys() == reference.keys()
    gradients = [tensor.abs().max() for name, tensor in reference.items() if name.startswith("gradient")]
    floor = 1e-3 * float(max(gradients)) if gradients else 0
    return max(
        float((mine[name] - expected).abs().max()) / (max(floor, float(expected.abs().max())) or 1)
        for name, expected in reference.items()
    )


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_losses_gradients_and_running_statistics_are_those_of_one_worker(gloo_workers: Found, world: int) -> None:
    """In float64; for both decoders, both norm scopes, dense and blocks, equal and unequal shares of the batch."""
    cases = [name for name in gloo_workers(WORKER, 1) if name not in ("not synchronised", "all_reduce")]
    assert len(cases) == 16
    errors = {name: _error(gloo_workers(WORKER, world)[name], gloo_workers(WORKER, 1)[name]) for name in cases}
    assert max(errors.values()) < 1e-10, errors


def test_both_backends_agree(gloo_workers: Found) -> None:
    for name, dense in gloo_workers(WORKER, 2).items():
        if " dense " in name:
            assert _error(gloo_workers(WORKER, 2)[name.replace("dense", "blocks")], dense) < 1e-7, name


def test_without_synchronisation_they_are_not(gloo_workers: Found) -> None:
    one, two = gloo_workers(WORKER, 1)["not synchronised"], gloo_workers(WORKER, 2)["not synchronised"]
    assert _error(two, one) > 1e-4


@pytest.mark.parametrize("world", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_all_reduce_and_its_gradient(gloo_workers: Found, world: int) -> None:
    factor = sum(range(1, world + 1))
    for dtype in (torch.float64, torch.float32, torch.float16):
        found = gloo_workers(WORKER, world)["all_reduce"]
        assert torch.equal(found[f"{dtype} total"], factor * torch.tensor([1, 2, 3], dtype=dtype))
        assert torch.equal(found[f"{dtype} gradient"], torch.full((3,), 2 * factor, dtype=dtype))


def test_a_single_worker_needs_no_process_group() -> None:
    x = torch.ones(3)
    assert workers() == 1 and all_reduce(x) is x
