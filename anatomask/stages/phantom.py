"""Phantom scans: CT-like volumes with organ labels, in the layout of TotalSegmentator v1."""

from __future__ import annotations

from rich.console import Console

from anatomask.data.phantom import write_phantom
from anatomask.data.settings import PhantomConfig
from anatomask.terminal.progress import progress_shown


def stage(config: PhantomConfig, *, overwrite: bool) -> int:
    """Write all cases; those that an earlier run completed stay."""
    scans = write_phantom(config, overwrite=overwrite)
    with progress_shown() as progress:
        bar = progress.add_task("writing phantoms", total=config.cases, detail="scans")
        for _ in scans:
            progress.advance(bar)
    Console().print(f"{config.cases} scans in {config.out}", highlight=False, soft_wrap=True)
    return 0


def plan(config: PhantomConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run."""
    voxels = config.cases * config.size**3
    return [
        ("cases", str(config.cases)),
        ("typical grid", f"{config.size} voxels from left to right, {config.spacing:g} mm"),
        ("disk", f"about {1.4 * voxels / 2**20:.0f} MiB"),
        ("folder", config.out),
    ]
