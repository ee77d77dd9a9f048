"""Which cases, which slices and which places the figures of predictions show."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from anatomask.data.resampling import resampled_affine
from anatomask.errors import UserError
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.reports.figures import OverlayRow, Panel, overlay_figure, write_figure
from anatomask.reports.overlays import _image_slice, largest_difference
from anatomask.reports.predictions import CaseLabels, median_and_worst

SHAPE = (24, 30, 9)


def run(scores: dict[str, float]) -> EvaluatedRun:
    return EvaluatedRun(Path("run"), {}, scores)


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_the_median_and_the_worst_case_are_those_of_the_runs_mean(scores: dict[str, tuple[float, float]]) -> None:
    first, second = (run({case: pair[number] for case, pair in scores.items()}) for number in (0, 1))
    chosen = median_and_worst([first, run({**second.scores, "another": 0.0})])
    means = {case: sum(pair) for case, pair in scores.items()}
    assert means[chosen[-1]] == min(means.values())
    assert len(chosen) == (2 if len(means) > 1 else 1)
    better = sum(mean > means[chosen[0]] for mean in means.values())
    worse = sum(mean < means[chosen[0]] for mean in means.values())
    assert better <= (len(means) - 1) / 2 and worse <= len(means) / 2


def test_runs_without_a_common_case_are_told() -> None:
    with pytest.raises(UserError, match="no evaluated case in common"):
        median_and_worst([run({"a": 1.0}), run({"b": 1.0})])


def test_the_arrow_points_to_where_predictions_differ_most() -> None:
    truth = np.zeros(SHAPE, np.uint8)
    truth[2:8, 2:8, 1] = 1
    first, second = truth.copy(), truth.copy()
    first[10:15, 20:25, 6] = 2  # 25 voxels, dense
    second[2:4, 2:4, 6] = 1  # four in the same slice
    second[:, 0, 3] = 1  # 24 voxels in a line
    index, target = largest_difference(CaseLabels("one", truth, [first, second, truth], np.eye(4)))
    assert index == 6 and target is not None and np.allclose(target, (12, 22), atol=1)
    index, target = largest_difference(CaseLabels("one", truth, [truth, truth], np.eye(4)))
    assert (index, target) == (1, None)


def drawn(figure: Figure, path: Path) -> np.ndarray:
    write_figure(figure, path)
    return matplotlib.image.imread(path)[..., :3]


@pytest.mark.parametrize("target", [(12.0, 40.0), (48.0, 10.0)])
def test_the_arrow_ends_at_its_target_in_every_panel(target: tuple[float, float], tmp_path: Path) -> None:
    shape = (60, 50)
    image, label = np.full(shape, 40, np.int16), np.ones(shape, np.uint8)
    panels = [Panel(name, "", label) for name in ("Ground truth", "one")]
    row = OverlayRow("case", image, (1.0, 1.0), panels)
    plain = drawn(overlay_figure([row], {1: "liver"}, "."), tmp_path / "plain.png")
    arrows = drawn(
        overlay_figure([OverlayRow("case", image, (1.0, 1.0), panels, target=target)], {1: "liver"}, "."),
        tmp_path / "arrow.png",
    )
    changed = np.abs(arrows - plain).max(axis=-1) > 0.2
    for panel in np.array_split(changed, 2, axis=1):
        rows, columns = np.nonzero(panel)
        assert len(rows) > 20
        x = (shape[0] - target[0] - 0.5) / shape[0] * panel.shape[1]
        reach = np.abs(columns - x)
        assert reach.min() < 0.08 * panel.shape[1]  # the head is beside it
        tip = columns[reach.argmin()]
        assert tip in (columns.min(), columns.max())


def test_a_name_with_dollars_is_no_formula(tmp_path: Path) -> None:
    label = np.ones((30, 30), np.uint8)
    row = OverlayRow("a $\\frac{$ b", np.zeros((30, 30), np.int16), (1.0, 1.0), [Panel("$\\x$", "", label)])
    assert drawn(overlay_figure([row], {1: "$_{$"}, "$^$"), tmp_path / "figure.png").size


@pytest.mark.parametrize("index", [0, 8])
def test_the_outermost_slices_of_a_coarsely_prepared_scan_are_shown(index: int) -> None:
    affine, coarse = np.eye(4), (8, 10, 3)
    voxels = np.full((1, *coarse), 60.0)
    voxels[:, :, :, 1] = -1000.0
    record = SimpleNamespace(affine=resampled_affine(affine, SHAPE, coarse))
    dataset: Any = SimpleNamespace(read_volume=lambda case, label: (voxels, None), records={"one": record})
    labels = CaseLabels("one", np.zeros(SHAPE, np.uint8), (), affine)
    assert (_image_slice(dataset, labels, index) == 60).all()
