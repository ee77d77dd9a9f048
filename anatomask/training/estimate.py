"""What a training will take, in words: its memory, and its time on devices of a speed that is measured or assumed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from anatomask.settings import Settings

if TYPE_CHECKING:
    from anatomask.training.cost import StepCost


@dataclass(frozen=True)
class DeviceConfig(Settings):
    """What `--dry-run` takes a training device to be. No run depends on it."""

    tflops: float | None = None
    """Speed of a device's matrix product in TFLOP/s; none: measured here, in float32."""
    share_of_peak: float = 0.3
    """Share of that speed that the training reaches: a rule of thumb."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tflops is not None and not self.tflops > 0:
            raise ValueError(f"tflops must be positive, not {self.tflops}")
        if not 0 < self.share_of_peak <= 1:
            raise ValueError(f"share_of_peak must lie in (0, 1], not {self.share_of_peak}")


@dataclass(frozen=True)
class PretrainPlanConfig(DeviceConfig):
    """What `--dry-run` plans for. No run depends on it."""

    cases: int | None = None
    """Plan for so many cases like those of the data set; none: as many as there are."""
    samples: int = 16
    """Samples that are drawn, to measure what reading them takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1_000_000_000, "cases")
        self.require_range(1, 100_000, "samples")


def matrix_speed(device: torch.device, size: int = 2048) -> float:
    """Floating-point operations per second of a float32 matrix product on `device`, the best of three."""
    a, b = torch.rand(2, size, size, device=device)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        (a @ b).sum().item()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


@dataclass(frozen=True)
class Device:
    """A training device: how fast it is taken to be, and in what words."""

    flops_per_second: float
    """That a training reaches."""
    description: str


def device_of(config: DeviceConfig) -> Device:
    """The device of a configuration, or one like this machine's, whose speed is measured."""
    if config.tflops is not None:
        speed = 1e12 * config.tflops
        name, of = "assumed device", "matrix product (plan.tflops)"
    else:
        here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        speed = matrix_speed(here)
        name = f"this machine's {torch.cuda.get_device_name() if here.type == 'cuda' else 'CPU'}"
        of = "float32 matrix product, measured"
    share = f"{config.share_of_peak:.0%} (plan.share-of-peak)"
    return Device(config.share_of_peak * speed, f"{name}, at {share} of the {speed / 1e12:.3g} TFLOP/s of its {of}")


def cost_rows(
    cost: StepCost, options: Mapping[str, StepCost], steps: int, workers: int, precision: str, device: Device
) -> list[tuple[str, str]]:
    """Rows of a dry run: operations, memory, and the time that `steps` updates take on `workers` such devices.

    `options` are the costs with settings that take less memory, by what to write for them.
    """
    hours = steps * cost.flops / device.flops_per_second / 3600
    taken = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    rows = [
        ("operations", f"{cost.flops / 1e12:.3g} TFLOP per update and worker"),
        (
            "memory",
            f"{_gib(cost.memory_bytes)} GiB per worker: {_gib(cost.state_bytes)} of weights, gradients and moments, "
            f"{_gib(cost.activation_bytes)} of activations ({precision})",
        ),
    ]
    if options:
        rows.append(("", ", ".join(f"{_gib(less.memory_bytes)} with {name}" for name, less in options.items())))
    return [*rows, ("time", f"about {taken} on {workers} x {device.description}")]


@dataclass(frozen=True)
class Reading:
    """What one training sample takes to be read, on average."""

    samples: int
    """That were drawn to know it."""
    bytes: float
    cpu_seconds: float


def reading_rows(
    reading: Reading, crop_bytes: int, batch: int, cost: StepCost, workers: int, device: Device
) -> list[tuple[str, str]]:
    """Rows of a dry run: what a sample takes to be read, and what keeps `workers` devices busy.

    Args:
        reading: of one sample.
        crop_bytes: of one sample as it is stored, uncompressed.
        batch: samples of one worker's update.
        cost: of one worker's update.
        workers: devices.
        device: what each of them is.
    """
    rate = batch * device.flops_per_second / cost.flops
    bandwidth, cores = workers * rate * reading.bytes / 1e6, workers * rate * reading.cpu_seconds
    return [
        (
            "reading",
            f"{_short(reading.bytes / 1e6)} MB and {_short(1e3 * reading.cpu_seconds)} CPU-ms per sample "
            f"({reading.samples} drawn), {reading.bytes / crop_bytes:.2f} x the crop's {crop_bytes / 1e6:.2f} MB",
        ),
        ("samples", f"{_short(rate)} per second and device"),
        (
            "read bandwidth",
            f"{_short(bandwidth)} MB/s and {_short(cores)} CPU cores for {workers} such "
            f"{'device' if workers == 1 else 'devices'}",
        ),
    ]


def _gib(size: int) -> str:
    return _short(size / 2**30)


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
