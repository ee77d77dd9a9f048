"""Estimates of a training in words: its memory, and its time on devices whose speed is measured or assumed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from anatomask.settings import Settings
from anatomask.training.scaling import Exchange, LinkConfig, StepTime, step_time

if TYPE_CHECKING:
    from anatomask.training.cost import StepCost


@dataclass(frozen=True)
class DeviceConfig(Settings):
    """Training device that `--dry-run` assumes. It does not change a run."""

    tflops: float | None = None
    """Speed of a device's matrix product in TFLOP/s. Default: measured here, in float32."""
    share_of_peak: float = 0.3
    """Share of that speed that the training reaches: a rule of thumb."""
    links: LinkConfig = field(default_factory=LinkConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tflops is not None and not self.tflops > 0:
            raise ValueError(f"tflops must be positive, not {self.tflops}")
        if not 0 < self.share_of_peak <= 1:
            raise ValueError(f"share_of_peak must lie in (0, 1], not {self.share_of_peak}")


@dataclass(frozen=True)
class PretrainPlanConfig(DeviceConfig):
    """Settings of the plan that `--dry-run` prints. They do not change a run."""

    cases: int | None = None
    """Number of cases to plan for, like those of the data set. Default: the number in the data set."""
    samples: int = 16
    """Number of samples that are drawn, to measure the cost of reading them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1_000_000_000, "cases")
        self.require_range(1, 100_000, "samples")


def matrix_speed(device: torch.device, size: int = 2048) -> float:
    """Measure the floating-point operations per second of a float32 matrix product on `device`, the best of three."""
    a, b = torch.rand(2, size, size, device=device)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        (a @ b).sum().item()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


@dataclass(frozen=True)
class Device:
    """Speed of a training device, and its description."""

    flops_per_second: float
    """Floating-point operations per second that a training reaches."""
    description: str
    links: LinkConfig = field(default_factory=LinkConfig)

    def step(self, cost: StepCost, workers: int) -> StepTime:
        """Compute how long an update of that cost takes on `workers` such devices."""
        return step_time(cost.flops / self.flops_per_second, cost.exchange, workers, self.links)


def device_of(config: DeviceConfig) -> Device:
    """Return the device of a configuration, or one like this machine's, whose speed is measured."""
    if config.tflops is not None:
        speed = 1e12 * config.tflops
        name, of = "assumed device", "matrix product (plan.tflops)"
    else:
        here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        speed = matrix_speed(here)
        name = f"this machine's {torch.cuda.get_device_name() if here.type == 'cuda' else 'CPU'}"
        of = "float32 matrix product, measured"
    share = f"{config.share_of_peak:.0%} (plan.share-of-peak)"
    description = f"{name}, at {share} of the {speed / 1e12:.3g} TFLOP/s of its {of}"
    return Device(config.share_of_peak * speed, description, config.links)


def cost_rows(
    cost: StepCost, options: Mapping[str, StepCost], steps: int, workers: int, precision: str, device: Device
) -> list[tuple[str, str]]:
    """Make rows of a dry run: operations, memory, and the time that `steps` updates take on `workers` such devices.

    `options` are the costs with memory-saving settings, by the flag that sets each.
    """
    step = device.step(cost, workers)
    hours = steps * step.seconds / 3600
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
    if workers > 1:
        rows.append(exchange_row(cost.exchange, step, device.links))
    return [*rows, ("time", f"about {taken} on {workers} x {device.description}")]


def exchange_row(exchange: Exchange, step: StepTime, links: LinkConfig) -> tuple[str, str]:
    """Make the row of a dry run that says what workers exchange, and how long an update waits for it."""
    waits = f"{_short(1e3 * (step.sums + step.exposed))} of {_short(1e3 * step.seconds)} ms"
    return (
        "exchange",
        f"{_short(exchange.gradient_bytes / 1e6)} MB of gradients and {exchange.sums} small sums per update: {waits}, "
        f"at {links.inside:g} GB/s within machines of {links.devices_per_machine}, {links.between:g} GB/s between them "
        f"and {links.hop:g} µs a hop (plan.links)",
    )


@dataclass(frozen=True)
class Reading:
    """Average cost of reading one training sample."""

    samples: int
    """Number of samples that were drawn to measure it."""
    bytes: float
    cpu_seconds: float


def reading_rows(
    reading: Reading, crop_bytes: int, batch: int, cost: StepCost, workers: int, device: Device
) -> list[tuple[str, str]]:
    """Make rows of a dry run: the cost of reading a sample, and the reading that keeps `workers` devices busy.

    Args:
        reading: cost of reading one sample.
        crop_bytes: bytes of one sample as it is stored, uncompressed.
        batch: samples of one worker's update.
        cost: cost of one worker's update.
        workers: number of devices.
        device: description of each of them.
    """
    rate = batch / device.step(cost, workers).seconds
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
    """Format a number with three digits, or with all digits before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
