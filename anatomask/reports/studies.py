"""Figure of a sweep's study: importance of each field, slices, and parallel coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from anatomask.errors import UserError
from anatomask.runs.belongings import CONFIG

STUDY_FIGURE = "study.png"
"""Name of the figure in the folder of a sweep."""
FEWEST = 10
"""Number of trials from which on importance is estimated."""
COLOURS = colormaps["viridis"]
DPI = 110


@dataclass(frozen=True)
class Trials:
    """Completed trials of a sweep."""

    points: Sequence[Mapping[str, Any]]
    """Values of the fields of each trial."""
    dsc: np.ndarray
    """Mean DSC of each trial `(N,)`, percent."""
    importance: Mapping[str, float]
    """Share of each field in the spread of the DSC, the largest first; empty where too few trials tell."""

    @classmethod
    def of(cls, study: optuna.Study) -> Trials:
        """Read the completed trials of a study."""
        complete = study.get_trials(states=(TrialState.COMPLETE,))
        scores = [trial.value for trial in complete if trial.value is not None]
        return cls([trial.params for trial in complete], 100 * np.array(scores), _importance(study, scores))

    @property
    def fields(self) -> list[str]:
        """List the fields that took several values, the most important first."""
        names = dict.fromkeys([*self.importance, *(name for point in self.points for name in point)])
        return [name for name in names if len({str(point.get(name)) for point in self.points}) > 1]


@mpl.rc_context({"text.parse_math": False})  # values are shown as they are
def study_figure(trials: Trials) -> Figure | None:
    """Draw importance and parallel coordinates above a slice for each field; None where no field was varied."""
    fields = trials.fields
    if not fields:
        return None
    columns = min(len(fields), 4)
    rows = -(-len(fields) // columns)
    figure = Figure(
        figsize=(max(9.0, 3.1 * columns), 3.6 * (len(fields) > 1) + 2.7 * rows), dpi=DPI, layout="constrained"
    )
    below: Any = figure
    if len(fields) > 1:
        (above,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.6, 2.7 * rows))
        _above(above, trials, fields)
    cells = below.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, name in zip(cells, fields, strict=False):
        _slice(axes, trials, name)
    for axes in cells[len(fields) :]:
        axes.set_axis_off()
    for axes in cells[::columns]:
        axes.set_ylabel("mean DSC [%]")
    return figure


def study_png(folder: str) -> bytes:
    """Read the figure in the folder of a sweep.

    Raises:
        UserError: there is none.
    """
    path = Path(folder) / STUDY_FIGURE
    if not path.is_file():
        raise UserError(
            f"{path} is missing; run `anatomask sweep --config {folder}/{CONFIG}`, which draws it at its end where its "
            "trials differ in a field"
        )
    return path.read_bytes()


def _importance(study: optuna.Study, scores: Sequence[float]) -> dict[str, float]:
    """Estimate importance by PED-ANOVA (Watanabe et al., IJCAI 2023); nothing for few trials, or equal ones."""
    if len(scores) < FEWEST or len(set(scores)) == 1:
        return {}
    try:
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError):  # the trials share no field
        return {}
    return {name: value for name, value in found.items() if np.isfinite(value)} if sum(found.values()) > 0 else {}


def _above(figure: SubFigure, trials: Trials, fields: Sequence[str]) -> None:
    """Draw importance, where it is known, and parallel coordinates side by side."""
    if trials.importance:
        bars, lines = figure.subplots(1, 2, width_ratios=(1, 2))
        _importance_bars(bars, trials)
    else:
        lines = figure.subplots()
    _parallel_coordinates(lines, trials, fields)


def _importance_bars(axes: Axes, trials: Trials) -> None:
    names = list(trials.importance)
    axes.barh([_short(name) for name in names], list(trials.importance.values()), color="#3b6ea5", height=0.6)
    axes.invert_yaxis()
    axes.set_xlabel("importance (PED-ANOVA)")
    axes.spines[["top", "right"]].set_visible(False)


def _parallel_coordinates(axes: Axes, trials: Trials, fields: Sequence[str]) -> None:
    """Draw a line per trial through its values, the best last and thick."""
    places, labels = zip(*(_scaled([point.get(name) for point in trials.points]) for name in fields), strict=True)
    scale = Normalize(trials.dsc.min(), trials.dsc.max())
    heights = np.array([*places, scale(trials.dsc) if np.ptp(trials.dsc) else np.full(len(trials.dsc), 0.5)])
    across = np.arange(len(heights))
    for number in np.argsort(trials.dsc, kind="stable"):
        best = trials.dsc[number] == trials.dsc.max()
        axes.plot(across, heights[:, number], color=COLOURS(scale(trials.dsc[number])), linewidth=2.6 if best else 1.1)
    low, high = trials.dsc.min(), trials.dsc.max()
    ends = [*labels, [(0.0, f"{low:.1f}"), (1.0, f"{high:.1f}")] if high > low else [(0.5, f"{high:.1f}")]]
    for position, ticks in enumerate(ends):
        axes.axvline(position, color="0.6", linewidth=0.8, zorder=0)
        for height, text in ticks:
            axes.text(
                position + 0.03,
                height,
                text,
                fontsize=8,
                va="center",
                bbox={"color": "white", "alpha": 0.7, "pad": 0.5},
            )
    axes.set_xticks(across, [*map(_short, fields), "DSC [%]"])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(heights) - 0.6)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


def _slice(axes: Axes, trials: Trials, name: str) -> None:
    """Draw the DSC of each trial over its value of a field, coloured by the order of the trials."""
    values = [point.get(name) for point in trials.points]
    places, ticks = (values, []) if _numeric(values) else _scaled(values)
    order = np.arange(len(values))
    style: dict[str, Any] = {"cmap": "Blues", "vmin": -len(values), "edgecolors": "0.3", "linewidths": 0.4, "s": 28}
    axes.scatter(np.asarray(places, float), trials.dsc, c=order, **style)
    if ticks:
        axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
        axes.margins(x=0.25)
    axes.set_xlabel(_short(name))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _scaled(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Place values between 0 and 1: numbers by size, others side by side; with the texts of some places."""
    if _numeric(values):
        low, high = min(values), max(values)
        return [(value - low) / (high - low) for value in values], [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]
    texts = list(dict.fromkeys(sorted(map(str, values))))
    step = max(len(texts) - 1, 1)
    return [texts.index(str(value)) / step for value in values], [(n / step, text) for n, text in enumerate(texts)]


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _short(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ")
