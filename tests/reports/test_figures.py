from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.text import Text

from anatomask.data.slices import best_slice
from anatomask.reports.figures import OverlayRow, Panel, class_colours, overlay_figure, write_figure

NAMES = {1: "liver", 2: "spleen"}


def body(shape: tuple[int, int]) -> np.ndarray:
    image = np.full(shape, -1000, np.int16)
    image[4:-4, 4:-4] = 40
    return image


def draw(tmp_path: Path, rows: list[OverlayRow], names: dict[int, str] = NAMES) -> np.ndarray:
    path = tmp_path / "new" / "figure.png"
    write_figure(overlay_figure(rows, names, "What is shown."), path)
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]
    return matplotlib.image.imread(path)[..., :3]


def centre(picture: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    """Mean (row, column) of the outline in this colour, left out the legend at the bottom."""
    pixels = np.argwhere(np.abs(picture[: int(len(picture) * 0.8)] - np.asarray(colour)).max(axis=-1) < 0.05)
    assert len(pixels)
    return pixels.mean(axis=0)


def test_the_patients_right_is_on_the_viewers_left_and_anterior_is_up(tmp_path: Path) -> None:
    label = np.zeros((60, 50), np.uint8)
    label[44:52, 36:44] = 1  # right (high index in RAS), anterior
    label[10:18, 8:16] = 2  # left, posterior
    picture = draw(tmp_path, [OverlayRow("case", body(label.shape), (1.0, 1.0), [Panel("Ground truth", "", label)])])
    colours = class_colours(NAMES)
    liver, spleen = (centre(picture, colours[class_id]) for class_id in (1, 2))
    assert liver[1] < spleen[1]  # column
    assert liver[0] < spleen[0]  # row, from the top


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 3.0), (2.5, 1.0)])
def test_the_spacing_gives_the_aspect_ratio(tmp_path: Path, spacing: tuple[float, float]) -> None:
    """A square of 30 mm stays square, whatever the voxels."""
    right, anterior = spacing
    shape = (int(90 / right), int(90 / anterior))
    label = np.zeros(shape, np.uint8)
    label[int(30 / right) : int(60 / right), int(30 / anterior) : int(60 / anterior)] = 1
    picture = draw(tmp_path, [OverlayRow("case", body(shape), spacing, [Panel("Ground truth", "", label)])])
    outline = np.argwhere(np.abs(picture[: int(len(picture) * 0.8)] - class_colours(NAMES)[1]).max(axis=-1) < 0.1)
    height, width = np.ptp(outline, axis=0)
    assert height / width == pytest.approx(1, abs=0.08)


def test_a_wrong_prediction_is_seen_and_does_not_shrink_the_body(tmp_path: Path) -> None:
    truth = np.zeros((60, 60), np.uint8)
    truth[20:40, 20:40] = 1
    image = np.full((60, 60), -1000, np.int16)
    image[15:45, 15:45] = 40
    everywhere = np.full_like(truth, 2)
    sizes = []
    for prediction in (truth, everywhere):
        panels = [Panel("Ground truth", "", truth), Panel("net", "DSC 0.0 %", prediction)]
        sizes.append(draw(tmp_path, [OverlayRow("case", image, (1.0, 1.0), panels)]).shape)
    assert sizes[0][1] == sizes[1][1]
    assert abs(sizes[0][0] - sizes[1][0]) < 60  # a second line of the legend at most


def test_a_plain_scan_beside_the_truth_and_larger_letters(tmp_path: Path) -> None:
    label = np.zeros((60, 50), np.uint8)
    label[1:3, 30:38] = 1  # outside the body, so that the label widens what is shown
    panels = [Panel("Scan", "", None), Panel("Ground truth", "DSC 90.0 %", label)]
    row = OverlayRow("case", body(label.shape), (1.0, 1.0), panels)
    picture = draw(tmp_path, [row])
    seen = np.argwhere(np.abs(picture[: int(len(picture) * 0.8)] - class_colours(NAMES)[1]).max(axis=-1) < 0.05)
    assert len(seen) and seen[:, 1].min() > picture.shape[1] / 2
    assert draw(tmp_path, [replace(row, panels=panels[1:])]).shape[1] == pytest.approx(picture.shape[1] / 2, abs=1)
    plain, large = (overlay_figure([row], NAMES, "What is shown.", letters) for letters in (1.0, 1.65))
    assert large.get_figwidth() == plain.get_figwidth() and large.get_figheight() > plain.get_figheight()
    for one, other in zip(plain.findobj(Text), large.findobj(Text), strict=True):
        assert not one.get_text() or float(other.get_fontsize()) == pytest.approx(1.65 * float(one.get_fontsize()))


def test_many_classes_rows_and_an_empty_slice(tmp_path: Path) -> None:
    names = {class_id: f"structure {class_id}" for class_id in range(1, 105)}
    colours = list(class_colours(names).values())
    assert len(set(colours)) > 90
    full = np.zeros((60, 60), np.uint8)
    blocks = {1: (10, 10), 52: (10, 35), 104: (35, 20)}
    for class_id, (right, anterior) in blocks.items():
        full[right : right + 12, anterior : anterior + 12] = class_id
    rows = [
        OverlayRow("a", body((60, 60)), (1.0, 1.0), [Panel("Ground truth", "", full), Panel("x", "DSC 1.0 %", full)]),
        OverlayRow(
            "b", np.zeros((30, 40)), (1.0, 1.0), [Panel("", "", np.zeros((30, 40), np.uint8))] * 2, window=(0.0, 1.0)
        ),
    ]
    picture = draw(tmp_path, rows, names)
    assert len(picture) > len(draw(tmp_path, rows[:1], names))  # the empty slice has its own row
    slices = picture[: int(0.4 * len(picture)) : 2]  # without the legend
    for class_id in {*blocks, *range(5, 104, 10)}:
        colour = colours[class_id - 1]
        near = [other for other in blocks if np.abs(np.subtract(colours[other - 1], colour)).max() < 0.15]
        seen = (np.abs(slices - colour).max(axis=-1) < 0.02).sum()
        assert seen > 50 if class_id in blocks else near or seen == 0, names[class_id]


def test_the_slice_shows_every_class_near_its_fullest() -> None:
    label = np.zeros((20, 20, 10), np.uint8)
    label[0:10, 0:10, 0:4] = 1  # large, but alone
    label[0:9, 0:9, 4:8] = 1
    label[15:18, 15:18, 5] = 2
    assert best_slice(label) == 5
    assert best_slice(np.zeros((4, 4, 6), np.uint8)) == 3
