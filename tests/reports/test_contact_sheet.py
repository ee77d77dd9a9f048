from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from anatomask.reports.contact_sheet import Distribution, Plane, Tile, contact_sheet
from anatomask.reports.figures import class_colours

NAMES = {1: "liver", 2: "spleen"}
HISTOGRAM = Distribution("CT", np.linspace(-1000, 1000, 9).tolist(), [100, 1, 2, 3, 4, 5, 6, 7])
RED = np.array([0xD6, 0x27, 0x28]) / 255


def draw(tmp_path: Path, tiles: list[Tile]) -> np.ndarray:
    path = tmp_path / "new" / "sheet.png"
    contact_sheet(tiles, [HISTOGRAM], NAMES, "What is shown.", path)
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]
    return matplotlib.image.imread(path)[..., :3]


def pixels(picture: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(row, column) of the upper part, above the histogram and the legend, that have the colour."""
    top = picture[: int(0.45 * len(picture))]
    return np.argwhere(np.abs(top - colour).max(axis=-1) < 0.03)


def on_white(c: int) -> np.ndarray:
    """A class over a white image."""
    return 0.5 + 0.5 * np.array(class_colours(NAMES)[c])


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 3.0), (2.5, 1.0)])
def test_proportions_are_those_of_the_body_with_its_right_on_the_left(
    spacing: tuple[float, float], tmp_path: Path
) -> None:
    shape = (int(120 / spacing[0]), int(90 / spacing[1]))
    right, up = np.meshgrid(*(np.arange(n) * mm for n, mm in zip(shape, spacing, strict=True)), indexing="ij")
    label = np.zeros(shape, np.uint8)
    label[(right >= 75) & (right < 105) & (up >= 45) & (up < 75)] = 1  # a square of 30 mm, right and above
    label[(right < 30) & (up < 30)] = 2
    plane = Plane(np.ones(shape), spacing, label)
    picture = draw(tmp_path, [Tile("case", (plane, plane)), Tile("dark", ())])
    liver, spleen = pixels(picture, on_white(1)), pixels(picture, on_white(2))
    coronal = liver[:, 1] < picture.shape[1] / 4  # the first tile's first slice
    height, width = np.ptp(liver[coronal], axis=0) + 1
    assert height / width == pytest.approx(1, abs=0.1)
    assert liver[coronal].mean(axis=0)[0] < spleen.mean(axis=0)[0]
    assert liver[coronal].mean(axis=0)[1] < spleen[spleen[:, 1] < picture.shape[1] / 4].mean(axis=0)[1]


def test_a_suspicious_case_is_framed_and_no_other(tmp_path: Path) -> None:
    plane = Plane(np.ones((40, 40)), (1.0, 1.0))
    quiet = [Tile(name, (plane, plane)) for name in "abcd"]
    assert not len(pixels(draw(tmp_path, quiet), RED))
    picture = draw(tmp_path, [quiet[0], Tile("b", (), alarms=("image refused",)), *quiet[2:]])
    columns = pixels(picture, RED)[:, 1] / picture.shape[1]
    assert 0.25 <= columns.min() < 0.26 and 0.49 < columns.max() <= 0.5
