"""The contact sheet of a survey: a coronal and an axial slice of each case, suspicious ones framed and named."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy import ndimage

from anatomask.files import replacing
from anatomask.reports.figures import class_colours

COLUMNS = 4
PLANE_PIXELS = 132
"""Edge of the square that a slice is fitted into."""
TILE_INCHES = (2.7, 1.3)
LINE_INCHES = 0.16
HISTOGRAM_INCHES = 1.35
LEGEND_CLASSES = 24
"""Number of classes up to which there is a legend: more colours could not be told apart."""
DPI = 100
ALARM = "#d62728"


@dataclass(frozen=True)
class Plane:
    """One slice: (horizontal, vertical) with the patient's left, and what is behind or below, at index 0."""

    image: np.ndarray
    spacing: tuple[float, float]
    """Pixel size in mm."""
    label: np.ndarray | None = None


@dataclass(frozen=True)
class Tile:
    """One case on the sheet."""

    case: str
    planes: tuple[Plane, ...]
    """Coronal and axial planes; empty where the case cannot be read."""
    window: tuple[float, float] = (0.0, 1.0)
    """Grey values shown as black and white."""
    alarms: tuple[str, ...] = ()
    """Suspicions about the case."""


@dataclass(frozen=True)
class Distribution:
    """Distribution of the intensities of one channel over all cases."""

    channel: str
    edges: Sequence[float]
    voxels: Sequence[float]


def contact_sheet(
    tiles: Sequence[Tile],
    distributions: Sequence[Distribution],
    class_names: Mapping[int, str],
    caption: str,
    path: Path,
) -> None:
    """Write the sheet as PNG: the patient's right on the viewer's left, head and front up, voxels in true proportion.

    Raises:
        OSError: the file cannot be written.
    """
    columns = min(COLUMNS, max(len(tiles), 2))
    rows = math.ceil(len(tiles) / columns)
    titles = LINE_INCHES * (2.4 if any(tile.alarms for tile in tiles) else 1.4)
    width, row_height = columns * TILE_INCHES[0], TILE_INCHES[1] + titles
    shown = _shown(tiles, class_names)
    per_line = max(1, int(width / 1.7))
    legend = 1.2 * LINE_INCHES * math.ceil(len(shown) / per_line) if len(shown) <= LEGEND_CLASSES else 0.0
    lines = textwrap.wrap(caption, int(width * 14))
    foot = LINE_INCHES * (len(lines) + 1) + legend
    total = rows * row_height + HISTOGRAM_INCHES + foot
    figure = Figure(figsize=(width, total), dpi=DPI, facecolor="white")
    colours = class_colours(class_names)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        left, bottom = column / columns, 1 - (row + 1) * row_height / total
        axes = figure.add_axes((left + 0.004, bottom, 1 / columns - 0.008, TILE_INCHES[1] / total))
        _draw(axes, tile, colours)
    for index, distribution in enumerate(distributions):
        share = width / len(distributions)
        inches = (share * index + 0.5, foot + 0.3, share - 0.7, HISTOGRAM_INCHES - 0.6)
        box = (inches[0] / width, inches[1] / total, inches[2] / width, inches[3] / total)
        _histogram(figure.add_axes(box), distribution)
    if legend:
        figure.legend(
            handles=[Patch(facecolor=colours[c], label=class_names[c]) for c in shown],
            loc="lower center",
            bbox_to_anchor=(0.5, LINE_INCHES * (len(lines) + 0.7) / total),
            ncols=per_line,
            frameon=False,
            fontsize=8,
            handlelength=1.2,
            borderpad=0,
        )
    figure.text(0.5, 0.08 / total, "\n".join(lines), ha="center", va="bottom", fontsize=7.5, color="0.3")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _shown(tiles: Sequence[Tile], class_names: Mapping[int, str]) -> list[int]:
    labels = [plane.label for tile in tiles for plane in tile.planes if plane.label is not None]
    present = set[int]().union(*(np.unique(label).tolist() for label in labels))
    return [c for c in class_names if c in present]


def _draw(axes: Axes, tile: Tile, colours: Mapping[int, tuple[float, float, float]]) -> None:
    canvas = np.zeros((PLANE_PIXELS, 2 * PLANE_PIXELS, 3))
    for index, picture in enumerate(_pictures(tile, colours)):
        height, width = picture.shape[:2]
        top, left = (PLANE_PIXELS - height) // 2, index * PLANE_PIXELS + (PLANE_PIXELS - width) // 2
        canvas[top : top + height, left : left + width] = picture
    axes.imshow(canvas, interpolation="nearest", aspect="equal")
    axes.set_anchor("N")
    axes.set_axis_off()
    if not tile.planes:
        axes.text(0.5, 0.5, "cannot be read", transform=axes.transAxes, ha="center", va="center", color="0.6")
    title = _shortened(tile.case)
    if tile.alarms:
        title += "\n" + _shortened(", ".join(dict.fromkeys(tile.alarms)))
        frame = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=ALARM, linewidth=3)
        axes.add_patch(frame)
    colour, weight = (ALARM, "bold") if tile.alarms else ("black", "normal")
    axes.set_title(title, fontsize=7.5, pad=3, color=colour, fontweight=weight, loc="left")


def _pictures(tile: Tile, colours: Mapping[int, tuple[float, float, float]]) -> list[np.ndarray]:
    """Render each plane as RGB (rows, columns, 3), as large as fits its square."""
    low, high = tile.window
    pictures = []
    for plane in tile.planes:
        voxels = list(zip(plane.image.shape, plane.spacing, strict=True))
        scale = PLANE_PIXELS / max(n * mm for n, mm in voxels)
        grid = [_centres(n, mm * scale) for n, mm in voxels]
        where = np.meshgrid(*grid, indexing="ij")
        grey = ndimage.map_coordinates(plane.image.astype(np.float32), where, order=1, mode="nearest")
        picture = np.repeat(np.clip((grey - low) / max(high - low, 1e-6), 0, 1)[..., None], 3, axis=2)
        if plane.label is not None:
            label = ndimage.map_coordinates(plane.label, where, order=0, mode="nearest")
            for c in np.unique(label[label > 0]).tolist():
                inside = label == c
                picture[inside] = 0.5 * picture[inside] + 0.5 * np.array(colours.get(c, (1.0, 1.0, 1.0)))
        pictures.append(picture[::-1, ::-1].transpose(1, 0, 2))
    return pictures


def _centres(voxels: int, pixels_per_voxel: float) -> np.ndarray:
    """Return the pixels' centres along an axis, in voxels."""
    pixels = min(PLANE_PIXELS, max(1, round(voxels * pixels_per_voxel)))
    return (np.arange(pixels) + 0.5) * voxels / pixels - 0.5


def _histogram(axes: Axes, distribution: Distribution) -> None:
    axes.stairs(distribution.voxels, distribution.edges, fill=True, color="0.5")
    axes.set_yscale("log")
    axes.set_xlim(distribution.edges[0], distribution.edges[-1])
    axes.set_title(f"intensities of {distribution.channel}, voxels of all cases", fontsize=8, pad=3)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _shortened(text: str, characters: int = 44) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
