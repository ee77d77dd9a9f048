"""Memory that a case takes, from headers alone, and memory that is free: what would not fit is never read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from anatomask.errors import UserError

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")
REMEDY = "correct its header, leave it out, or take a machine with more memory"


class TooLarge(UserError):
    """Error of a scan that needs more memory than it may take; only its header was read."""

    def __init__(self, what: str, needs: int, limit: int, remedy: str = REMEDY) -> None:
        super().__init__(f"{what}: that takes {in_units(needs)} of memory, and {in_units(limit)} are there; {remedy}")
        self.what, self.needs, self.limit, self.remedy = what, needs, limit, remedy

    def __reduce__(self) -> tuple[type[TooLarge], tuple[str, int, int, str]]:
        return TooLarge, (self.what, self.needs, self.limit, self.remedy)

    def at(self, limit: int) -> TooLarge:
        """Copy the error with another limit."""
        return TooLarge(self.what, self.needs, limit, self.remedy)


def require_room(path: Path, shape: Sequence[int], bytes_per_voxel: int) -> None:
    """Check that an array of this shape fits into the machine's free memory.

    Raises:
        TooLarge: it does not fit.
    """
    needs, limit = math.prod(shape) * bytes_per_voxel, available_memory()
    if needs > limit:
        raise TooLarge(f"{path} holds {product(shape)} voxels of {bytes_per_voxel} bytes", needs, limit)


def bytes_to_read(shape: Sequence[int], channels: int) -> int:
    """Return an upper bound of the peak memory of surveying a scan of this shape.

    Voxels that a header scales are float64. Measured: 30 bytes to 45 bytes per voxel of one channel.
    """
    return math.prod(shape) * (8 * channels + 40)


def bytes_to_prepare(shape: Sequence[int], new_shape: Sequence[int], channels: int) -> int:
    """Return an upper bound of the peak memory of preparing a scan.

    Args:
        shape: shape as stored.
        new_shape: shape as resampled, in the same order of axes.
        channels: number of images of this shape.

    The channels are read as float64; one after the other is resampled as float32 with two copies; the results are kept
    in 2 bytes per voxel. Each axis has a matrix. The factors are measured: peaks were 45 % to 95 % of the bound.
    """
    old, new = math.prod(shape), math.prod(new_shape)
    matrices = sum(8 * a * a + 24 * a * b for a, b in zip(shape, new_shape, strict=True))
    return 8 * channels * old + 16 * max(old, new) + (2 * channels + 12) * new + matrices


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this machine has free, or that the control group (container, batch job) still allows.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    rooms = [*_of_machine(root / "proc/meminfo"), *_of_control_groups(root)]
    return max(0, min(rooms)) if rooms else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_units(size: int) -> str:
    """Format a number of bytes with its unit."""
    power = min(max(0, (size.bit_length() - 1) // 10), len(UNITS) - 1)
    amount = size / 1024**power
    return f"{amount:.3g} {UNITS[power]}" if amount < 100 else f"{amount:,.0f} {UNITS[power]}"


def _of_machine(meminfo: Path) -> Iterator[int]:
    """List what Linux reports as available; nothing on other systems."""
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines() if ":" in line)
        if "MemAvailable" in fields:
            yield 1024 * int(fields["MemAvailable"].split()[0])


def _of_control_groups(root: Path) -> Iterator[int]:
    """List what each control group around this process, of version 1 or 2, leaves; nothing where it has no limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = base / path.lstrip("/")
        for folder in {inner, *inner.parents} - set(base.parents):
            yield from _of_control_group(folder, *names)


def _of_control_group(folder: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    try:
        most, used = (
            (folder / limit).read_text(encoding="utf-8").strip(),
            int((folder / usage).read_text(encoding="utf-8")),
        )
        kept = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):  # none here, or not ours to read
        return
    if most.isdecimal():  # "max" means none
        yield int(most) - used + int(kept.get(cache, 0))


def product(edges: Sequence[float]) -> str:
    """Format the edges of a box, as in 112×112×128."""
    return " × ".join(f"{edge:,}" if isinstance(edge, int) else f"{edge:.4g}" for edge in edges)
