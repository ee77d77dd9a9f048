"""Figures of numbers: the course of trainings, and the scores of cases."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from anatomask.reports.provenance import Training

AXES = {
    "pretrain": {"train/loss": "training loss", "val/loss": "loss on fixed scans"},
    "finetune": {"train/loss": "training loss", "val/dice": "validation Dice"},
}
"""Scalars that are drawn of a training, by its verb."""
TITLES = {"pretrain": "Pretrainings", "finetune": "Finetunings"}
LONGEST_NAME = 40
DPI = 110


def course_figures(trainings: Sequence[Training]) -> dict[str, Figure]:
    """Draw the course of all pretrainings and of all finetunings, by the title of the figure."""
    figures = {}
    for verb, scalars in AXES.items():
        members = [one for one in trainings if one.verb == verb]
        shown = [name for name in scalars if any(name in one.measured.curves for one in members)]
        if shown:
            figures[TITLES[verb]] = _course(members, {name: scalars[name] for name in shown})
    return figures


@mpl.rc_context({"text.parse_math": False})  # names are shown as they are
def _course(trainings: Sequence[Training], scalars: Mapping[str, str]) -> Figure:
    """Draw a line per training into an axes per scalar."""
    lines = -(-len(trainings) // 2)
    figure = Figure(figsize=(5.2 * len(scalars), 3.4 + 0.2 * lines), dpi=DPI, layout="constrained")
    for axes, (scalar, title) in zip(figure.subplots(1, len(scalars), squeeze=False)[0], scalars.items(), strict=True):
        for number, one in enumerate(trainings):
            if scalar in one.measured.curves:
                updates, values = one.measured.curves[scalar]
                marker = "." if len(updates) < 30 else ""
                axes.plot(updates, values, color=_colour(number), marker=marker, linewidth=1.3)
        axes.set_xlabel("updates")
        axes.set_ylabel(title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=_colour(number)) for number in range(len(trainings))]
    names = [textwrap.shorten(one.name, LONGEST_NAME, placeholder=" …") for one in trainings]
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure


@mpl.rc_context({"text.parse_math": False})
def cases_figure(scores: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Draw the score of each case, a row of dots per name, with a line at the mean; scores are fractions."""
    figure = Figure(figsize=(8.5, 1.2 + 0.42 * len(scores)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    generator = np.random.default_rng(0)
    for row, values in enumerate(scores.values()):
        percent = 100 * np.asarray(values)
        heights = row + generator.uniform(-0.18, 0.18, len(percent))
        axes.plot(percent, heights, "o", color=_colour(row), alpha=0.5, markersize=5, markeredgewidth=0)
        axes.plot([percent.mean()] * 2, [row - 0.32, row + 0.32], color=_colour(row), linewidth=2.5)
    axes.set_yticks(range(len(scores)), [textwrap.fill(name, LONGEST_NAME) for name in scores])
    axes.invert_yaxis()
    axes.set_xlabel(title)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def as_png(figure: Figure) -> bytes:
    """Encode a figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _colour(number: int) -> tuple[float, float, float]:
    red, green, blue, _ = colormaps["tab10"](number % 10)
    return red, green, blue
