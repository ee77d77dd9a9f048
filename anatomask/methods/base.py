"""Pretraining methods: their settings, what they draw of a scan, and one training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from anatomask.data.samples import Draw, LoaderConfig
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.settings import Settings

if TYPE_CHECKING:
    from anatomask.data.shards import PreparedDataset


@dataclass(frozen=True)
class StepResult:
    """Result of one training step."""

    loss: Tensor
    """Scalar to be minimised, a mean over the samples."""
    scalars: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars on the device, for the logs."""


@dataclass(frozen=True)
class MethodConfig(Settings, ABC):
    """Settings of a pretraining method, and what follows from them. See docs/methods.md for an example."""

    name: ClassVar[str]
    """Name in `--method`, in `config.yaml` and in the weights' header."""
    encoder: ClassVar[str]
    """Prefix of the encoder's tensors in a checkpoint, such as `student.encoder.`."""
    whole: ClassVar[str] = ""
    """Prefix of the tensors of a segmentation network, such as `network.`, of a method that trains the decoder, too;
    finetuning then takes over all but the heads. Default: the encoder alone is trained."""
    splits_batches: ClassVar[bool] = True
    """True if a worker may compute its samples in several parts (`training.accumulate`)."""
    optimiser: ClassVar[Mapping[str, object]] = {}
    """Fields of the optimiser's settings as the authors chose them: defaults where `--method` names the method."""

    @abstractmethod
    def label(self) -> str:
        """Return the name in tables."""

    @abstractmethod
    def stages(self, network: BackboneConfig) -> int:
        """Count the encoder stages that are trained, from the first on."""

    @abstractmethod
    def draw(self, loader: LoaderConfig) -> Draw:
        """Return what draws a sample of a case: crops, and the random numbers that belong to it."""

    @abstractmethod
    def build(self, network: BackboneConfig) -> Method:
        """Build the networks, with fresh weights."""

    def check_network(self, network: BackboneConfig) -> None:
        """Check that the method can pretrain `network`. Default: the encoder must be convolutional.

        Raises:
            ValueError: it cannot.
        """
        if not network.convolutional:
            raise ValueError(
                f"network {network.name} cannot be pretrained by {self.label()}, which needs a chain of convolutions: "
                "choose another --network, or finetune this one from scratch"
            )

    def check_crop(self, size: Sequence[int]) -> None:
        """Check that the method works on crops of `size` voxels. Default: it works on all.

        Raises:
            ValueError: it does not.
        """

    def check_batch(self, size: int, workers: int) -> None:
        """Check that the method works on batches of `size` samples, of all workers together. Default: on all.

        Raises:
            ValueError: it does not.
        """

    def check_data(self, dataset: PreparedDataset) -> None:
        """Check that a data set has what the method needs. Default: every data set has.

        Raises:
            UserError: it has not.
        """

    def check_epochs(self, epochs: int) -> None:
        """Check that a pretraining of so many epochs trains all that it hands on.

        Raises:
            ValueError: it does not.
        """

    def resolved(self) -> Self:
        """Return the settings with every `auto` decided, once for a run.

        Raises:
            UserError: a part that the settings name is not installed.
        """
        return self

    def countable(self) -> Self:
        """Return settings that cost the same, all of whose operations torch can count."""
        return self

    def plan(self, loader: LoaderConfig, spacing: Sequence[float]) -> list[tuple[str, str]]:
        """Return rows for `--dry-run`; `spacing` is the voxel size in mm."""
        return []


class Method(nn.Module, ABC):
    """The networks of a method, and one training step.

    Its `state_dict` is what a checkpoint holds. It draws no random numbers of its own but in the forward passes of its
    networks, where torch's generator is set from the seed and the samples.
    """

    memory_format = torch.contiguous_format
    """Memory format of the volumes that the networks read."""
    epoch = 0
    """Epoch of the update, from 0."""

    @abstractmethod
    def trainable(self) -> nn.Module:
        """Return the module whose parameters are updated, each of which gets a gradient in every update."""

    def networks(self) -> Sequence[nn.Module]:
        """Return the modules that compute, `trainable` first."""
        return [self.trainable()]

    @abstractmethod
    def batch(self, sample: Mapping[str, Tensor]) -> Any:
        """Turn a batch of drawn samples, on the device, into what `training_step` takes."""

    @abstractmethod
    def dummy_batch(self, samples: int, size: Sequence[int]) -> Any:
        """Return a batch with crops of `size` voxels and arbitrary values, to find out what a step costs."""

    @abstractmethod
    def training_step(self, batch: Any, progress: float) -> StepResult:
        """Compute the loss of a batch at `progress` = t/T."""

    def frozen(self) -> Iterable[nn.Parameter]:
        """List the parameters that do not learn in this `epoch`, though they get gradients. Default: none."""
        return ()

    def after_step(self, progress: float) -> None:
        """Act on an update of the weights, for example by an EMA. Default: do nothing."""

    def views(self, batch: Any) -> Mapping[str, Tensor]:
        """Return, by name, what the networks see of the first sample (C, D, H, W), for pictures."""
        return {}

    def forward(self, batch: Any, progress: float) -> StepResult:
        """Compute `training_step`, under the name that distributed wrappers call."""
        return self.training_step(batch, progress)
