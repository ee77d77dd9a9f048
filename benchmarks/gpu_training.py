"""Pretraining, finetuning and scoring on volumes that stay on the device, by the project's own methods and updates."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from gpu_volumes import Volumes
from torch import Tensor, nn

from anatomask.data.crops import normalised_crops
from anatomask.evaluation.windows import WindowGrid, gaussian
from anatomask.methods.anatomask import AnatoMask
from anatomask.nn.backbones.stunet import STUNet
from anatomask.training.losses import segmentation_loss
from anatomask.training.parallel import Workers
from anatomask.training.recorder import Recorder
from anatomask.training.schedule import learning_rate
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.training.state import TrainingState
from anatomask.training.task import Task
from anatomask.training.update import Update, autocast

Scores = dict[str, dict[str, float]]
"""DSC by case and class, a fraction; a class that a case lacks is left out."""
CHECK_EVERY = 20
"""Updates between checks of the clock, for which the host waits for the device."""


class PretrainingTask(Task):
    """AnatoMask, or SparK, on crops of `PretrainingPlan`."""

    def __init__(self, method: AnatoMask) -> None:
        super().__init__()
        self.method = method

    def trainable(self) -> nn.Module:
        """Return the student."""
        return self.method.trainable()

    def networks(self) -> Sequence[nn.Module]:
        """Return student and teacher."""
        return self.method.networks()

    def kept(self) -> nn.Module:
        """Return student and teacher."""
        return self.method

    def forward(self, sample: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Compute the loss of a batch, and the method's scalars."""
        self.method.memory_format = self.memory_format
        result = self.method.training_step(self.method.batch(sample), progress)
        return result.loss, result.scalars

    def after_step(self, progress: float) -> None:
        """Update the teacher."""
        self.method.after_step(progress)

    def validate(self, recorder: Recorder, step: int) -> float | None:
        """Do nothing."""
        return None


class LabelledTask(Task):
    """STU-Net on augmented crops."""

    def __init__(self, network: STUNet) -> None:
        super().__init__()
        self.network = network
        network.heads[0].requires_grad_(False)  # the lowest level, whose loss has weight 0

    def trainable(self) -> nn.Module:
        """Return the whole network."""
        return self.network

    def forward(self, sample: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Compute the loss of `image` and `label` (B, 1, D, H, W)."""
        image = sample["image"].contiguous(memory_format=self.memory_format)
        return segmentation_loss(self.network(image), sample["label"]), {}

    def after_step(self, progress: float) -> None:
        """Do nothing."""

    def validate(self, recorder: Recorder, step: int) -> float | None:
        """Do nothing."""
        return None


def train(
    task: Task,
    batch: Callable[[int], Mapping[str, Tensor]],
    updates: int,
    config: TrainingConfig,
    schedule: OptimiserConfig,
    device: torch.device,
    *,
    ends: float = math.inf,
    at: Mapping[int, Callable[[], object]] | None = None,
) -> list[float]:
    """Train with the project's updates; the learning rate changes from each to the next.

    Args:
        task: task as `distribute` left it; its optimiser starts afresh.
        batch: function that reads the batch of an update, by its number.
        updates: number of updates.
        config: batch size and precision.
        schedule: schedule of the learning rate; its epochs are updates here.
        device: device of all tensors.
        ends: time of `time.monotonic` at which it stops, even if updates are left.
        at: functions to call, by the number of updates after which.

    Returns:
        The loss of each update that was done.
    """
    state = TrainingState.of(task, schedule, device)
    step = Update(state, task, Workers(), config, schedule.clip, device)
    groups = len(state.optimiser.param_groups)
    losses: list[Tensor] = []
    for number in range(updates):
        rates = [learning_rate(number, updates, schedule)] * groups
        scalars = step(batch(number), number / updates, rates)
        losses.append(scalars["loss"])
        if at and number + 1 in at:
            at[number + 1]()
        if number % CHECK_EVERY == 0:
            wait_for(device)
            if time.monotonic() > ends:
                break
    return torch.stack(losses).float().cpu().tolist()


def seconds_per_update(
    task: Task,
    batch: Callable[[int], Mapping[str, Tensor]],
    config: TrainingConfig,
    device: torch.device,
    *,
    progress: float,
    updates: int,
) -> tuple[float, float]:
    """Measure the seconds of the first two updates, in which networks are compiled, and of each of `updates` more."""
    schedule = OptimiserConfig(lr=1e-6)
    state = TrainingState.of(task, schedule, device)
    step = Update(state, task, Workers(), config, schedule.clip, device)
    rates = [schedule.lr] * len(state.optimiser.param_groups)
    taken = []
    for count in (2, updates):
        wait_for(device)
        start = time.monotonic()
        for number in range(count):
            step(batch(number), progress, rates)
        wait_for(device)
        taken.append(time.monotonic() - start)
    return taken[0], taken[1] / updates


def wait_for(device: torch.device) -> None:
    """Wait on the host until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def scores(
    network: STUNet, volumes: Volumes, cases: Sequence[str], edge: int, overlap: float, precision: str
) -> Scores:
    """Segment whole scans on their prepared grid, and compare with their labels."""
    found: Scores = {}
    for case in cases:
        predicted = segmented(network, volumes, case, edge, overlap, precision)
        by_class = dice(predicted, volumes.label_map(case), len(volumes.class_names))
        found[case] = {volumes.class_names[c]: value for c, value in by_class.items() if not math.isnan(value)}
    return found


def segmented(network: STUNet, volumes: Volumes, case: str, edge: int, overlap: float, precision: str) -> Tensor:
    """Segment a scan on its prepared grid: a label map (D, H, W)."""
    return logits(network, volumes, volumes.cases.index(case), edge, overlap, precision).argmax(0)


def dice(predicted: Tensor, truth: Tensor, classes: int) -> dict[int, float]:
    """Compute the DSC of classes 1 … K of two label maps (D, H, W); NaN where `truth` lacks one."""
    pairs = truth.flatten().long() * (classes + 1) + predicted.flatten().long()
    counts = torch.bincount(pairs, minlength=(classes + 1) ** 2).view(classes + 1, classes + 1).cpu()
    both, true, guessed = counts.diagonal(), counts.sum(1), counts.sum(0)
    return {c: float(2 * both[c]) / float(true[c] + guessed[c]) if true[c] else math.nan for c in range(1, classes + 1)}


@torch.no_grad()
def logits(network: STUNet, volumes: Volumes, scan: int, edge: int, overlap: float, precision: str) -> Tensor:
    """Predict a scan (classes + 1, D, H, W) from windows that are cubes, weighted by a Gaussian.

    `anatomask.evaluation.windows.slide` does the same with less memory. The network is not compiled for it:
    its call would be compiled once more.
    """
    shape = volumes.shapes[scan].tolist()
    grid = WindowGrid(tuple(shape), (edge, edge, edge), overlap)
    before = grid.before
    inner = [[start - b for start in starts] for starts, b in zip(grid.starts, before, strict=True)]
    origins = list(itertools.product(*inner))
    weight = gaussian(grid.window, volumes.device)
    total = torch.zeros(network.classes + 1, *grid.padded, device=volumes.device)
    weights = torch.zeros(grid.padded, device=volumes.device)
    scans = torch.full((len(origins),), scan, device=volumes.device)
    places = torch.tensor(origins, device=volumes.device)
    for some, where in zip(scans.split(8), places.split(8), strict=True):
        windows = normalised_crops(volumes.crops(some, where, edge, label=False))
        with autocast(precision, volumes.device):
            answer = network.forward(windows)[0]
        for window, origin in zip(answer.float(), where.tolist(), strict=True):
            place = tuple(slice(o + b, o + b + edge) for o, b in zip(origin, before, strict=True))
            total[:, *place] += window * weight
            weights[place] += weight
    inside = tuple(slice(b, b + extent) for b, extent in zip(before, shape, strict=True))
    return (total / weights)[:, *inside]
