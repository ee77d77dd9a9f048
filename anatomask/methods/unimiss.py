"""UniMiSS (Xie et al., ECCV 2022): a student agrees with its teacher on volumes and on their slices.

Source: YtongXie/UniMiSS-code, `UniMiSS/main.py`, commit 68be0a4, whose loss is DINO's (Caron et al., ICCV 2021). These
are this project's choices: there are no 2D images, so that all epochs are on volumes, or every other few of them on
slices of volumes; the networks read what finetuning reads, and the changes of intensity act on that, not on HU/1024;
views are as large as the crops of the other methods, and drawn from whole scans.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from anatomask.data.samples import LoaderConfig
from anatomask.data.sub_volumes import SubVolumesDraw, sub_volumes
from anatomask.methods.base import Method, MethodConfig, StepResult
from anatomask.methods.two_views import follow
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.unimiss import UniMiSSConfig
from anatomask.nn.distributed import all_reduce
from anatomask.nn.mit import draw_weights
from anatomask.nn.norms import widened

TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.04, 0.1
CENTRE_DECAY = 0.9
"""EMA decay of the centre, after each term of the loss."""
TERMS = ("volumes", "slices_volumes", "slices", "volumes_slices")
"""Terms of the loss by what student and teacher read, in their order."""


@dataclass(frozen=True)
class UniMiSSMethodConfig(MethodConfig):
    """Settings of UniMiSS. Encoder and decoder of the network `unimiss` are trained."""

    name = "unimiss"
    encoder = "student.network.encoder."
    whole = "student.network."
    splits_batches = False  # the centre moves with the whole batch
    optimiser: ClassVar = {
        "lr": 1.25e-5,
        "lr_end": 1e-6,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "decayed": "matrices",
        "warmup_epochs": 10,
        "warmup_lr": 0.0,
        "rate_every": "sample",
        "clip": 0.3,
        "clip_of": "each",
    }

    hidden: int = 2048
    """Width of the head's two hidden layers."""
    bottleneck: int = 256
    """Width of the head's unit vectors."""
    outputs: int = 65_536
    """Number of the head's outputs."""
    ema_decay: float = 0.996
    """EMA decay of the teacher's parameters at first, from which it rises to 1 by half a cosine."""
    slice_epochs: int = 0
    """Number of epochs on slices alone, then as many on volumes and slices, and so on; the authors' is 2, with 2D
    images. 0: all are on volumes and slices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 65_536, "hidden", "bottleneck")
        self.require_range(2, 1_000_000, "outputs")
        self.require_range(0, 1_000_000, "slice_epochs")
        if not 0 <= self.ema_decay <= 1:
            raise ValueError(f"ema_decay must lie in [0, 1], not {self.ema_decay}")

    def label(self) -> str:
        """Return the name in tables."""
        return "UniMiSS"

    def stages(self, network: BackboneConfig) -> int:
        """Count the encoder stages that are trained: all."""
        return len(network.strides)

    def check_network(self, network: BackboneConfig) -> None:
        """Check that the network is a MiT.

        Raises:
            ValueError: it is another.
        """
        if not isinstance(network, UniMiSSConfig):
            raise ValueError(f"network {network.name} cannot be pretrained by {self.label()}: choose --network unimiss")

    def check_crop(self, size: Sequence[int]) -> None:
        """Check that the deepest map of a slice has more than one voxel.

        Raises:
            ValueError: it has one, which has no variance.
        """
        if max(size[:2]) <= 32:
            raise ValueError(
                f"loader.patch_size {tuple(size)}: {self.label()} reads slices across the last axis, one of whose "
                f"sides must be longer than 32: choose {(64, 64, size[2])}, and --network.patch-size alike"
            )

    def check_epochs(self, epochs: int) -> None:
        """Check that an epoch is on volumes, without which what a finetuning takes over stays random.

        Raises:
            ValueError: all are on slices.
        """
        if self.slice_epochs >= epochs:
            raise ValueError(
                f"method.slice_epochs {self.slice_epochs} leaves none of the {epochs} epochs for volumes: choose "
                "fewer, or more training.epochs"
            )

    def countable(self) -> Self:
        """Return the same without epochs on slices alone, since one on volumes costs more."""
        return replace(self, slice_epochs=0)

    def draw(self, loader: LoaderConfig) -> SubVolumesDraw:
        """Return what draws two boxes of a region."""
        return SubVolumesDraw(loader)

    def build(self, network: BackboneConfig) -> UniMiSS:
        """Build the student, and the teacher as a copy."""
        assert isinstance(network, UniMiSSConfig)
        return UniMiSS(Student(network, self), self, network)


class Head(nn.Module):
    """MLP to unit vectors, and a linear layer whose rows have length 1."""

    def __init__(self, width: int, config: UniMiSSMethodConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        self.mlp.apply(draw_weights)
        self.last = nn.Linear(config.bottleneck, config.outputs, bias=False)

    def forward(self, embeddings: Tensor, each: int) -> Tensor:
        """Compute the mean output of every `each` rows of (N·each, width): (N, outputs).

        The mean of the outputs is the output of the mean, since the last layer is linear.
        """
        units = functional.normalize(widened(self.mlp(embeddings)), dim=-1)
        means = units.unflatten(0, (-1, each)).mean(1)
        with torch.autocast(means.device.type, enabled=False):  # the teacher's outputs are divided by 0.04
            return functional.linear(means, functional.normalize(self.last.weight, dim=1))


class Student(nn.Module):
    """Encoder, decoder and head."""

    def __init__(self, network: UniMiSSConfig, config: UniMiSSMethodConfig) -> None:
        super().__init__()
        self.network = network.trunk()
        self.head = Head(network.widths[0], config)

    def forward(self, image: Tensor, each: int = 1) -> Tensor:
        """Map volumes (N, C, S, R, A), or slices (N·each, C, R, A), to outputs (N, outputs).

        Slices are repeated to three times as many channels.
        """
        image = image.repeat_interleave(3, 1) if image.dim() == 4 else image
        outputs: Tensor = self.head(self.network(image), each)
        return outputs


@dataclass(frozen=True)
class SubVolumes:
    """Two views of each sample, whose slices lie along the first axis."""

    volumes: tuple[Tensor, Tensor]
    """Views (B, C, S, R, A)."""
    common: Tensor
    """Places (B, 2, n) of slices that both views show, in either."""


def ema_decay(progress: float, config: UniMiSSMethodConfig) -> float:
    """Compute the EMA decay at `progress`: half a cosine to 1."""
    return 1 + (config.ema_decay - 1) * 0.5 * (1 + math.cos(math.pi * progress))


def cross_view_loss(student: Tensor, teacher: Tensor, centre: Tensor) -> Tensor:
    """Compute the cross-entropy of each view's student with the other view's teacher, the mean of both.

    Args:
        student: outputs (2·B, K), those of the first views, then those of the second.
        teacher: the same of the teacher, without gradient.
        centre: (1, K), which is subtracted from the teacher's.
    """
    wanted = ((teacher - centre) / TEACHER_TEMPERATURE).softmax(-1).chunk(2)
    found = (student / STUDENT_TEMPERATURE).log_softmax(-1).chunk(2)
    losses = [-(one * other).sum(-1).mean() for one, other in zip(wanted, found[::-1], strict=True)]
    return torch.stack(losses).mean()


class UniMiSS(Method):
    """Student, which is trained, teacher, which follows it, and the centre of the teacher's outputs."""

    centre: Tensor
    """Mean (1, outputs) of the teacher's outputs, over the last terms."""

    def __init__(self, student: Student, config: UniMiSSMethodConfig, network: UniMiSSConfig) -> None:
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(1, config.outputs))
        self.config = config
        self.network = network

    def trainable(self) -> Student:
        """Return the student."""
        return self.student

    def networks(self) -> Sequence[nn.Module]:
        """Return student and teacher."""
        return [self.student, self.teacher]

    @property
    def on_slices(self) -> bool:
        """Return whether this epoch is on slices alone."""
        interval = self.config.slice_epochs
        return interval > 0 and self.epoch // interval % 2 == 0

    def of_volumes(self) -> list[nn.Parameter]:
        """List the student's parameters that only volumes reach."""
        return [parameter for name, parameter in self.student.named_parameters() if ".3D" in name]

    def frozen(self) -> Iterable[nn.Parameter]:
        """Return the last layer in epoch 0, and what only volumes reach in an epoch on slices."""
        frozen = self.of_volumes() if self.on_slices else []
        return [*frozen, *(self.student.head.last.parameters() if self.epoch == 0 else ())]

    def batch(self, sample: Mapping[str, Tensor]) -> SubVolumes:
        """Make two views of each sample."""
        first, second = (
            view.contiguous(memory_format=self.memory_format) for view in sub_volumes(sample, self.network.patch_size)
        )
        return SubVolumes((first, second), sample["common"])

    def dummy_batch(self, samples: int, size: Sequence[int]) -> SubVolumes:
        """Return views with arbitrary values."""
        r, a, s = size
        first, second = torch.empty(2, samples, self.network.in_channels, s, r, a)
        return SubVolumes((first, second), torch.zeros(samples, 2, s // 2, dtype=torch.long))

    def training_step(self, batch: SubVolumes, progress: float) -> StepResult:
        """Sum the four terms of volumes and slices, each with weight 1, or compute that of the common slices.

        Scalars: the terms.
        """
        if self.training and self.on_slices:
            return self._step_on_slices(batch)
        volumes = torch.cat(batch.volumes)
        depth = volumes.shape[2]
        slices = volumes.transpose(1, 2).flatten(0, 1)
        with torch.no_grad():
            wanted = {"volumes": self.teacher(volumes), "slices": self.teacher(slices, depth)}
        found = {"volumes": self.student(volumes), "slices": self.student(slices, depth)}
        terms = {}
        for name in TERMS:
            student, teacher = name.split("_")[0], name.split("_")[-1]
            terms[f"{name}_loss"] = self.term(found[student], wanted[teacher])
        return StepResult(
            torch.stack(list(terms.values())).sum(), {name: loss.detach() for name, loss in terms.items()}
        )

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute a term of outputs (2·B, outputs), then move the centre in training."""
        with torch.autocast(student.device.type, enabled=False):
            loss = cross_view_loss(widened(student), widened(teacher), self.centre)
            if self.training:
                self._move_centre(widened(teacher))
        return loss

    @torch.no_grad()
    def _move_centre(self, teacher: Tensor) -> None:
        """Move the centre towards the mean over all workers; outputs that are not finite leave it as it was."""
        total = all_reduce(torch.cat((teacher.sum(0), teacher.new_tensor([len(teacher)]))))
        moved = CENTRE_DECAY * self.centre + (1 - CENTRE_DECAY) * (total[:-1] / total[-1])
        self.centre.copy_(torch.where(moved.isfinite().all(), moved, self.centre))

    def _step_on_slices(self, batch: SubVolumes) -> StepResult:
        """Compute the term of the slices that both views show."""
        images = torch.cat(
            [
                torch.cat([volume[:, places].transpose(0, 1) for volume, places in zip(volumes, common, strict=True)])
                for volumes, common in zip(batch.volumes, batch.common.unbind(1), strict=True)
            ]
        )
        with torch.no_grad():
            teacher = self.teacher(images)
        loss = self.term(self.student(images), teacher)
        # Workers wait for a gradient of every parameter, unless weights are divided among them.
        unread = [weight.sum() for weight in self.of_volumes() if not isinstance(weight, DTensor)]
        return StepResult(loss + 0 * torch.stack(unread).sum() if unread else loss, {"slices_loss": loss.detach()})

    def after_step(self, progress: float) -> None:
        """Let the teacher follow the student."""
        follow(self.teacher, self.student, ema_decay(progress, self.config))

    def views(self, batch: SubVolumes) -> Mapping[str, Tensor]:
        """Return both views of the first sample."""
        first, second = (volumes[0].movedim(1, -1) for volumes in batch.volumes)
        return {"view 1": first, "view 2": second}
