from __future__ import annotations

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from anatomask.training.optimiser import build_optimiser
from anatomask.training.settings import OptimiserConfig
from anatomask.training.telemetry import device_scalars, update_ratio

CPU = torch.device("cpu")


def network(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 1)).to(dtype)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_ratio_is_that_of_the_weights_before_and_after(
    fused: bool, dtype: torch.dtype, tolerance: float, weight_decay: float
) -> None:
    module = network(dtype)
    module.get_parameter("0.bias").requires_grad_(False)
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=1.0, betas=(0.8, 0.95), weight_decay=weight_decay, fused=fused
    )
    for step in range(5):
        optimiser.param_groups[0]["lr"] = 0.02 / (1 + step)
        optimiser.zero_grad()
        module(torch.randn(2, 1, 5, 5, 5, dtype=dtype)).square().mean().backward()
        trained = [weight for weight in module.parameters() if weight.requires_grad]
        before = torch.cat([weight.detach().flatten() for weight in trained]).clone()
        optimiser.step()
        after = torch.cat([weight.detach().flatten() for weight in trained])
        expected = float((after - before).norm() / before.norm())
        assert expected > 1e-4
        assert float(update_ratio(optimiser)) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_ratio_of_sgd_is_that_of_the_weights_that_learn(momentum: float, weight_decay: float) -> None:
    module = network(torch.float64)
    config = OptimiserConfig("sgd", momentum=momentum, weight_decay=weight_decay, freeze=1)
    optimiser = build_optimiser(module, config, {module[0]: 1})
    for step in range(5):
        optimiser.zero_grad()
        module(torch.randn(2, 1, 5, 5, 5, dtype=torch.float64)).square().mean().backward()
        for group in optimiser.param_groups:
            group["lr"] = 0.2 / (1 + step)
        if step < 2:
            module[0].zero_grad()
        learning = [weight for weight in module.parameters() if weight.grad is not None]
        before = torch.cat([weight.detach().flatten() for weight in learning]).clone()
        optimiser.step()
        after = torch.cat([weight.detach().flatten() for weight in learning])
        expected = float((after - before).norm() / before.norm())
        assert expected > 1e-4
        assert float(update_ratio(optimiser)) == pytest.approx(expected, rel=1e-9)


def test_the_ratio_changes_neither_weights_nor_state() -> None:
    module = network(torch.float32)
    optimiser = torch.optim.AdamW(module.parameters())
    module(torch.randn(2, 1, 5, 5, 5)).square().mean().backward()
    optimiser.step()
    tensors = [*module.parameters(), *(value for state in optimiser.state.values() for value in state.values())]
    before = [tensor.detach().clone() for tensor in tensors]
    update_ratio(optimiser)
    assert all(torch.equal(old, new) for old, new in zip(before, tensors, strict=True))


def test_sharded_weights_give_the_same_ratio() -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        ratios = []
        for shard in (False, True):
            module = network(torch.float64)
            if shard:
                fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
            optimiser = torch.optim.AdamW(module.parameters())
            module(torch.ones(2, 1, 5, 5, 5, dtype=torch.float64)).square().mean().backward()
            optimiser.step()
            ratios.append(update_ratio(optimiser))
        assert not isinstance(ratios[1], DTensor) and ratios[1] == pytest.approx(ratios[0])
    finally:
        distributed.destroy_process_group()


def test_a_cpu_has_no_gpu_figures() -> None:
    assert device_scalars(CPU) == {}


def test_a_driver_that_does_not_answer_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 80 * 2**30

    def refuse(device: torch.device) -> int:
        raise RuntimeError("Not Supported")

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 93)
    cuda = torch.device("cuda", 0)
    whole = {"gpu_memory_gib": 1.5, "gpu_memory_total_gib": 80.0, "gpu_use": 0.93}
    assert device_scalars(cuda) == whole
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert device_scalars(cuda) == {name: value for name, value in whole.items() if name != "gpu_use"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_tells_its_memory_and_use() -> None:
    cuda = torch.device("cuda", 0)
    kept = torch.empty(2**28, dtype=torch.uint8, device=cuda)
    scalars = device_scalars(cuda)
    assert 0.25 <= scalars["gpu_memory_gib"] < scalars["gpu_memory_total_gib"]
    assert 0 <= scalars.get("gpu_use", 0) <= 1
    del kept
