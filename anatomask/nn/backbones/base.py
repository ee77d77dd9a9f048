"""Backbones: their size, their encoder, and the segmentation network that holds this encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from anatomask.nn.backbones.names import Form
from anatomask.nn.backbones.operations import DENSE, Operations
from anatomask.settings import Settings


@dataclass(frozen=True)
class BackboneConfig(Settings, ABC):
    """Size of a backbone, and what follows from it. See docs/backbones.md for an example."""

    name: ClassVar[str]
    """Name in `--network`, in `config.yaml` and in the weights' header."""
    stem: ClassVar[tuple[str, ...]]
    """Names of the segmentation network's tensors that read the image: (width, in_channels, ...) each."""
    heads: ClassVar[tuple[str, ...]]
    """Prefixes, up to a dot, of the names of the tensors that belong to the classes of one data set."""
    convolutional: ClassVar[bool] = False
    """True if the encoder is a `ConvolutionalEncoder`: a chain of stages that can be cut short."""

    forms: ClassVar[tuple[Form, ...]] = ()
    """Kinds of other programs' files that hold its weights, which `import-weights` reads. Default: none."""
    exported: ClassVar[Form | None] = None
    """Form of those files whose names `export-weights --format monai` writes. Default: the names here."""
    computed: ClassVar[str] = "$."
    """Pattern of the names of buffers that follow from the size, which such a file may lack. Default: none."""

    in_channels: int = 1
    """Number of image channels: 1 for CT, 2 for PET/CT."""

    @property
    @abstractmethod
    def strides(self) -> tuple[int, ...]:
        """Strides of the encoder's maps relative to the input, one per stage."""

    @abstractmethod
    def label(self) -> str:
        """Return the name in tables."""

    @abstractmethod
    def encoder(self, stages: int | None = None) -> Encoder:
        """Build the encoder, with fresh weights. `stages` is the number of stages that are built. Default: all."""

    @abstractmethod
    def segmenter(self, classes: int) -> Segmenter:
        """Build the segmentation network, with fresh weights.

        Its `encoder` has the same tensor names as `encoder()`. `classes` counts the structures; the background is one
        output more.
        """

    @abstractmethod
    def fresh(self, stages: int) -> tuple[str, ...]:
        """List the prefixes of the segmentation network's names that an encoder of `stages` stages leaves fresh."""

    @classmethod
    def of_tensors(cls, form: Form, tensors: Mapping[str, Tensor]) -> tuple[BackboneConfig, int | None, int | None]:
        """Infer the size from the shapes of tensors, whose names in a file of `form` have become ours.

        Returns:
            The size; the number of stages if the tensors are a pretrained encoder, None if they are a whole network;
            the number of classes of its heads without the background, None if it has no heads.

        Raises:
            KeyError: a tensor is missing, by its name.
            ValueError: the tensors are not of this backbone.
            IndexError: a tensor has too few dimensions.
        """
        raise ValueError(f"the size of {cls.name} cannot be inferred")

    def size(self) -> dict[str, Any]:
        """Return the fields that two networks must share for weights to fit, apart from the image channels."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "in_channels"}

    def pretrained_stages(self, patch: int) -> int:
        """Count the stages that pretraining trains when hidden patches are `patch` voxels wide.

        A stage is trained if a patch is at least one voxel wide at its resolution.
        """
        return sum(stride <= patch for stride in self.strides)

    def check_crop(self, size: Sequence[int], stages: int | None = None) -> None:
        """Check that an encoder of `stages` stages (default: all) takes crops of `size` voxels.

        Raises:
            ValueError: a side is not a multiple of the largest stride, or the coarsest map is a single voxel, which has
                no variance.
        """
        stride = max(self.strides[:stages])
        if any(edge % stride for edge in size) or all(edge <= stride for edge in size):
            raise ValueError(
                f"loader.patch_size {tuple(size)} must be three multiples of {stride}, not all of them {stride}, for "
                f"the network {self.name}: choose {self.fitting_crop(size)}"
            )

    def fitting_crop(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Round a crop of `size` voxels up to the smallest that the segmentation network takes."""
        stride = max(self.strides)
        d, h, w = (-(-edge // stride) * stride for edge in size)
        return (d, h, w) if max(d, h, w) > stride else (2 * stride, 2 * stride, 2 * stride)


def classes_of(head: Tensor | None) -> int | None:
    """Count the classes of a head's weight (classes + 1, …); return None where there is no head."""
    return None if head is None or head.dim() == 0 else head.shape[0] - 1


class Encoder(nn.Module, ABC):
    """Part of a backbone that pretraining trains."""

    widths: tuple[int, ...]
    """Number of channels of each map."""
    strides: tuple[int, ...]
    """Stride of each map relative to the input."""

    @abstractmethod
    def forward(self, volume: Tensor) -> list[Tensor]:
        """Encode (B, C, D, H, W) into one map (B, width, D/stride, ...) per stage, highest resolution first."""

    @abstractmethod
    def parts(self) -> Sequence[nn.Module]:
        """List the parts that together hold every parameter, from the input on; earlier ones may learn slower."""


class ConvolutionalEncoder(Encoder):
    """Encoder made of `Operations` alone, so that sparse backends compute it on visible patches."""

    @abstractmethod
    def forward(self, volume: Tensor, operations: Operations = DENSE) -> list[Tensor]:
        """Encode as `Encoder.forward` does, with volume and maps in the form of `operations`."""


class Segmenter(nn.Module, ABC):
    """Segmentation network."""

    config: BackboneConfig
    classes: int
    """Number of structures; the background is one output more."""
    encoder: Encoder

    @abstractmethod
    def forward(self, volume: Tensor) -> list[Tensor]:
        """Predict the logits of every level that is supervised, highest resolution first.

        Args:
            volume: (B, C, D, H, W), normalised; sides that `BackboneConfig.check_crop` accepts.

        Returns:
            Maps (B, classes + 1, D/s, H/s, W/s), the first with s = 1; channel 0 is the background.
        """

    def without_loss(self) -> Sequence[nn.Module]:
        """List the modules that only the coarsest level reads, whose loss has weight 0. Default: none."""
        return ()
