"""Figure 1e of the paper: scores over the epochs of the pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anatomask.reports.epochs import epochs_figure, epochs_of, is_intermediate, points_by_method
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.reports.provenance import lineage
from anatomask.reports.seeds import Arm
from tests.reports.test_provenance import write_training


def pretrained(folder: Path, epochs: int, updates: int, **training: Any) -> Path:
    settings = {"method": {"name": "anatomask"}, "training": {"epochs": epochs, "batch_size": 4, **training}}
    return write_training(folder, settings, updates)


def arm(method: str, *dsc: float, **changes: Any) -> Arm:
    summary = {"method": method, **changes}
    return tuple(EvaluatedRun(Path("run"), summary, {"a": value - 0.1, "b": value + 0.1}) for value in dsc)


@pytest.mark.parametrize(
    ("prefix", "checkpoint", "epochs"),
    [
        ("", "", 8),
        ("encoder:", "", 8),
        ("", "checkpoints/step_00000020", 4),
        ("permuted:", "checkpoints/step_00000040", 8),
    ],
)
@pytest.mark.parametrize("per_epoch", [5, None])
def test_epochs_are_those_of_the_checkpoint(
    prefix: str, checkpoint: str, epochs: int, per_epoch: int | None, tmp_path: Path
) -> None:
    start = pretrained(tmp_path / "pre", 8, 40, steps_per_epoch=per_epoch)
    first = write_training(tmp_path / "first", {"init": f"{prefix}{start / checkpoint}"})
    second = write_training(tmp_path / "second", {"init": str(first)})
    assert epochs_of(lineage(first)) == epochs_of(lineage(second)) == epochs
    assert is_intermediate(lineage(first)) == is_intermediate(lineage(second)) == (epochs < 8)
    assert not is_intermediate(lineage(start))
    assert [one.name for one in lineage(second)] == ["pre", "first", "second"]


def test_without_a_pretraining_no_epochs_are_known(tmp_path: Path) -> None:
    assert epochs_of(lineage(write_training(tmp_path / "a", {"init": "scratch"}))) is None
    assert epochs_of(lineage(write_training(tmp_path / "b", {"init": str(tmp_path / "weights")}))) is None
    unfinished = write_training(tmp_path / "c", {"method": {}, "training": {"batch_size": 4}})
    assert epochs_of(lineage(write_training(tmp_path / "d", {"init": str(unfinished)}))) is None


def test_a_line_per_method_a_band_and_a_dot_per_run(tmp_path: Path) -> None:
    short, long = pretrained(tmp_path / "short", 2, 10), pretrained(tmp_path / "long", 6, 30)
    arms = [
        arm("AnatoMask", 0.5, 0.6),
        arm("AnatoMask", 0.8),
        arm("SparK", 0.4),
        arm("SparK", 0.7),
        arm("scratch", 0.3),
    ]
    origins = [lineage(short), lineage(long), lineage(short), lineage(long), []]
    points = points_by_method(arms, origins)
    assert points.keys() == {"AnatoMask", "SparK", "scratch"}
    assert np.allclose([*points["AnatoMask"][2.0], *points["AnatoMask"][6.0], *points["SparK"][6.0]], [50, 60, 80, 70])
    figure = epochs_figure(points, "cost $x_{$")
    (axes,) = figure.axes
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}
    assert np.allclose(lines["AnatoMask"], [[2, 55], [6, 80]])
    assert np.allclose(lines["random masks (SparK)"], [[2, 40], [6, 70]])
    assert np.allclose(lines["scratch"][:, 1], 30)
    band = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert np.isclose(band[:, 1].max(), 80) and np.isclose(band[:, 1].min(), 55 - np.std([50, 60], ddof=1))
    figure.canvas.draw()


def test_one_length_of_pretraining_is_no_curve(tmp_path: Path) -> None:
    start = lineage(pretrained(tmp_path / "pre", 8, 40))
    assert points_by_method([arm("AnatoMask", 0.5), arm("scratch", 0.4)], [start, []]) == {}


def test_networks_and_shares_of_labels_in_which_runs_differ_are_lines_of_their_own(tmp_path: Path) -> None:
    """Of the large network there is one length alone, so it has no line, nor has its twin from scratch."""
    short, long = (lineage(pretrained(tmp_path / name, epochs, epochs)) for name, epochs in (("short", 2), ("long", 6)))
    kinds: list[dict[str, Any]] = [
        {"network": "B", "train_fraction": 1.0},
        {"network": "B", "train_fraction": 0.1},
        {"network": "L", "train_fraction": 1.0},
    ]
    arms, origins = [], []
    for number, kind in enumerate(kinds):
        lengths = (short, long, []) if kind["network"] == "B" else (long, [])
        for came in lengths:
            arms.append(arm("SparK" if came else "scratch", 0.5 + 0.1 * number, **kind))
            origins.append(came)
    points = points_by_method(arms, origins)
    assert {name: {epochs: len(values) for epochs, values in of.items()} for name, of in points.items()} == {
        "SparK, B, 100 % of labels": {2: 1, 6: 1},
        "SparK, B, 10 % of labels": {2: 1, 6: 1},
        "scratch, B, 100 % of labels": {0: 1},
        "scratch, B, 10 % of labels": {0: 1},
    }
    (axes,) = epochs_figure(points, "data").axes
    levels = {str(line.get_label()): line.get_ydata() for line in axes.get_lines()}
    assert np.allclose(levels["random masks (SparK, B, 10 % of labels)"], 60)
    assert np.allclose(levels["scratch, B, 100 % of labels"], 50)
