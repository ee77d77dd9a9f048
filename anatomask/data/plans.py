"""Plans of nnU-Net: what a configuration in them says of the voxels and of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anatomask.errors import UserError
from anatomask.names import shown
from anatomask.parsing import entry_of

READERS = {"SimpleITKIO": False, "NibabelIO": False, "SimpleITKIOWithReorient": True, "NibabelIOWithReorient": True}
"""Names of nnU-Net's image readers whose axes are known -> whether they turn the scan to RAS."""


@dataclass(frozen=True)
class PlannedGrid:
    """Voxels that a configuration plans."""

    plans: Path
    name: str
    """Name of the configuration."""
    spacing: tuple[float, float, float]
    """Voxel size in mm, in the order of the array's axes."""
    backward: tuple[int, int, int]
    """Permutation of the array's axes that makes them (z, y, x) of the file."""
    reoriented: bool
    """True if nnU-Net turned the scans to RAS."""


def find_configuration(plans: Mapping[str, Any], name: str, path: str | Path) -> dict[str, Any]:
    """Return the entries of a configuration, including those that it inherits.

    Raises:
        UserError: the plans, which `path` holds, lack it, or it is not understood.
    """
    configurations = entry_of(plans, "configurations", path)
    entries: dict[str, Any] = {}
    chain: list[Any] = [name]
    while chain[-1] is not None:
        own = entry_of(configurations, chain[-1], path)
        if not isinstance(own, Mapping) or chain[-1] in chain[:-1]:
            raise UserError(f"{path}: configuration {name} is not understood; make the plans again")
        entries = {**own, **entries}
        chain.append(own.get("inherits_from"))
    return entries


def planned_grid(plans: Mapping[str, Any], name: str, path: Path) -> PlannedGrid:
    """Read what a configuration plans for the voxels.

    Raises:
        UserError: the plans, which `path` holds, are not understood.
    """
    reader = entry_of(plans, "image_reader_writer", path)
    if reader not in READERS:
        raise UserError(f"{path}: scans were read by {reader}; {', '.join(READERS)} are understood")
    spacing = entry_of(find_configuration(plans, name, path), "spacing", path)
    if not _three(spacing, int | float) or min(spacing) <= 0:
        raise UserError(f"{path}: spacing of configuration {name} is {spacing}; three sizes in mm are expected (3-D)")
    backward = entry_of(plans, "transpose_backward", path)
    if not _three(backward, int) or sorted(backward) != [0, 1, 2]:
        raise UserError(f"{path}: transpose_backward is {backward}; an order of 0, 1, 2 is expected")
    return PlannedGrid(path, name, tuple(map(float, spacing)), tuple(backward), READERS[reader])  # type: ignore[arg-type]


def _three(values: Any, kind: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(isinstance(value, kind) for value in values)


def stage_strides(entries: Mapping[str, Any], path: str | Path) -> tuple[tuple[int, int, int], ...] | None:
    """Read the stride of each of the network's stages relative to the stage before, along each axis.

    They are the entry `strides` of the architecture's arguments; before nnU-Net 2.4, `pool_op_kernel_sizes`.

    Args:
        entries: entries of a configuration.
        path: file that holds them, which messages name.

    Returns:
        The strides, the first stage's included; None where the entries hold none.

    Raises:
        UserError: they are no strides of three axes.
    """
    architecture = entries.get("architecture")
    arguments = architecture.get("arch_kwargs") if isinstance(architecture, Mapping) else None
    strides = arguments.get("strides") if isinstance(arguments, Mapping) else None
    strides = entries.get("pool_op_kernel_sizes") if strides is None else strides
    if strides is None:
        return None
    read = tuple(map(_axes, strides)) if isinstance(strides, list | tuple) else ()
    if not read or any(len(axes) != 3 for axes in read):
        raise UserError(f"{path}: strides {shown(strides)} of the plans are not understood; a stage must have three")
    return tuple((a, b, c) for a, b, c in read)


def _axes(stage: Any) -> tuple[int, ...]:
    """Return the strides of a stage along each axis, one number being that of all; none where they are no strides."""
    axes = [stage] * 3 if isinstance(stage, int) else stage
    understood = isinstance(axes, list | tuple) and all(isinstance(one, int) and 1 <= one <= 4 for one in axes)
    return tuple(axes) if understood else ()
