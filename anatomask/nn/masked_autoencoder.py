"""Masked autoencoder: sparse encoder, densification, light decoder, loss on hidden patches.

Its architecture is that of SparK (Tian et al., ICLR 2023) in 3D, as AnatoMask's published code uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from anatomask.nn.backbones.base import BackboneConfig, ConvolutionalEncoder
from anatomask.nn.backends import BACKENDS
from anatomask.nn.decoders import DECODERS, DecoderName
from anatomask.nn.norms import NormScope, Pool, Synchronisable, widened
from anatomask.nn.sparse import SparseMap, Visible, check_active
from anatomask.nn.submanifold import require_spconv

_TARGET_EPS = 1e-6
_VOXELS = (3, 5, 7)
"""Dimensions inside a patch in what `_split` returns."""


def _split(volume: Tensor, patch: int) -> Tensor:
    """Reshape (B, C, D, H, W) into patches (B, C, d, patch, h, patch, w, patch)."""
    batch, channels, *sides = volume.shape
    d, h, w = (side // patch for side in sides)
    return volume.reshape(batch, channels, d, patch, h, patch, w, patch)


def patch_statistics(volume: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Compute the mean and the standard deviation (of the unbiased variance + 1e-6) of each patch and channel.

    Args:
        volume: (B, C, D, H, W).
        patch: edge of a patch in voxels.

    Returns:
        Two tensors (B, C, D, H, W) in which each patch is constant: `(volume - mean) / deviation` is the target.
    """
    patches = _split(volume, patch)
    variance, mean = torch.var_mean(patches, _VOXELS, keepdim=True)
    deviation = (variance + _TARGET_EPS).sqrt()
    return (mean.expand_as(patches).reshape_as(volume), deviation.expand_as(patches).reshape_as(volume))


def normalise_patches(volume: Tensor, patch: int) -> Tensor:
    """Normalise each patch of (B, C, D, H, W) to mean 0 and variance 1 per channel: the reconstruction's target."""
    patches = _split(volume, patch)
    variance, mean = torch.var_mean(patches, _VOXELS, keepdim=True)
    return ((patches - mean) * (variance + _TARGET_EPS).rsqrt()).reshape_as(volume)


@dataclass(frozen=True)
class MaskedReconstruction:
    """Output of the autoencoder. Each loss is computed when it is first read."""

    volume: Tensor
    """The input (B, C, D, H, W)."""
    active: Tensor
    """Visible patches of the input (B, d, h, w) bool."""
    reconstruction: Tensor
    """Reconstruction (B, C, D, H, W), in patch-normalised space."""

    @property
    def patch(self) -> int:
        """Edge of a patch in voxels."""
        return self.volume.shape[2] // self.active.shape[1]

    @cached_property
    def patch_loss(self) -> Tensor:
        """Mean squared error of each patch against its normalised voxels (B, d*h*w), 0 where visible."""
        return self._loss_against(normalise_patches(widened(self.volume), self.patch))

    @cached_property
    def patch_loss_raw(self) -> Tensor:
        """Mean squared error against the raw voxels, the published code's guidance (B, d*h*w), 0 where visible."""
        return self._loss_against(widened(self.volume))

    @cached_property
    def loss(self) -> Tensor:
        """Mean squared error over all hidden patches of the batch, a scalar; 0 where nothing is hidden."""
        return self.patch_loss.sum() / (~self.active).sum().clamp_min(1)

    @cached_property
    def mean_sample_loss(self) -> Tensor:
        """Mean over the samples of their mean losses over hidden patches, a scalar.

        Where samples differ in the number of hidden patches, this mean does not depend on how a batch is divided among
        workers.
        """
        return (self.patch_loss.sum(1) / (~self.active).flatten(1).sum(1).clamp_min(1)).mean()

    def _loss_against(self, target: Tensor) -> Tensor:
        error = (widened(self.reconstruction) - target).square()
        per_patch = _split(error, self.patch).mean((1, *_VOXELS))
        return (per_patch * ~self.active).flatten(1)


class Densify(nn.Module):
    """Layer that fills the hidden positions of one scale with a learned token and projects to the decoder's width."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(in_channels, eps=1e-6, affine=True)
        self.token = nn.Parameter(torch.empty(1, in_channels, 1, 1, 1))
        nn.init.trunc_normal_(self.token, std=0.02, a=-0.02, b=0.02)
        self.projection: nn.Module = nn.Identity()
        if kernel > 1 or in_channels != channels:
            self.projection = nn.Conv3d(in_channels, channels, kernel, padding=kernel // 2)

    def forward(self, encoded: SparseMap) -> Tensor:
        """Map one of the encoder's maps to (B, channels, D, H, W)."""
        return self.projection(encoded.densify(self.norm, self.token))


class MaskedAutoencoder(Synchronisable, nn.Module):
    """Network that reconstructs hidden patches from visible ones.

    Where `synchronised`, norms of scope `batch` pool the samples of all workers, in eval mode too.
    """

    def __init__(
        self,
        network: BackboneConfig,
        decoder: DecoderName = "hierarchical",
        decoder_width: int | None = None,
        norm_scope: NormScope = "sample",
        patch: int = 16,
    ) -> None:
        """Build the network, with fresh weights.

        Args:
            network: size of the encoder.
            decoder: kind of the reconstruction decoder.
            decoder_width: width of the decoder's deepest level. Default: that of the encoder's deepest stage.
            norm_scope: scope of the encoder's InstanceNorm.
            patch: edge of a hidden patch in voxels; it decides how many stages the encoder has.

        Raises:
            ValueError: the decoder is unknown, or the encoder cannot be computed on visible patches alone.
        """
        super().__init__()
        if decoder not in DECODERS:
            raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, not {decoder}")
        self.network = network
        self.norm_scope = norm_scope
        self.patch = patch
        self.sparse_backend = "dense"
        encoder = network.encoder(network.pretrained_stages(patch))
        if not isinstance(encoder, ConvolutionalEncoder):
            raise ValueError(f"the encoder of network {network.name} cannot be computed on visible patches alone")
        self.encoder = encoder
        self.decoder = DECODERS[decoder](
            decoder_width or self.encoder.widths[-1], network.in_channels, self.encoder.strides[-1]
        )
        scales = zip(reversed(self.encoder.widths), self.decoder.widths, strict=False)
        self.densify = nn.ModuleList(
            Densify(width, channels, kernel=3 if scale else 1) for scale, (width, channels) in enumerate(scales)
        )

    def set_sparse_backend(self, name: str) -> None:
        """Choose how the sparse encoder computes (`dense`, `blocks`, `spconv`); weights and results stay the same.

        Raises:
            ValueError: no backend has that name.
            ModuleNotFoundError: the backend is not installed; the message names the remedy.
        """
        if name not in BACKENDS:
            raise ValueError(f"sparse backend must be one of {', '.join(BACKENDS)}, not {name}")
        if name == "spconv":
            require_spconv()
        self.sparse_backend = name

    def encode(self, volume: Tensor, active: Tensor) -> list[Tensor]:
        """Encode the active patches into one map per stage, at the encoder's strides; hidden voxels are zero.

        Args:
            volume: (B, C, D, H, W) float, normalised; sides are multiples of the patch.
            active: (B, D/patch, H/patch, W/patch) bool, True = visible.
        """
        return [encoded.dense() for encoded in self._encode(volume, active, None)]

    def forward(self, volume: Tensor, active: Tensor, visible: Visible | None = None) -> MaskedReconstruction:
        """Reconstruct `volume` (B, C, D, H, W) from its `active` patches (B, D/patch, H/patch, W/patch).

        `visible` bounds the number of active patches of a sample; where it is None, they are counted, which waits for
        the device.
        """
        deepest_first = reversed(self._encode(volume, active, visible))
        filled = [densify(encoded) for densify, encoded in zip(self.densify, deepest_first, strict=False)]
        return MaskedReconstruction(volume, active, self.decoder(filled))

    def _encode(self, volume: Tensor, active: Tensor, visible: Visible | None) -> Sequence[SparseMap]:
        check_active(volume, active, self.patch)
        pool: Pool = "workers" if self.synchronised and self.norm_scope == "batch" else self.norm_scope
        return BACKENDS[self.sparse_backend](self.encoder, volume, active, pool, visible)
