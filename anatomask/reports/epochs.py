"""Figure 1e of the paper: the DSC of finetuned networks over the epochs of their pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anatomask.reports.comparisons import SCRATCH
from anatomask.reports.provenance import Training, start_of
from anatomask.reports.seeds import Arm

Points = Mapping[float, Sequence[float]]
"""Mean DSC of each run in percent, by the number of epochs of its pretraining."""
RANDOM_MASKS = "SparK"
DPI = 130


def epochs_of(origins: Sequence[Training]) -> float | None:
    """Return for how many epochs the weights were pretrained from which a run comes; None where it is not known.

    Args:
        origins: trainings that the run comes from, the first first.
    """
    pretraining = next((one for one in origins if one.verb == "pretrain"), None)
    if pretraining is None:
        return None
    following = next((one for one in origins if one.verb == "finetune"), None)
    training = pretraining.settings.get("training")
    epochs = training.get("epochs") if isinstance(training, Mapping) else None
    last = pretraining.measured.updates
    if not isinstance(training, Mapping) or not isinstance(epochs, int) or not last:
        return None
    steps = training.get("steps_per_epoch")
    step = start_of(following)[1] if following else None
    return (last if step is None else step) / (steps if isinstance(steps, int) else last / epochs)


def is_intermediate(origins: Sequence[Training]) -> bool:
    """Return whether a run comes from a checkpoint before the end of its pretraining."""
    pretraining = next((one for one in origins if one.verb == "pretrain"), None)
    following = next((one for one in origins if one.verb == "finetune"), None)
    if pretraining is None or following is None:
        return False
    return start_of(following)[1] not in (None, pretraining.measured.updates)


def points_by_method(arms: Sequence[Arm], origins: Sequence[Sequence[Training]]) -> dict[str, Points]:
    """Gather the points of each method of one data set; those from scratch are at 0 epochs.

    A network or a share of labels, where runs differ in it, is part of the method's name. Methods that were pretrained
    for one number of epochs alone are left out, and there are none from scratch that no other is like.
    """
    known = ({arm[0].summary.get(name) for arm in arms} for name in ("network", "train_fraction"))
    networks, shares = (values - {None} for values in known)
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for arm, trainings in zip(arms, origins, strict=True):
        summary = arm[0].summary
        method = str(summary["method"]) + (f" via {summary['via']}" if summary.get("via") else "")
        differing = [str(summary["network"])] if len(networks) > 1 and summary.get("network") else []
        if len(shares) > 1 and summary.get("train_fraction") is not None:
            differing.append(f"{100 * summary['train_fraction']:.3g} % of labels")
        epochs = 0.0 if method == SCRATCH else epochs_of(trainings)
        if epochs is not None:
            means = [100 * float(np.mean(list(run.scores.values()))) for run in arm if run.scores]
            of_method = found.setdefault((method, "".join(f", {one}" for one in differing)), {})
            of_method.setdefault(round(epochs, 3), []).extend(means)
    curves = {names: points for names, points in found.items() if len(points) > 1}
    alike = {differing for _, differing in curves}
    levels = {names: found[names] for names in found if names[0] == SCRATCH and names[1] in alike}
    return {method + differing: points for (method, differing), points in (curves | levels).items()}


@mpl.rc_context({"text.parse_math": False})  # names are shown as they are
def epochs_figure(points: Mapping[str, Points], dataset: str) -> Figure:
    """Draw a line per method through the means over runs, a band of their SD, and a dot per run."""
    figure = Figure(figsize=(6.4, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    levels = sorted(method for method in points if len(points[method]) == 1)  # from scratch
    for number, method in enumerate(sorted(points.keys() - {*levels})):
        title = f"random masks ({method})" if method.startswith(RANDOM_MASKS) else method
        _curve(axes, points[method], title, colormaps["tab10"](number % 10))
    for number, method in enumerate(levels):
        _level(axes, points[method][0.0], method, f"{0.45 * 0.6**number:.2f}")
    axes.set_xlabel("pretraining epochs")
    axes.set_ylabel(f"mean DSC [%], {dataset}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _curve(axes: Axes, points: Points, title: str, colour: str | tuple[float, float, float, float]) -> None:
    epochs = sorted(points)
    means = np.array([np.mean(points[epoch]) for epoch in epochs])
    sds = np.array([np.std(points[epoch], ddof=1) if len(points[epoch]) > 1 else 0.0 for epoch in epochs])
    axes.plot(epochs, means, color=colour, marker="o", markersize=4, label=title)
    axes.fill_between(epochs, means - sds, means + sds, color=colour, alpha=0.2, linewidth=0)
    for epoch in epochs:
        axes.plot([epoch] * len(points[epoch]), points[epoch], ".", color=colour, alpha=0.5, markersize=5)


def _level(axes: Axes, values: Sequence[float], title: str, colour: str | tuple[float, float, float, float]) -> None:
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    axes.axhline(mean, color=colour, linestyle="--", label=title)
    axes.axhspan(mean - sd, mean + sd, color=colour, alpha=0.15, linewidth=0)
