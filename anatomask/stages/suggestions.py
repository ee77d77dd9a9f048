"""Suggestions at the end of `survey` and `prepare`: a voxel size, a crop, a recipe, and the next command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from shlex import quote

import numpy as np
import torch

from anatomask.data.samples import SMALLEST_CROP
from anatomask.data.settings import ReaderConfig
from anatomask.plugins import plugin_flags
from anatomask.recipes import RECIPES, TARGETS

ISOTROPIC = 256
"""Number of voxels along the edge of the cube of equal sides in mm from which nnU-Net's planner starts."""


def recipe_here() -> str:
    """Return the recipe that this machine can train: the paper's where there is a GPU."""
    return "paper-b" if torch.cuda.is_available() else "small"


def suggest_crop(
    shapes: Sequence[Sequence[int]], spacing: Sequence[float], voxels: int, stride: int
) -> tuple[int, int, int]:
    """Plan a crop of at most `voxels` voxels with the proportions of the median scan, as nnU-Net plans its patch.

    It starts from a cube in mm, cut to the median scan, with no edge below `SMALLEST_CROP`. While that is too large,
    the axis is shortened that then still covers the largest share of the median scan.

    Args:
        shapes: (D, H, W) of each scan at `spacing`.
        spacing: voxel size in mm.
        voxels: number of voxels that an update has memory for; a crop of the smallest edges is always suggested.
        stride: number of which each edge is a multiple.

    Returns:
        The edges in voxels.
    """
    median = np.median(np.asarray(shapes, float), axis=0)
    cube = ISOTROPIC * float(np.prod(spacing)) ** (1 / 3) / np.asarray(spacing, float)
    least = stride * math.ceil(SMALLEST_CROP / stride)
    crop = [max(least, stride * math.ceil(edge / stride)) for edge in np.minimum(cube, median)]
    while math.prod(crop) > voxels and max(crop) > least:
        left = [(edge - stride) / extent if edge > least else 0 for edge, extent in zip(crop, median, strict=True)]
        crop[int(np.argmax(left))] -= stride
    d, h, w = crop
    return d, h, w


def after_survey(
    source: str,
    spacing: Sequence[float],
    shapes: Sequence[Sequence[int]],
    name: str,
    dataset: str = "auto",
    reader: ReaderConfig | None = None,
) -> list[str]:
    """Suggest how to prepare the scans of `source`, whose median voxel size is `spacing` (mm).

    Args:
        source: folder of the scans.
        spacing: voxel size in mm of the prepared scans.
        shapes: (D, H, W) of each scan at that spacing.
        name: name of the data set.
        dataset: layout of the folder, as it was given.
        reader: settings with which the scans were read. Default: none.
    """
    reading = _reading_flags(dataset, reader or ReaderConfig())
    size = " ".join(f"{mm:g}" for mm in spacing)
    return [
        f"Suggested: {size.replace(' ', ' x ')} mm, {_crop_in_words(spacing, shapes)}",
        f"Next: anatomask prepare --source {quote(source)}{reading} --out {quote(f'shards/{name}')} "
        f"--preprocess.spacing {size}{plugin_flags()}",
    ]


def _reading_flags(dataset: str, reader: ReaderConfig) -> str:
    """Return the flags that read the same scans again, each after a space."""
    flags = f" --dataset {quote(dataset)}" if dataset != "auto" else ""
    for field in fields(reader):
        value = getattr(reader, field.name)
        if value != field.default:
            text = "" if value is True else f" {quote(str(value))}"
            flags += f" --reader.{field.name.replace('_', '-')}{text}"
    return flags


def after_prepare(
    out: str, spacing: Sequence[float], shapes: Sequence[Sequence[int]], labelled: bool, layout: str, channels: int = 1
) -> list[str]:
    """Suggest how to train on what was prepared in `out`.

    Args:
        out: the prepared folder.
        spacing: its voxel size in mm.
        shapes: (D, H, W) of each of its scans.
        labelled: True if a scan has labels.
        layout: name of its reader, which may be that of a target.
        channels: number of its image channels.
    """
    recipe = recipe_here()
    crop = " ".join(map(str, _crop(recipe, spacing, shapes)))
    target = f" --target {layout}" if layout in TARGETS else ""
    read = RECIPES[recipe].settings("pretrain").network.in_channels
    several = f" --network.in-channels {channels}" if channels != read and not target else ""
    flags = f"--recipe {recipe}{target} --data {quote(out)} --loader.patch-size {crop}{several}{plugin_flags()}"
    finetune = [f"  or: anatomask finetune {flags}"] if labelled else []
    return [f"Suggested: {_crop_in_words(spacing, shapes)}", f"Next: anatomask pretrain {flags}", *finetune]


def after_pretraining(
    run: str, data: Sequence[str], labelled: bool, crop: Sequence[int], network: str = "stunet"
) -> str:
    """Suggest how to finetune from a run of `pretrain`.

    Args:
        run: folder of the run.
        data: prepared folders that it was trained on.
        labelled: True if a scan in them has labels.
        crop: edges in voxels of its crops.
        network: name of its network, which has a finetuning of its own.
    """
    where = "" if labelled else ", with labelled scans that are prepared in FOLDER"
    source = quote(data[0]) if labelled else "FOLDER"
    size = " ".join(map(str, crop))
    recipe = recipe_here() + f" --network {network}" * (network != "stunet")
    return (
        f"Next{where}: anatomask finetune --recipe {recipe} --init {quote(run)} --data {source} "
        f"--loader.patch-size {size}{plugin_flags()}"
    )


def _crop(recipe: str, spacing: Sequence[float], shapes: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    pretraining = RECIPES[recipe].settings("pretrain")
    return suggest_crop(shapes, spacing, math.prod(pretraining.loader.patch_size), max(pretraining.network.strides))


def _crop_in_words(spacing: Sequence[float], shapes: Sequence[Sequence[int]]) -> str:
    recipe = recipe_here()
    crop = _crop(recipe, spacing, shapes)
    millimetres = " x ".join(f"{edge * mm:.0f}" for edge, mm in zip(crop, spacing, strict=True))
    return f"crops of {' x '.join(map(str, crop))} voxels ({millimetres} mm), recipe {recipe} on this machine"
