"""Pictures of a training run for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from anatomask.evaluation.validation import SegmentedSlice
from anatomask.methods.masked import Picture
from anatomask.reports.figures import CT_WINDOW, OverlayRow, Panel, overlay_figure

LEGIBLE = 19
"""Size of letters in points at which TensorBoard's tiles, a quarter as wide, are still legible."""
LEGIBLE_LETTERS = 1.65
"""Factor of the letters of an overlay figure of three columns at which they are as large as those of `LEGIBLE`."""
HIDDEN = "#9db4c0"
"""Colour of patches that are masked, or that have no value."""

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}


def reconstruction_figure(picture: Picture, spacing: Sequence[float], case: str) -> Figure:
    """Draw Fig. 1 of the paper through the volume's middle: input, random mask, reconstruction, patch loss, self-mask.

    Args:
        picture: reconstruction of one volume in RAS axes; the first channel is shown.
        spacing: voxel size in mm, for the aspect ratio.
        case: name of the scan.
    """
    volume, reconstruction = picture.volume[0].cpu().numpy(), picture.reconstruction[0].cpu().numpy()
    loss = picture.patch_loss.cpu().numpy()
    patch = volume.shape[0] // loss.shape[0]
    window = {"cmap": "gray", "vmin": float(volume.min()), "vmax": float(np.quantile(volume, 0.995))}
    figure = Figure(figsize=(12, 7.6), layout="constrained")
    figure.suptitle(case, fontsize=LEGIBLE)
    axes = figure.subplots(len(PLANES), 5)
    for number, (row, (name, axis)) in enumerate(zip(axes, PLANES.items(), strict=True)):
        middle = volume.shape[axis] // 2
        columns = {
            "input": (volume, window),
            "random mask": (hide(volume, picture.random_mask, patch), window),
            "reconstruction": (reconstruction, window),
            "patch loss": (voxels(loss, patch), {"cmap": "inferno", "vmin": 0}),
            "self-mask": (hide(volume, picture.self_mask, patch), window),
        }
        in_plane = [spacing[other] for other in range(3) if other != axis]
        for axes_of_plane, (title, (values, style)) in zip(row, columns.items(), strict=True):
            plane = values.take(middle, axis).T
            shown = axes_of_plane.imshow(plane, origin="lower", aspect=in_plane[1] / in_plane[0], **style)
            if axis != 0:
                axes_of_plane.invert_xaxis()
            axes_of_plane.set_facecolor(HIDDEN)
            axes_of_plane.set_xticks([])
            axes_of_plane.set_yticks([])
            if number == 0:
                axes_of_plane.set_title(title, fontsize=LEGIBLE)
            if title == "patch loss":
                figure.colorbar(shown, ax=axes_of_plane, shrink=0.7).ax.tick_params(labelsize=LEGIBLE * 0.7)
        row[0].set_ylabel(name, fontsize=LEGIBLE)
    return figure


def views_figure(views: Mapping[str, Tensor], spacing: Sequence[float], case: str) -> Figure:
    """Draw what the networks see of one scan, through the middle of each volume (C, D, H, W); the first channel.

    `spacing` is the voxel size in mm, for the aspect ratio.
    """
    figure = Figure(figsize=(3 * len(views), 7.6), layout="constrained")
    figure.suptitle(case, fontsize=LEGIBLE)
    axes = figure.subplots(len(PLANES), len(views), squeeze=False)
    for row, (name, axis) in zip(axes, PLANES.items(), strict=True):
        in_plane = [spacing[other] for other in range(3) if other != axis]
        for axes_of_plane, (title, view) in zip(row, views.items(), strict=True):
            volume = view[0].float().cpu().numpy()
            plane = volume.take(volume.shape[axis] // 2, axis).T
            axes_of_plane.imshow(plane, origin="lower", cmap="gray", aspect=in_plane[1] / in_plane[0])
            axes_of_plane.set_xticks([])
            axes_of_plane.set_yticks([])
            if axis == PLANES["axial"]:
                axes_of_plane.set_title(title, fontsize=LEGIBLE)
        row[0].set_ylabel(name, fontsize=LEGIBLE)
    return figure


def segmentation_figure(slices: Sequence[SegmentedSlice], class_names: Mapping[int, str]) -> Figure:
    """Draw the plain scan, the truth and the prediction side by side for a slice of each validation case."""
    rows = []
    for one in slices:
        score = "" if math.isnan(one.dsc) else f"DSC {100 * one.dsc:.1f} %"
        panels = [
            Panel("Scan", "", None),
            Panel("Ground truth", "", one.truth),
            Panel("Prediction", score, one.prediction),
        ]
        low, high = CT_WINDOW if one.scheme == "ct" else np.percentile(one.image, (1, 99.5))
        rows.append(OverlayRow(one.case, one.image.astype(float), one.spacing, panels, (float(low), float(high))))
    caption = "Axial slices that show most classes, on the prepared grid."
    return overlay_figure(rows, class_names, caption, LEGIBLE_LETTERS)


def voxels(patches: np.ndarray, patch: int) -> np.ndarray:
    """Repeat a value per patch (d, h, w) to its `patch`³ voxels."""
    return patches.repeat(patch, 0).repeat(patch, 1).repeat(patch, 2)


def hide(volume: np.ndarray, mask: Tensor, patch: int) -> np.ndarray:
    """Put NaN (drawn as nothing) into `volume` where the patch mask is true."""
    return np.where(voxels(mask.cpu().numpy(), patch), np.nan, volume)
