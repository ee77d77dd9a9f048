from __future__ import annotations

import pytest
import torch
from torch import nn

from anatomask.training.estimate import (
    Device,
    DeviceConfig,
    Reading,
    StepCost,
    cost_rows,
    device_of,
    reading_rows,
    step_cost,
)


def test_operations_and_memory_of_a_layer_that_can_be_counted_by_hand() -> None:
    with torch.device("meta"):
        layer = nn.Conv3d(4, 8, 3, padding=1, bias=False)
        volume = torch.empty(2, 4, 10, 10, 10)
    cost = step_cost(layer, lambda: layer(volume).square().sum())
    forward = 2 * (27 * 4 * 8) * (2 * 1000)
    assert cost.flops == 2 * forward  # forward and the weight's gradient; the input needs none
    assert cost.state_bytes == 16 * 27 * 4 * 8
    assert cost.activation_bytes == 4 * (2 * 4 * 1000 + 2 * 8 * 1000 + 27 * 4 * 8)  # input, output, weight


def test_the_time_grows_with_the_steps() -> None:
    with torch.device("meta"):
        layer = nn.Conv3d(64, 64, 3, padding=1)
        volume = torch.empty(64, 64, 64, 64, 64)
    device = device_of(DeviceConfig())
    rows = dict(cost_rows(step_cost(layer, lambda: layer(volume).sum()), 10**6, 1, "fp32", device))
    assert "TFLOP per update" in rows["operations"]
    assert " h on 1 x this machine's" in rows["time"]
    assert "TFLOP/s of its float32 matrix product, measured" in rows["time"]


def test_figures_that_can_be_computed_by_hand() -> None:
    device = device_of(DeviceConfig(tflops=100, share_of_peak=0.25))
    assert device.flops_per_second == 25e12
    for assumption in ("25% (plan.share-of-peak)", "100 TFLOP/s", "(plan.tflops)"):
        assert assumption in device.description
    cost = StepCost(flops=5 * 10**12, activation_bytes=0, state_bytes=0)  # five updates of two samples per second
    rows = dict(cost_rows(cost, 5 * 7200, 8, "fp32", device))
    assert rows["time"].startswith("about 2.0 h on 8 x")
    rows = dict(reading_rows(Reading(16, 6e6, 0.02), 4_000_000, 2, cost, 8, device))
    assert rows["reading"] == "6 MB and 20 CPU-ms per sample (16 drawn), 1.50 x the crop's 4.00 MB"
    assert rows["samples"] == "10 per second and device"
    assert rows["read bandwidth"] == "480 MB/s and 1.6 CPU cores for 8 such devices"
    half = Device(device.flops_per_second / 2, "")
    assert dict(reading_rows(Reading(1, 6e6, 0.02), 1, 2, cost, 8, half))["read bandwidth"].startswith("240 MB/s")


@pytest.mark.parametrize("field", [{"tflops": 0.0}, {"share_of_peak": 0.0}, {"share_of_peak": 1.5}])
def test_impossible_devices_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        DeviceConfig(**field)
