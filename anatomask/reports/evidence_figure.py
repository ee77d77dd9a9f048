"""Figure of an experiment: DSC over updates for each arm with bands, and DSC over the number of labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from anatomask.evaluation.statistics import mean_curve
from anatomask.files import replacing
from anatomask.reports.evidence import SHARE, Arms, reference_score

PANEL_INCHES = (4.8, 3.6)
DPI = 150
REFERENCE_COLOUR = "0.35"


def evidence_figure(
    arms: Arms, path: Path, *, by_labels: Mapping[int, Arms] | None = None, reference: str = "scratch"
) -> None:
    """Write the figure as PNG: mean over seeds, and a band of ± SD over seeds where there are two or more.

    The left panel shows the learning curves of `arms`, with a line at `SHARE` of the reference arm's final DSC. The
    right one, if `by_labels` gives the arms at several numbers of training cases, shows the DSC of finished runs.

    Raises:
        ValueError: No run of `arms` has a curve.
    """
    if not any(run.curve for runs in arms.values() for run in runs):
        raise ValueError("no run has a learning curve to draw")
    names = dict.fromkeys([*arms, *(name for at_label in (by_labels or {}).values() for name in at_label)])
    colours = _colours(list(names), reference)
    panels = 2 if by_labels else 1
    figure = Figure(figsize=(PANEL_INCHES[0] * panels, PANEL_INCHES[1]), dpi=DPI, layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels))
    _draw_curves(axes[0], arms, colours, reference)
    if by_labels:
        _draw_labels(axes[1], by_labels, colours)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_curves(axes: Axes, arms: Arms, colours: Mapping[str, tuple | str], reference: str) -> None:
    for name, runs in arms.items():
        curves = [run.curve for run in runs if run.curve]
        if not curves:
            continue
        band = mean_curve(curves)
        label = f"{name} ({len(curves)} seed{'s' if len(curves) > 1 else ''})"
        _draw_band(axes, band.updates, band.mean, band.sd, colours[name], label)
    goal = reference_score(arms, reference)
    if goal is not None:
        axes.axhline(100 * SHARE * goal, color=REFERENCE_COLOUR, linewidth=0.8, linestyle=":", zorder=1)
        axes.annotate(
            f"{100 * SHARE:g} % of {reference}'s end",
            (0, 100 * SHARE * goal),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7.5,
            color=REFERENCE_COLOUR,
        )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _label(axes, "Updates of finetuning")


def _draw_labels(axes: Axes, by_labels: Mapping[int, Arms], colours: Mapping[str, tuple | str]) -> None:
    counts = sorted(by_labels)
    for name, colour in colours.items():
        points = []
        for count in counts:
            means = [float(np.mean(list(run.dsc.values()))) for run in by_labels[count].get(name, ())]
            if means:
                points.append((count, np.mean(means), np.std(means, ddof=1) if len(means) > 1 else 0.0))
        if points:
            labels, mean, sd = np.array(points, float).T
            _draw_band(axes, labels, mean, sd, colour, name)
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    _label(axes, "Labelled training cases")


def _draw_band(axes: Axes, x: np.ndarray, mean: np.ndarray, sd: np.ndarray, colour: tuple | str, label: str) -> None:
    axes.plot(x, 100 * mean, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=label)
    axes.fill_between(x, 100 * (mean - sd), 100 * (mean + sd), color=colour, alpha=0.16, linewidth=0)


def _label(axes: Axes, x_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel("DSC [%], mean ± SD over seeds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _colours(names: list[str], reference: str) -> dict[str, tuple | str]:
    """Choose grey for the reference, and a hue for each other arm."""
    others = [name for name in names if name != reference]
    return {reference: REFERENCE_COLOUR} | {name: colormaps["tab10"](hue)[:3] for hue, name in enumerate(others)}
