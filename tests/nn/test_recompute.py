"""Computing activations again changes nothing but what is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anatomask.nn import recompute
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.nn.masked_autoencoder import MaskedAutoencoder
from anatomask.nn.recompute import recompute_activations


def _gradients_and_buffers(module: nn.Module, loss: Tensor) -> list[Tensor | None]:
    loss.backward()
    return [*(parameter.grad for parameter in module.parameters()), *module.buffers()]


def _same_twice(module: nn.Module, loss: Callable[[nn.Module], Tensor]) -> None:
    again = copy.deepcopy(module)
    recompute_activations(again)
    results = [_gradients_and_buffers(each, loss(each)) for each in (module, again)]
    for ordinary, recomputed in zip(*results, strict=True):
        assert ordinary is not None and recomputed is not None and torch.equal(ordinary, recomputed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["dense", "blocks"])
@pytest.mark.parametrize("decoder", ["hierarchical", "simple"])
def test_gradients_and_running_statistics_stay(dtype: torch.dtype, backend: str, decoder: str) -> None:
    """Bit for bit, for every parameter; samples differ in how many patches they show."""
    model = MaskedAutoencoder(STUNetConfig(base=2, depth=2), decoder, 16).to(dtype)  # type: ignore[arg-type]
    model.set_sparse_backend(backend)
    active = torch.rand(2, 2, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    volume = torch.randn(2, 1, 32, 32, 32, dtype=dtype)
    _same_twice(model, lambda each: each(volume, active).loss)


def test_segmentation_network() -> None:
    volume = torch.randn(1, 1, 32, 32, 32)
    network = STUNet(STUNetConfig(base=2), classes=2)
    _same_twice(network, lambda each: sum((level.square().mean() for level in each(volume)), torch.zeros(())))


@pytest.mark.parametrize("decoder", ["hierarchical", "simple"])
def test_less_is_kept(decoder: str) -> None:
    """Numbers that autograd keeps between forward and backward, counted by the storage that holds them."""
    model = MaskedAutoencoder(STUNetConfig(base=2, depth=2), decoder, 16)  # type: ignore[arg-type]
    model.set_sparse_backend("blocks")
    volume, active = torch.randn(1, 1, 32, 32, 32), torch.arange(8).view(1, 2, 2, 2) < 4
    kept = []
    for on in (False, True):
        recompute_activations(model, on)
        storages: dict[int, int] = {}

        def pack(x: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(volume, active)
        kept.append(sum(storages.values()))
    assert kept[1] < 0.6 * kept[0]


def test_without_gradients_nothing_is_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = MaskedAutoencoder(STUNetConfig(base=2), decoder_width=16), []

    def count(compute: Callable[..., object], *inputs: object, **options: Any) -> object:
        calls.append(compute)
        return checkpoint(compute, *inputs, **options)

    monkeypatch.setattr(recompute, "checkpoint", count)

    def forward() -> int:
        calls.clear()
        model(torch.randn(1, 1, 32, 32, 32), torch.arange(8).view(1, 2, 2, 2) < 4)
        return len(calls)

    recompute_activations(model)
    assert forward() == 5 + 4  # blocks of the encoder, levels of the decoder
    with torch.no_grad():
        assert forward() == 0
    recompute_activations(model, on=False)
    assert forward() == 0
