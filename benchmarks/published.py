"""A pretraining step computed the way the published code does, as `reference.md` describes it, for comparison.

It has masked dense convolutions; norms that pick the active voxels out by index and put them back; the projection at
full resolution that nothing reads; a pass of the teacher in every step; masks made sample by sample on the host; EMA
tensor by tensor; contiguous (B, C, D, H, W) memory. The weights and the results are those of
`anatomask.methods.anatomask` with norms pooled over the batch.
"""

from __future__ import annotations

import copy

import torch
from measure import PATCH
from torch import Tensor, nn
from torch.nn import functional

from anatomask import masking
from anatomask.methods.anatomask import AnatoMaskConfig, ema_decay
from anatomask.methods.masked import MaskedBatch
from anatomask.nn.backbones.operations import NEGATIVE_SLOPE
from anatomask.nn.backbones.stunet import ResidualBlock, STUNetConfig
from anatomask.nn.masked_autoencoder import Densify, MaskedAutoencoder
from anatomask.nn.sparse import expand_active


class PublishedAutoencoder(nn.Module):
    """Modules of a masked autoencoder, called in the published order."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model
        for level in model.decoder.levels:
            level.upsample.__class__ = nn.ConvTranspose3d  # with the library's own gradients
        narrowest = model.decoder.widths[-1] // 2
        self.full_resolution = Densify(model.encoder.widths[0], narrowest, kernel=3)

    def forward(self, volume: Tensor, active: Tensor) -> Tensor:
        """Reconstruct (B, C, D, H, W) under the mask (B, d, h, w)."""
        x = volume * expand_active(active, PATCH)
        maps = []
        for stage in self.model.encoder.parts():
            for block in stage.children():
                assert isinstance(block, ResidualBlock)
                x = self._block(block, x, active)
            maps.append(x)
        filled = []
        for encoded, densify in zip(reversed(maps), [*self.model.densify, self.full_resolution], strict=True):
            mask = expand_active(active, encoded.shape[2] // active.shape[1])
            normalised = _norm(densify.norm, encoded, active)
            filled.append(densify.projection(torch.where(mask, normalised, densify.token.expand_as(normalised))))
        return self.model.decoder(filled[:-1])

    def _block(self, block: ResidualBlock, x: Tensor, active: Tensor) -> Tensor:
        hidden = functional.leaky_relu(_norm(block.norm1, _convolve(block.conv1, x, active), active), NEGATIVE_SLOPE)
        hidden = _norm(block.norm2, _convolve(block.conv2, hidden, active), active)
        skip = x if block.shortcut is None else _convolve(block.shortcut, x, active)
        return functional.leaky_relu(hidden + skip, NEGATIVE_SLOPE)


def _convolve(convolution: nn.Conv3d, x: Tensor, active: Tensor) -> Tensor:
    x = convolution(x)
    return x * expand_active(active, x.shape[2] // active.shape[1])


def _norm(norm: nn.InstanceNorm3d, x: Tensor, active: Tensor) -> Tensor:
    """Pick out the active voxels of the whole batch, normalise them as one instance, and put them back."""
    where = expand_active(active, x.shape[2] // active.shape[1]).squeeze(1).nonzero(as_tuple=True)
    last = x.permute(0, 2, 3, 4, 1)
    picked = functional.instance_norm(last[where].t()[None], weight=norm.weight, bias=norm.bias, eps=norm.eps)
    back = torch.zeros_like(last)
    back[where] = picked[0].t()
    return back.permute(0, 4, 1, 2, 3)


class PublishedStep:
    """Student, teacher and optimiser."""

    def __init__(self, config: AnatoMaskConfig, network: STUNetConfig) -> None:
        self.config = config
        self.student = PublishedAutoencoder(MaskedAutoencoder(network, config.decoder, config.decoder_width))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()

    def loss(self, batch: MaskedBatch, progress: float) -> Tensor:
        """Compute the student's loss under the mask that follows from the teacher's loss."""
        ratio = masking.hard_ratio(progress, self.config.r0, self.config.rT)
        first = masking.random_mask(batch.noise[:, 0], self.config.mask_ratio)
        with torch.no_grad():
            guidance = self._patch_loss(self.teacher, batch.volume, first)
        masks = [
            masking.self_mask(guidance[i : i + 1].cpu(), first[i : i + 1].cpu(), batch.noise[i : i + 1, 1].cpu(), ratio,
                              self.config.mask_ratio)[0]
            for i in range(len(first))
        ]  # fmt: skip
        hidden = torch.cat(masks).to(batch.volume.device)
        return self._patch_loss(self.student, batch.volume, hidden).sum() / (hidden.sum() + 1e-8)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Update the EMA, one tensor after the other."""
        decay = ema_decay(progress, self.config)
        for mine, theirs in zip(self.teacher.state_dict().values(), self.student.state_dict().values(), strict=True):
            mine.copy_(decay * mine + (1 - decay) * theirs)

    def _patch_loss(self, model: PublishedAutoencoder, volume: Tensor, hidden: Tensor) -> Tensor:
        grid = [side // PATCH for side in volume.shape[2:]]
        target, guess = _patchify(volume), _patchify(model(volume, ~hidden.view(len(hidden), *grid)))
        deviation = (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        error = (guess - (target - target.mean(-1, keepdim=True)) / deviation) ** 2
        return error.mean(-1) * hidden


def _patchify(volume: Tensor) -> Tensor:
    """Reshape (B, C, D, H, W) to (B, n, 4096·C)."""
    batch, channels, *sides = volume.shape
    d, h, w = (side // PATCH for side in sides)
    patches = volume.reshape(batch, channels, d, PATCH, h, PATCH, w, PATCH)
    return torch.einsum("bcdphqwr->bdhwpqrc", patches).reshape(batch, d * h * w, -1)
