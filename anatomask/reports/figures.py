"""Figure of overlays: a row per case, the ground truth and each run's prediction side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage

from anatomask.files import replacing

CT_WINDOW = (-160.0, 240.0)
"""Soft-tissue window in HU."""
BODY_HU = -300.0
COLUMN_INCHES = 2.6
LINE_INCHES = 0.16
SCORE_INCHES = 0.24
LEGEND_COLUMN_INCHES = 1.6
CAPTION_CHARACTERS_PER_INCH = 17
LARGE, SMALL = 8.5, 7.5
"""Sizes of letters in points: of titles, scores and classes, and of what is written into slices and below them."""
DPI = 150


@dataclass(frozen=True)
class Panel:
    """One label map in the figure, or the plain scan."""

    title: str
    score: str
    """Score of the whole case, as text; empty for the ground truth."""
    label: np.ndarray | None
    """Slice (R, A) of the label map, uint8; None for the plain scan."""


@dataclass(frozen=True)
class OverlayRow:
    """One axial slice of one case, in RAS axes."""

    case: str
    image: np.ndarray
    """Slice (R, A) of the scan, as stored: HU for CT."""
    spacing: tuple[float, float]
    """Voxel size in mm along R and A."""
    panels: Sequence[Panel]
    window: tuple[float, float] = CT_WINDOW
    """Grey values shown as black and white."""
    target: tuple[float, float] | None = None
    """Voxel (R, A) to which an arrow points in every panel."""


@mpl.rc_context({"text.parse_math": False})  # a name with dollars in it is no formula
def overlay_figure(
    rows: Sequence[OverlayRow], class_names: Mapping[int, str], caption: str, letters: float = 1.0
) -> Figure:
    """Draw slices as a radiologist sees them, the patient's right on the viewer's left.

    Every row has as many panels as the first, under its titles; each class is a translucent area with a solid outline.
    `letters` is a factor of the size of letters, and of the room that they get.
    """
    line_height, score_height = LINE_INCHES * letters, SCORE_INCHES * letters
    crops = [_body_crop(row) for row in rows]
    columns = len(rows[0].panels)
    width = COLUMN_INCHES * columns
    heights = [COLUMN_INCHES * _aspect(row, crop) for row, crop in zip(rows, crops, strict=True)]
    labels = [panel.label for row in rows for panel in row.panels if panel.label is not None]
    present = set().union(*map(np.unique, labels))
    shown = [class_id for class_id in class_names if class_id in present]
    per_line = max(1, int(width / (LEGEND_COLUMN_INCHES * letters)))
    lines = textwrap.wrap(caption, int(width * CAPTION_CHARACTERS_PER_INCH / letters))
    caption_height = line_height * (len(lines) + 0.5)
    legend_height = line_height * (1 + 1.2 * math.ceil(len(shown) / per_line))
    total = line_height + sum(heights) + score_height * len(rows) + legend_height + caption_height
    figure = Figure(figsize=(width, total), dpi=DPI, facecolor="white")
    colours = class_colours(class_names)
    top = total - line_height
    for index, (row, crop, height) in enumerate(zip(rows, crops, heights, strict=True)):
        top -= score_height + height
        for column, panel in enumerate(row.panels):
            box = (column / columns + 0.004, top / total, 1 / columns - 0.008, height / total)
            axes = figure.add_axes(box)
            _draw(axes, row, panel, crop, colours)
            _annotate(axes, panel, row.case if column == 0 else "", letters, show_title=index == 0)
    handles = [Patch(facecolor=colours[class_id], label=class_names[class_id]) for class_id in shown]
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, caption_height / total),
        ncols=per_line,
        frameon=False,
        fontsize=LARGE * letters,
        handlelength=1.2,
    )
    figure.text(
        0.5,
        0.5 * line_height / total,
        "\n".join(lines),
        ha="center",
        va="bottom",
        fontsize=SMALL * letters,
        color="0.3",
    )
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def class_colours(class_names: Mapping[int, str]) -> dict[int, tuple[float, float, float]]:
    """Choose a colour per class: ten that differ in hue and lightness, or a rainbow for the many of whole-body sets."""
    if len(class_names) <= 10:
        return {class_id: colormaps["tab10"](index)[:3] for index, class_id in enumerate(class_names)}
    return {class_id: colormaps["gist_rainbow"](index * 0.618 % 1)[:3] for index, class_id in enumerate(class_names)}


def _draw(axes: Axes, row: OverlayRow, panel: Panel, crop: tuple[slice, slice], colours: Mapping[int, tuple]) -> None:
    image = row.image[crop]
    label = np.zeros(image.shape, np.uint8) if panel.label is None else panel.label[crop]
    extent = (0.0, image.shape[0] * row.spacing[0], 0.0, image.shape[1] * row.spacing[1])
    low, high = row.window
    axes.imshow(_view(image), cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bicubic", origin="lower")
    for class_id, colour in colours.items():
        mask = label == class_id
        if not mask.any():
            continue
        smooth = _view(ndimage.zoom(np.pad(mask, 1).astype(float), 4, order=1, grid_mode=True, mode="nearest"))
        padded = (-row.spacing[0], extent[1] + row.spacing[0], -row.spacing[1], extent[3] + row.spacing[1])
        axes.contourf(smooth, levels=[0.5, 1.5], colors=[colour], alpha=0.35, extent=padded)
        axes.contour(smooth, levels=[0.5], colors=[colour], linewidths=1.1, extent=padded)
    if row.target is not None:
        place = zip(row.target, crop, row.spacing, strict=True)
        right, anterior = ((at - part.start + 0.5) * edge for at, part, edge in place)
        _point_at(axes, extent[1] - right, anterior, extent)
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_aspect("equal")
    axes.set_axis_off()


def _point_at(axes: Axes, x: float, y: float, extent: tuple[float, ...]) -> None:
    """Draw an arrow to a point in mm, from the side on which the panel has more room."""
    length = 0.13 * max(extent[1], extent[3])
    aside = length if x < extent[1] / 2 else -length
    above = length if y < extent[3] / 2 else -length
    axes.annotate(
        "",
        xy=(x, y),
        xytext=(x + aside, y + above),
        arrowprops={"arrowstyle": "-|>", "color": "yellow", "linewidth": 1.8, "shrinkB": 5, "mutation_scale": 13},
    )


def _annotate(axes: Axes, panel: Panel, case: str, letters: float, *, show_title: bool) -> None:
    """Write the score above the slice (in the first row, below the title), and case and patient's sides into it."""
    title = f"{panel.title}\n{panel.score}" if show_title else panel.score
    axes.set_title(title, fontsize=LARGE * letters, pad=3)
    for x, y, horizontal, vertical, text in (
        (0.02, 0.98, "left", "top", case),
        (0.02, 0.5, "left", "center", "R"),
        (0.98, 0.5, "right", "center", "L"),
    ):
        size = SMALL * letters
        axes.text(x, y, text, transform=axes.transAxes, ha=horizontal, va=vertical, fontsize=size, color="white")


def _view(plane: np.ndarray) -> np.ndarray:
    """Arrange (R, A) as rows from posterior to anterior, columns from the patient's right (the last index) to left."""
    return plane[::-1].T


def _body_crop(row: OverlayRow) -> tuple[slice, slice]:
    """Find the box around the body and the labels of the first panel that has some, with a margin of two voxels.

    Other panels do not widen it: a prediction that is wrong everywhere would shrink the body to a dot.
    """
    label = next((panel.label for panel in row.panels if panel.label is not None), None)
    labelled = np.zeros(row.image.shape, bool) if label is None else label > 0
    threshold = BODY_HU if row.window == CT_WINDOW else row.window[0] + 0.1 * (row.window[1] - row.window[0])
    body = ndimage.binary_opening(row.image > threshold, iterations=2)
    parts, count = ndimage.label(body)
    if count:
        sizes = ndimage.sum_labels(body, parts, range(1, count + 1))
        body = parts == 1 + int(np.argmax(sizes))
    boxes = ndimage.find_objects((body | labelled).astype(np.uint8))
    if not boxes:
        return slice(0, None), slice(0, None)
    r, a = (slice(max(part.start - 2, 0), part.stop + 2) for part in boxes[0])
    return r, a


def _aspect(row: OverlayRow, crop: tuple[slice, slice]) -> float:
    shape = row.image[crop].shape
    return shape[1] * row.spacing[1] / (shape[0] * row.spacing[0])
