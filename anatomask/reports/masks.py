"""Figures 1 and 3 of the paper: organs, patch losses, a random mask and the self-mask of a pretrained run on a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from anatomask.api import self_mask
from anatomask.data.crops import pad_to
from anatomask.data.samples import centred_origin
from anatomask.data.scans import prepared_scan
from anatomask.data.shards import PreparedDataset
from anatomask.data.slices import best_slice
from anatomask.errors import UserError
from anatomask.masking import touched_patches
from anatomask.methods.masked import Picture
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.reports.figures import CT_WINDOW, class_colours
from anatomask.training.pictures import voxels
from anatomask.weights.files import network_of, read_source
from anatomask.weights.header import require_fields

EDGE = 128
"""Edge in voxels of the part of a scan that is shown, where the network takes it; a training's crop may be larger."""
MASKS = 8
"""Number of random masks over which patch losses are averaged."""
INCHES = 3.0
DPI = 130
HIDDEN = ListedColormap(["#8fa3b0"])
"""Colour of hidden patches."""
TITLES = ("Input and organs", "Patch loss", "Random mask", "Self-mask")


@dataclass(frozen=True)
class MaskedCase:
    """A part of a case, and what a pretrained run makes of it; all volumes in RAS axes."""

    case: str
    image: np.ndarray
    """First channel (R, A, S), as stored."""
    label: np.ndarray | None
    """Label map (R, A, S); None where the case has none."""
    window: tuple[float, float]
    spacing: tuple[float, float, float]
    picture: Picture

    @property
    def on_organs(self) -> tuple[float, float] | None:
        """Share of the hidden patches that touch an organ: of the random mask, and of the self-mask."""
        if self.label is None:
            return None
        organs = touched_patches(torch.from_numpy(self.label), self.picture.patch)
        masks = (self.picture.random_mask.flatten(), self.picture.self_mask.flatten())
        random, own = (float(organs[mask].float().mean()) for mask in masks)
        return random, own


def pretrained_header(run: str) -> dict[str, Any]:
    """Read the header of a pretrained run's last checkpoint.

    Raises:
        UserError: there is none, or it is not a pretraining's.
    """
    header = dict(read_source(run).header)
    if header.get("kind") != "pretraining":
        raise UserError(f"{run} holds no pretraining; name a run of `anatomask pretrain` in --pretrained")
    require_fields(header, run, "data", "patch_size")
    return header


def masked_cases(run: str, count: int) -> tuple[list[MaskedCase], PreparedDataset]:
    """Show cases of a pretrained run's data to its networks: those that it did not train on, with labels, first.

    Raises:
        UserError: the run was not pretrained by a masked method, or its data cannot be read.
    """
    header = pretrained_header(run)
    data = header["data"]
    dataset = PreparedDataset.open(data if isinstance(data, str) else data[0])
    network, size = network_of(header), tuple(header["patch_size"])
    cases = sorted(dataset.records, key=lambda case: _order(dataset, case))[:count]
    return [_masked_case(dataset, case, run, network, size) for case in cases], dataset


@mpl.rc_context({"text.parse_math": False})  # names are shown as they are
def masks_figure(cases: Sequence[MaskedCase], class_names: Mapping[int, str]) -> Figure:
    """Draw a row per case through the slice that shows most organs: organs, patch loss, random mask, self-mask."""
    heights = [one.image.shape[1] * one.spacing[1] / (one.image.shape[0] * one.spacing[0]) for one in cases]
    size = INCHES * (len(TITLES) + 0.3), INCHES * sum(heights) + 0.4
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    colours = class_colours(class_names)
    rows = figure.subplots(len(cases), len(TITLES), squeeze=False, height_ratios=heights)
    for row, case in zip(rows, cases, strict=True):
        _draw_case(row, case, colours)
        if case is cases[0]:
            for axes, title in zip(row, TITLES, strict=True):
                axes.set_title(title, fontsize=10)
    return figure


def masks_caption(run: str, cases: Sequence[MaskedCase]) -> str:
    """Say what the figure shows, and how often the masks hide organs."""
    known = [shares for case in cases if (shares := case.on_organs) is not None]
    text = (
        f"Masks of {run}: the loss of a patch is its mean over {MASKS} random masks; the self-mask hides the hardest."
    )
    if not known:
        return text
    random, own = (f"{100 * value:.0f}" for value in np.mean(known, axis=0))
    return f"{text} {random} % of the patches that the random masks hide touch an organ, {own} % of the self-masks'."


def _order(dataset: PreparedDataset, case: str) -> tuple[bool, bool, str]:
    """Return a key that sorts cases of val and test and with labels first."""
    held_out = any(case in dataset.splits.get(split, ()) for split in ("val", "test"))
    return not dataset.records[case].labelled, not held_out, case


def _masked_case(
    dataset: PreparedDataset, case: str, run: str, network: BackboneConfig, size: Sequence[int]
) -> MaskedCase:
    """Cut a part about the organs out of a case, or out of its middle, and show it to the networks of a run."""
    scan = prepared_scan(dataset, case)
    label = dataset.read_volume(case, label=True)[1] if dataset.records[case].labelled else None
    shape = scan.stored.shape[1:]
    edges = network.fitting_crop([min(max(edge, EDGE), extent) for edge, extent in zip(size, shape, strict=True)])
    organs = np.argwhere(label) if label is not None and label.any() else np.array([shape]) / 2
    origin = centred_origin([round(float(at)) for at in organs.mean(axis=0)], shape, edges)
    box = tuple(slice(max(start, 0), max(start, 0) + edge) for start, edge in zip(origin, edges, strict=True))
    stored = pad_to(torch.from_numpy(scan.stored[:, *box]), edges).numpy()
    low, high = CT_WINDOW if scan.schemes[0] == "ct" else np.percentile(stored[0], (1, 99.5)).tolist()
    return MaskedCase(
        case,
        stored[0],
        None if label is None else pad_to(torch.from_numpy(label[None, *box]), edges)[0].numpy(),
        (low, high),
        scan.spacing,
        self_mask(run, replace(scan, stored=stored), MASKS),
    )


def _draw_case(row: Sequence[Axes], case: MaskedCase, colours: Mapping[int, tuple[float, float, float]]) -> None:
    """Draw the four panels of a case."""
    index = case.image.shape[2] // 2 if case.label is None else best_slice(case.label)
    patch, picture = case.picture.patch, case.picture
    loss = voxels(picture.patch_loss.cpu().numpy(), patch)[:, :, index]
    low, high = case.window
    extent = (0.0, case.image.shape[0] * case.spacing[0], 0.0, case.image.shape[1] * case.spacing[1])
    for axes in row:
        axes.imshow(_view(case.image[:, :, index]), cmap="gray", vmin=low, vmax=high, extent=extent, origin="lower")
        axes.set_xticks([])
        axes.set_yticks([])
    row[0].set_ylabel(case.case, fontsize=9)
    shown = row[1].imshow(_view(loss), cmap="inferno", alpha=0.6, vmin=0, extent=extent, origin="lower")
    row[1].figure.colorbar(shown, ax=row[1], shrink=0.8).ax.tick_params(labelsize=7)
    for axes, mask in zip(row[2:], (picture.random_mask, picture.self_mask), strict=True):
        hidden = voxels(mask.cpu().numpy(), patch)[:, :, index]
        axes.imshow(_view(np.where(hidden, 1.0, np.nan)), cmap=HIDDEN, vmin=0, vmax=1, extent=extent, origin="lower")
    if case.label is None:
        return
    organs = {class_id: _view((case.label[:, :, index] == class_id).astype(float)) for class_id in colours}
    for axes, width in zip(row, (1.3, 0.8, 0.8, 0.8), strict=True):
        for class_id, organ in organs.items():
            if organ.any():
                axes.contour(organ, [0.5], colors=[colours[class_id]], linewidths=width, extent=extent)


def _view(plane: np.ndarray) -> np.ndarray:
    """Arrange (R, A) as a radiologist sees it: the patient's right on the left, anterior up."""
    return plane[::-1].T
