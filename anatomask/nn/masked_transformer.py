"""Masked autoencoder of a vision transformer (SelfMedMAE, Zhou et al., ISBI 2023), and the patches it reconstructs.

Source: `MAE3D` in cvlab-stonybrook/SelfMedMAE, commit 21f38b1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.nn.backbones.unetr import PATCH, UNETRConfig
from anatomask.nn.norms import widened
from anatomask.nn.transformer import LAYER_NORM_EPS, Block, fixed_positions, initialise

TARGET_EPS = 1e-6
"""Number added to the variance of a patch in the target, and to its standard deviation in pictures."""


class MaskedTransformer(nn.Module):
    """Encoder of the visible patches, and a decoder of all. Positions are fixed."""

    def __init__(self, network: UNETRConfig, visible: int, width: int, depth: int, heads: int) -> None:
        """Build the autoencoder, with fresh weights.

        Args:
            network: network whose transformer is the encoder.
            visible: number of visible patches of a crop.
            width: width of the decoder, a multiple of 6 and of `heads`.
            depth: number of blocks of the decoder.
            heads: number of attention heads of the decoder.
        """
        super().__init__()
        self.visible = visible
        self.encoder = replace(network, drop_path=0.0).encoder()
        self.encoder_to_decoder = nn.Linear(network.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(fixed_positions(network.grid, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.head = nn.Linear(width, PATCH**3 * network.in_channels)
        self._initialise(fixed_positions(network.grid, network.width))

    @torch.no_grad()
    def _initialise(self, positions: Tensor) -> None:
        """Draw the weights as published, and set the encoder's positions; that of the class token is 0."""
        self.encoder.pos_embed.copy_(functional.pad(positions, (0, 0, 1, 0)))
        self.encoder.pos_embed.requires_grad_(False)
        embedding = self.encoder.patch_embed.get_parameter("proj.weight")
        for matrix in (embedding.view(len(embedding), -1), self.encoder_to_decoder.weight):
            nn.init.xavier_uniform_(matrix)
        for token in (self.encoder.cls_token, self.mask_token):
            nn.init.normal_(token, std=0.02)
        for part in (self.blocks, self.head):
            part.apply(initialise)

    def forward(self, volume: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct all patches of (B, C, D, H, W) from those whose `noise` (B, n) is smallest.

        Returns:
            The patches (B, n, voxels · C), each normalised, in raster order; and which were hidden (B, n) bool.
        """
        order = noise.argsort(stable=True, dim=1)
        place = order.argsort(dim=1)
        seen = self.encoder.embed(volume).take_along_dim(order[:, : self.visible, None], 1)
        tokens = self.encoder_to_decoder(self.encoder.transform(seen)[-1])
        masked = self.mask_token.expand(len(order), order.shape[1] - self.visible, -1)
        patches = torch.cat((tokens[:, 1:], masked), 1).take_along_dim(place[..., None], 1)
        x = torch.cat((tokens[:, :1], patches + self.decoder_pos_embed), 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 1:]), place >= self.visible


def patches_of(volume: Tensor) -> Tensor:
    """Cut (B, C, D, H, W) into patches (B, n, voxels · C) in raster order; the channels of a voxel are side by side."""
    batch, channels, *size = volume.shape
    d, h, w = (edge // PATCH for edge in size)
    blocks = volume.reshape(batch, channels, d, PATCH, h, PATCH, w, PATCH).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return blocks.reshape(batch, d * h * w, PATCH**3 * channels)


def volume_of(patches: Tensor, shape: Sequence[int]) -> Tensor:
    """Put the patches of `patches_of` together again, to a volume of `shape` (B, C, D, H, W)."""
    batch, channels, *size = shape
    blocks = patches.reshape(batch, *(edge // PATCH for edge in size), PATCH, PATCH, PATCH, channels)
    return blocks.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(*shape)


def patch_errors(prediction: Tensor, patches: Tensor) -> Tensor:
    """Compute the mean squared error of each patch (B, n) against (x - mean) / sqrt(variance + eps) of its voxels."""
    target = functional.layer_norm(widened(patches), patches.shape[-1:], eps=TARGET_EPS)
    return (widened(prediction) - target).square().mean(-1)


def in_intensities(prediction: Tensor, patches: Tensor) -> Tensor:
    """Give predicted patches the mean and standard deviation of the true ones, as the authors show them."""
    spread = patches.std(-1, keepdim=True) + TARGET_EPS
    return widened(prediction) * spread + patches.mean(-1, keepdim=True)
