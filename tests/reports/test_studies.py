"""Figure of a sweep's study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest

from anatomask.errors import UserError
from anatomask.reports.studies import STUDY_FIGURE, Trials, study_figure, study_png


def study_of(score: Callable[[optuna.Trial], float], trials: int) -> optuna.Study:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(score, n_trials=trials, catch=(ZeroDivisionError,))
    return study


def by_ratio(trial: optuna.Trial) -> float:
    ratio = trial.suggest_float("method.mask_ratio", 0.4, 0.9)
    trial.suggest_float("method.r0", 0, 1)
    trial.suggest_categorical("method.decoder", ["hier_$x$", "simple"])
    trial.suggest_categorical("method.patch", [16])
    return 0.8 - (ratio - 0.6) ** 2


def test_the_field_that_decides_is_the_most_important() -> None:
    trials = Trials.of(study_of(by_ratio, 40))
    assert trials.fields == list(trials.importance)[: len(trials.fields)] and trials.fields[0] == "method.mask_ratio"
    assert "method.patch" not in trials.fields  # it did not vary
    figure = study_figure(trials)
    assert figure is not None
    bars, lines, *slices = figure.axes
    assert next(label.get_text() for label in bars.get_yticklabels()) == "mask ratio"
    assert len(lines.get_lines()) == 40 + 4  # a line per trial, and three fields with the score
    shown = slices[0].collections[0].get_offsets()
    points = [(point["method.mask_ratio"], dsc) for point, dsc in zip(trials.points, trials.dsc, strict=True)]
    assert np.allclose(shown, points)
    figure.canvas.draw()


def test_the_best_trial_is_drawn_last_and_thick() -> None:
    trials = Trials([{"a": 1, "b": "x"}, {"a": 3, "b": "y"}, {"a": 2, "b": "x"}], np.array([50.0, 80.0, 60.0]), {})
    figure = study_figure(trials)
    assert figure is not None
    best = [line for line in figure.axes[0].get_lines() if line.get_linewidth() > 2]
    assert [np.asarray(line.get_ydata()).tolist() for line in best] == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("trials", [1, 2, 3, 12])
@pytest.mark.parametrize("same", [True, False])
def test_few_trials_are_drawn_as_far_as_they_tell(trials: int, same: bool) -> None:
    found = Trials.of(study_of(lambda trial: 0.5 + 0 * by_ratio(trial) if same else by_ratio(trial), trials))
    figure = study_figure(found)
    assert (figure is None) == (trials == 1)
    if figure is not None:
        figure.canvas.draw()


def test_failed_trials_and_those_of_other_fields_are_no_reason_to_fail() -> None:
    def sometimes(trial: optuna.Trial) -> float:
        value = trial.suggest_int("a", 0, 9)
        extra = trial.suggest_float("b", 0, 1) if value > 4 else 0.0
        return value / (trial.number % 3) + extra

    trials = Trials.of(study_of(sometimes, 12))
    assert len(trials.points) == 8
    figure = study_figure(trials)
    assert figure is not None
    figure.canvas.draw()
    none = Trials.of(study_of(lambda trial: trial.suggest_int("a", 0, 9) / 0, 3))
    assert study_figure(none) is None


def test_a_sweep_without_a_figure_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"study.png is missing; run `anatomask sweep --config .*config.yaml`, which draws it"
    ):
        study_png(str(tmp_path))
    (tmp_path / STUDY_FIGURE).write_bytes(b"picture")
    assert study_png(str(tmp_path)) == b"picture"
