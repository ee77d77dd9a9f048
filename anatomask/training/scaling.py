"""Time of an update on several devices: computing, and what they exchange on links whose speeds are assumed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from anatomask.settings import Settings

BACKWARD_SHARE = 0.5
"""Share of an update's computing that is its backward pass, which hides the averaging of gradients: two parts of four
where a teacher's forward pass comes first (of three where none does)."""
BUCKET_BYTES = 25 * 2**20
"""Bytes of gradients that DistributedDataParallel averages at once; the last ones come after the backward pass."""


@dataclass(frozen=True)
class LinkConfig(Settings):
    """Links between training devices that `--dry-run` assumes. They do not change a run."""

    devices_per_machine: int = 8
    """Devices of a machine; with more workers, several machines train together."""
    inside: float = 300.0
    """GB/s that a device sends to others of its machine: two thirds of an H100's NVLink."""
    between: float = 40.0
    """GB/s that a device sends to other machines: four fifths of 400 Gbit/s, one network card per device."""
    hop: float = 4.0
    """Microseconds until a small message has reached another device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 10_000, "devices_per_machine")
        self.require_range(1e-6, 1e6, "inside", "between")
        self.require_range(0, 1e6, "hop")


@dataclass(frozen=True)
class Exchange:
    """What one worker exchanges with the others in an update."""

    gradient_bytes: int = 0
    """Bytes that are averaged behind the backward pass."""
    sums: int = 0
    """Number of small sums in the midst of the computation, which waits for each: statistics of norms."""
    sum_bytes: int = 0
    """Bytes of all these sums together."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of an update."""

    computing: float
    sums: float = 0.0
    """Seconds in which the computation waits for small sums."""
    gradients: float = 0.0
    """Seconds in which gradients are averaged, most of them behind the backward pass."""
    exposed: float = 0.0
    """Seconds of these that are left when the backward pass is over."""

    @property
    def seconds(self) -> float:
        """Seconds from one update to the next."""
        return self.computing + self.sums + self.exposed

    @property
    def efficiency(self) -> float:
        """Share of the time in which the devices compute."""
        return self.computing / self.seconds


def all_reduce_seconds(size: float, workers: int, links: LinkConfig) -> float:
    """Compute the seconds in which `workers` devices sum `size` bytes that each of them holds.

    Rings within each machine, then between machines, of which each device carries its part: a ring of n sends
    2 (n - 1) / n of the bytes (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009). A tree there and back takes
    2 log2(n) hops, which is what small sums cost.
    """
    inside = min(workers, links.devices_per_machine)
    machines = math.ceil(workers / links.devices_per_machine)
    moved = _ring(inside) * size / (1e9 * links.inside) + _ring(machines) * size / inside / (1e9 * links.between)
    return moved + 2 * math.ceil(math.log2(workers)) * 1e-6 * links.hop


def step_time(computing: float, exchange: Exchange, workers: int, links: LinkConfig) -> StepTime:
    """Compute how long an update takes that each of `workers` devices computes for `computing` seconds.

    All devices are taken to be equally fast, so none waits for another.
    """
    if workers == 1:
        return StepTime(computing)
    gradients = all_reduce_seconds(exchange.gradient_bytes, workers, links)
    last = all_reduce_seconds(min(exchange.gradient_bytes, BUCKET_BYTES), workers, links)
    each = all_reduce_seconds(exchange.sum_bytes / max(1, exchange.sums), workers, links)
    exposed = max(last, gradients - BACKWARD_SHARE * computing)
    return StepTime(computing, exchange.sums * each, gradients, exposed)


def _ring(devices: int) -> float:
    return 2 * (devices - 1) / devices
