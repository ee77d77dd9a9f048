"""Finetuning as a task of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anatomask.data.augmentation.draws import coarse_axis
from anatomask.data.augmentation.pipeline import IntensityAugmentation, placed_crops
from anatomask.data.crops import flip
from anatomask.evaluation.validation import Validated
from anatomask.nn.backbones.base import BackboneConfig, Segmenter
from anatomask.training.losses import segmentation_loss
from anatomask.training.pictures import segmentation_figure
from anatomask.training.recorder import Recorder
from anatomask.training.task import Task, seed_forward

Validate = Callable[[nn.Module, torch.device], Validated]


class FinetuningTask(Task):
    """Training of a segmentation network on augmented crops, under Dice + cross-entropy with deep supervision."""

    def __init__(
        self,
        network: BackboneConfig,
        header: Mapping[str, Any],
        start: Callable[[Segmenter], Sequence[str]],
        validate: Validate,
        seed: int,
        device: torch.device,
        *,
        frozen: bool = False,
    ) -> None:
        """Put initial weights into the network by `start`; `validate` scores the validation cases.

        If `frozen`, the encoder never learns, so no gradient of it is computed.
        """
        super().__init__()
        torch.manual_seed(seed)
        self.network = network.segmenter(int(header["architecture"]["classes"]))
        fresh = list(start(self.network))
        prepare_gradients(self.network, frozen=frozen)
        self.network.to(device)
        self.seed = seed
        self.device = device
        self.header = {**header, "not_transferred": fresh}
        self.validation = validate
        self.change_intensity = IntensityAugmentation(coarse=coarse_axis(header["spacing"]))
        self.loss = segmentation_loss

    def trainable(self) -> nn.Module:
        """Return the whole network."""
        return self.network

    def encoder_depths(self) -> Mapping[nn.Module, int]:
        """Return the depths of the parts of the encoder."""
        return self.network.encoder.depths()

    def undecayed(self) -> Sequence[nn.Parameter]:
        """Return the learned tokens and positions of the encoder."""
        return self.network.encoder.tokens()

    def forward(self, sample: Mapping[str, Any], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Compute the loss of a batch that `FinetuningDraw` drew, padded, normalised and augmented on the device."""
        seed_forward(self.seed, sample)
        image, label = placed_crops(sample, self.header["patch_size"])
        image = self.change_intensity(image, sample["seed"])
        image, label = flip(image, sample["flip"]), flip(label, sample["flip"])
        return self.loss(self.network(image.contiguous(memory_format=self.memory_format)), label), {}

    def after_step(self, progress: float) -> None:
        """Do nothing."""

    def validate(self, recorder: Recorder, step: int) -> float | None:
        """Record the DSC of each class on the validation cases, and slices of some.

        Return the mean DSC, which chooses the best checkpoint, or None where no validation case holds a class.
        """
        self.network.eval()
        validated = self.validation(self.network, self.device)
        self.network.train()
        if validated.slices:
            names = {int(number): name for number, name in self.header["class_names"].items()}
            recorder.figure(step, "segmentations", segmentation_figure(validated.slices, names))
        dice = validated.dsc
        if not dice:
            return None
        score = sum(dice.values()) / len(dice)
        recorder.scalars(step, {"val/dice": score, **{f"val_dice/{name}": value for name, value in dice.items()}})
        return score


def prepare_gradients(network: Segmenter, *, frozen: bool) -> None:
    """Let `network` compute only the gradients that finetuning needs: no `frozen` encoder's, no part's without loss."""
    for part in network.without_loss():
        part.requires_grad_(False)
    network.encoder.requires_grad_(not frozen)
