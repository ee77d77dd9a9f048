from __future__ import annotations

import pytest

from anatomask.training.cost import StepCost
from anatomask.training.estimate import Device, DeviceConfig, Reading, cost_rows, device_of, reading_rows
from anatomask.training.scaling import Exchange, LinkConfig


def test_the_time_grows_with_the_steps() -> None:
    cost = StepCost(flops=10**15, state_bytes=0, activation_bytes=0)
    rows = dict(cost_rows(cost, {}, 10**6, 1, "fp32", device_of(DeviceConfig())))
    assert rows["operations"] == "1e+03 TFLOP per update and worker"
    assert " h on 1 x this machine's" in rows["time"]
    assert "TFLOP/s of its float32 matrix product, measured" in rows["time"]


def test_memory_and_what_lowers_it() -> None:
    cost, less = StepCost(1, 8 * 2**30, 120 * 2**30), StepCost(1, 2**30, 2**29)
    device = Device(1.0, "")
    rows = cost_rows(cost, {"--this": less, "both": less}, 1, 8, "bf16", device)
    assert rows[1:3] == [
        ("memory", "128 GiB per worker: 8 of weights, gradients and moments, 120 of activations (bf16)"),
        ("", "1.5 with --this, 1.5 with both"),
    ]
    assert len(cost_rows(cost, {}, 1, 8, "bf16", device)) == len(rows) - 1


def test_figures_that_can_be_computed_by_hand() -> None:
    device = device_of(DeviceConfig(tflops=100, share_of_peak=0.25))
    assert device.flops_per_second == 25e12
    for assumption in ("25% (plan.share-of-peak)", "100 TFLOP/s", "(plan.tflops)"):
        assert assumption in device.description
    cost = StepCost(flops=5 * 10**12, activation_bytes=0, state_bytes=0)  # five updates of two samples per second
    rows = dict(cost_rows(cost, {}, 5 * 7200, 8, "fp32", device))
    assert rows["time"].startswith("about 2.0 h on 8 x")
    rows = dict(reading_rows(Reading(16, 6e6, 0.02), 4_000_000, 2, cost, 8, device))
    assert rows["reading"] == "6 MB and 20 CPU-ms per sample (16 drawn), 1.50 x the crop's 4.00 MB"
    assert rows["samples"] == "10 per second and device"
    assert rows["read bandwidth"] == "480 MB/s and 1.6 CPU cores for 8 such devices"
    half = Device(device.flops_per_second / 2, "")
    assert dict(reading_rows(Reading(1, 6e6, 0.02), 1, 2, cost, 8, half))["read bandwidth"].startswith("240 MB/s")


def test_what_workers_exchange_takes_time() -> None:
    links = LinkConfig(devices_per_machine=2, inside=1, between=1, hop=500)
    device = device_of(DeviceConfig(tflops=1, share_of_peak=1.0, links=links))
    cost = StepCost(2 * 10**11, 0, 0, Exchange(gradient_bytes=10**8, sums=40))
    rows = dict(cost_rows(cost, {}, 36000, 2, "fp32", device))
    # 200 ms computing, 40 sums of 1 ms; of 101 ms of gradients, the backward pass hides 74 ms, all but the last bucket.
    assert rows["exchange"].startswith("100 MB of gradients and 40 small sums per update: 67.2 of 267 ms, at")
    assert rows["time"].startswith("about 2.7 h on 2 x")
    assert "exchange" not in dict(cost_rows(cost, {}, 36000, 1, "fp32", device))
    rows = dict(reading_rows(Reading(16, 1e6, 0.02), 1, 2, cost, 2, device))
    assert rows["samples"] == "7.48 per second and device"


@pytest.mark.parametrize("field", [{"tflops": 0.0}, {"share_of_peak": 0.0}, {"share_of_peak": 1.5}])
def test_impossible_devices_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        DeviceConfig(**field)  # type: ignore[arg-type]
