"""Backbones: their size, their encoder, and the segmentation network that holds this encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

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
    untrained: ClassVar[tuple[str, ...]] = ()
    """Prefixes of further tensors that a pretraining of encoder and decoder does not hold. Default: none."""
    convolutional: ClassVar[bool] = False
    """True if the encoder is a `ConvolutionalEncoder`: a chain of stages that can be cut short."""

    forms: ClassVar[tuple[Form, ...]] = ()
    """Kinds of other programs' files that hold its weights, which `import-weights` reads. Default: none."""
    exported: ClassVar[Form | None] = None
    """Form of those files whose names `export-weights --format monai` writes. Default: the names here."""
    computed: ClassVar[str] = "$."
    """Pattern of the names of buffers that follow from the size, which such a file may lack. Default: none."""
    unseen: ClassVar[tuple[str, ...]] = ()
    """Fields that no tensor of such a file shows: options of `import-weights` and of `of_tensors`. Default: none."""
    elsewhere: ClassVar[str] = ""
    """Sentence on how weights of another size may fit, for the message that they do not. Default: there is no way."""

    in_channels: int = 1
    """Number of image channels: 1 for CT, 2 for PET/CT."""

    @property
    @abstractmethod
    def strides(self) -> tuple[int, ...]:
        """Strides of the encoder's maps relative to the input, one per stage."""

    @property
    def exported_note(self) -> str:
        """Warning that is given when weights under the names of `exported` are written. Default: no warning."""
        return ""

    @property
    def axis_strides(self) -> tuple[tuple[int, ...], ...]:
        """Strides of the encoder's maps along each axis. Default: along all axes the same."""
        return tuple((stride,) * 3 for stride in self.strides)

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

    def trunk(self) -> nn.Module:
        """Build, with fresh weights, what a `Form` that is `whole` holds: encoder and decoder of a pretraining.

        Raises:
            NotImplementedError: no form of this network is whole.
        """
        raise NotImplementedError

    def fitted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors, by the segmentation network's names, as this network takes them over from another.

        Default: as they are.
        """
        return dict(tensors)

    @abstractmethod
    def fresh(self, stages: int) -> tuple[str, ...]:
        """List the prefixes of the segmentation network's names that an encoder of `stages` stages leaves fresh."""

    @classmethod
    def of_tensors(cls, form: Form, tensors: Mapping[str, Tensor]) -> tuple[BackboneConfig, int | None, int | None]:
        """Infer the size from the shapes of tensors, whose names in a file of `form` have become ours.

        An argument of each field in `unseen`, which is optional, is what the user gives for it.

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

    def crop_steps(self, stages: int | None = None) -> tuple[int, ...]:
        """Return the numbers, one per axis, of which the sides of an encoder's crops are multiples: its last strides.

        `stages` is the number of the encoder's stages. Default: all.
        """
        return tuple(map(max, zip(*self.axis_strides[:stages], strict=True)))

    def strides_in_words(self) -> str:
        """Format the strides relative to the input, as in "1, 2, 4, 8, 16, 16x32x32"."""
        return ", ".join("x".join(map(str, axes if len(set(axes)) > 1 else axes[:1])) for axes in self.axis_strides)

    def with_strides(self, strides: Sequence[Sequence[int]]) -> Self:
        """Return the network with the strides of nnU-Net plans. Default: it has its own, whatever plans say.

        Args:
            strides: strides of each stage relative to the stage before, along each axis.

        Raises:
            ValueError: the network cannot have these strides.
        """
        return self

    def check_crop(self, size: Sequence[int], stages: int | None = None) -> None:
        """Check that an encoder of `stages` stages (default: all) takes crops of `size` voxels.

        Raises:
            ValueError: a side is not a multiple of the largest stride, or the coarsest map is a single voxel, which has
                no variance.
        """
        steps = self.crop_steps(stages)
        pairs = list(zip(size, steps, strict=True))
        if any(edge % step for edge, step in pairs) or all(edge <= step for edge, step in pairs):
            multiples = f"{steps[0]}, not all of them {steps[0]}," if len(set(steps)) == 1 else f"{steps}, not these,"
            raise ValueError(
                f"loader.patch_size {tuple(size)} must be three multiples of {multiples} for the network {self.name}: "
                f"choose {self.fitting_crop(size)}"
            )

    def require_crop(self, size: Sequence[int], own: Sequence[int], multiples: str) -> None:
        """Check that crops of `size` voxels are of the network's `own` size, the only one for which it has positions.

        `multiples` says, in words, what its size may be.

        Raises:
            ValueError: they are not.
        """
        if tuple(size) != tuple(own):
            asked, flags = (" ".join(map(str, each)) for each in (size, own))
            raise ValueError(
                f"loader.patch_size {tuple(size)} must be network.patch_size {tuple(own)}, the crop for which the "
                f"network {self.name} has positions: set --network.patch-size {asked}, too ({multiples}), or choose "
                f"--loader.patch-size {flags}"
            )

    def fitting_crop(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Round a crop of `size` voxels up to the smallest that the segmentation network takes."""
        steps = self.crop_steps()
        d, h, w = (-(-edge // step) * step for edge, step in zip(size, steps, strict=True))
        if (d, h, w) != steps:
            return d, h, w
        d, h, w = (2 * step for step in steps)
        return d, h, w

    def for_crop(self, size: tuple[int, int, int]) -> Self:
        """Return the network for crops of `size` voxels: the same, unless it has positions."""
        return self


def first_size(tensors: Mapping[str, Tensor], prefix: str, named: str) -> int:
    """Return the first dimension that the tensors named `prefix`* share: that of `named`, or of another without it.

    Raises:
        KeyError: there is no such tensor; it holds the name `prefix` + `named`.
    """
    found = tensors.get(prefix + named)
    if found is None:
        found = next((tensor for name, tensor in tensors.items() if name.startswith(prefix)), None)
    if found is None:
        raise KeyError(prefix + named)
    return found.shape[0]


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

    def depths(self) -> Mapping[nn.Module, int]:
        """Return the depth of each of the `parts`, counted from the output: how often `layer_decay` applies to it.

        Default: 1 for the last, and their number for the first.
        """
        return {part: depth for depth, part in enumerate(self.parts()[::-1], start=1)}

    def tokens(self) -> Sequence[nn.Parameter]:
        """List learned tokens and positions, which finetuning may leave out of the weight decay. Default: none."""
        return ()


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

    @property
    def last_head(self) -> nn.Conv3d | None:
        """Convolution of one voxel that turns `before_head` into the finest logits. Default: there is none."""
        return None

    def before_head(self, volume: Tensor) -> Tensor:
        """Compute what `last_head` reads, (B, width, D, H, W), of (B, C, D, H, W), and nothing for the other levels."""
        raise NotImplementedError

    def without_loss(self) -> Sequence[nn.Module]:
        """List the modules that only the coarsest level reads, whose loss has weight 0. Default: none."""
        return ()
