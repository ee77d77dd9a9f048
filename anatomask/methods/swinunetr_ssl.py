"""Swin UNETR pretraining (Tang et al., CVPR 2022): rotation, contrast and reconstruction of views with boxes cut out.

Source: Project-MONAI/research-contributions, `SwinUNETR/Pretrain`, commit 21ed8e5. These are this project's choices:
crops are those of the other methods (128³ voxels, not cut to the body); the network reads them as finetuning does, and
0 … 1 in the cut-outs and the loss is the range to which normalisation clips, not -1000 … 1000 HU; gradients are clipped
at the norm of the other methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.data.cutouts import VIEWS, Plan, TurnedViewsDraw, cut, turned, unit_crops
from anatomask.data.samples import LoaderConfig
from anatomask.methods.base import Method, MethodConfig, StepResult
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.swin_unetr import SwinUNETRConfig
from anatomask.nn.distributed import all_gather, gather_rows, rank, workers
from anatomask.nn.interpolation import Doubling
from anatomask.nn.norms import widened

TEMPERATURE = 0.5
"""Temperature of NT-Xent."""
CONTRAST = 512
"""Width of the vectors that are contrasted."""


@dataclass(frozen=True)
class SwinUNETRSSLConfig(MethodConfig):
    """Settings of the pretraining. Its transformer is that of the network `swin_unetr`."""

    name = "swinunetr_ssl"
    encoder = "network.encoder."
    splits_batches = False  # samples are compared with each other, and cut out of each other
    optimiser: ClassVar = {"lr": 4e-4, "weight_decay": 0.1, "warmup_lr": 0.0, "warmup_epochs": 0, "warmup_updates": 500}

    across_workers: bool = True
    """Compare and cut samples with those of all workers, so that the number of workers does not matter. False: each
    worker on its own, as the authors' code does."""

    def label(self) -> str:
        """Return the name in tables."""
        return "Swin UNETR SSL"

    def stages(self, network: BackboneConfig) -> int:
        """Count the encoder stages that are trained: all."""
        return len(network.strides)

    def check_network(self, network: BackboneConfig) -> None:
        """Check that the network is a Swin UNETR.

        Raises:
            ValueError: it is another.
        """
        if not isinstance(network, SwinUNETRConfig):
            raise ValueError(
                f"network {network.name} cannot be pretrained by {self.label()}: choose --network swin_unetr"
            )

    def check_crop(self, size: Sequence[int]) -> None:
        """Check that crops can be turned in the plane of their last two axes.

        Raises:
            ValueError: those sides differ.
        """
        if size[1] != size[2]:
            edge = max(size[1:])
            raise ValueError(
                f"loader.patch_size {tuple(size)}: {self.label()} turns crops by 90° in the plane of the last two "
                f"axes, which must be equally long: choose {(size[0], edge, edge)}"
            )

    def check_batch(self, size: int, workers: int) -> None:
        """Check that each sample is compared with another, and that workers can exchange their samples.

        Raises:
            ValueError: there is one sample, or the batch is no multiple of the workers.
        """
        if self.across_workers and size % workers:
            raise ValueError(
                f"training.batch_size {size} must be a multiple of cluster.workers {workers}, which exchange their "
                "samples one for one; or set --method.no-across-workers"
            )
        if (size if self.across_workers else size // workers) < 2:
            raise ValueError(
                f"training.batch_size {size} must be at least {2 if self.across_workers else 2 * workers}: "
                f"{self.label()} contrasts each sample with others"
            )

    def draw(self, loader: LoaderConfig) -> TurnedViewsDraw:
        """Return what draws a crop and the seeds of its views."""
        return TurnedViewsDraw(loader)

    def build(self, network: BackboneConfig) -> SwinUNETRSSL:
        """Build the transformer and its heads."""
        return SwinUNETRSSL(HeadedTransformer(network), self, network.in_channels)


class HeadedTransformer(nn.Module):
    """Transformer with the three heads on its deepest map, of width `width`."""

    def __init__(self, network: BackboneConfig) -> None:
        super().__init__()
        self.encoder = network.encoder()
        width = self.encoder.widths[-1]
        self.rotation = nn.Linear(width, 4)
        self.contrast = nn.Linear(width, CONTRAST)
        widths = [width // factor for factor in (1, 2, 4, 8, 16, 16)]
        self.reconstruction = nn.Sequential(
            *(layer for pair in pairwise(widths) for layer in upsampling(*pair)),
            nn.Conv3d(widths[-1], network.in_channels, 1),
        )

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute logits of the rotation (B, 4), vectors (B, 512), and the reconstruction of (B, C, D, H, W).

        The first two read the first and the second token of the map, in raster order.
        """
        deepest = self.encoder(volume)[-1]
        tokens = deepest.flatten(2)
        return self.rotation(tokens[..., 0]), self.contrast(tokens[..., 1]), self.reconstruction(deepest)


def upsampling(in_width: int, out_width: int) -> list[nn.Module]:
    """List conv3 – InstanceNorm – leaky ReLU – trilinear upsampling by 2."""
    return [
        nn.Conv3d(in_width, out_width, 3, padding=1),
        nn.InstanceNorm3d(out_width),
        nn.LeakyReLU(),
        Doubling(),
    ]


def nt_xent(vectors: Tensor, own: Sequence[int] | slice = slice(None)) -> Tensor:
    """Compute the mean NT-Xent loss of the rows `own` of (2N, width), where rows i and N + i are views of one sample.

    The denominator has all rows but the row itself (Chen et al., arXiv 2002.05709, equation 1).
    """
    unit = functional.normalize(widened(vectors), dim=1)
    with torch.autocast(unit.device.type, enabled=False):
        similarity = (unit @ unit.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    positives = torch.arange(len(unit), device=unit.device).roll(len(unit) // 2)
    return functional.cross_entropy(similarity[own], positives[own])


@dataclass(frozen=True)
class Views:
    """Two views of each sample: those of all samples, then the others."""

    cut: Tensor
    """Input of the network (2·B, C, D, H, W), normalised."""
    whole: Tensor
    """Views before boxes were cut out, scaled to 0 … 1: what is reconstructed."""
    turns: Tensor
    """Number of quarter turns (2·B,) int64."""


class SwinUNETRSSL(Method):
    """Transformer with its heads, all of which are trained."""

    def __init__(self, network: HeadedTransformer, config: SwinUNETRSSLConfig, in_channels: int = 1) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.in_channels = in_channels

    def trainable(self) -> HeadedTransformer:
        """Return the transformer with its heads."""
        return self.network

    @property
    def together(self) -> bool:
        """Return whether the samples of all workers count. A fixed sample is the same at each of them."""
        return self.training and self.config.across_workers and workers() > 1

    def batch(self, sample: Mapping[str, Tensor]) -> Views:
        """Turn each crop twice, and cut boxes out of the views."""
        crops, low, extent = unit_crops(sample)
        seeds, here = sample["seeds"], slice(0, len(crops))
        if self.together:
            here = slice(rank() * len(crops), (rank() + 1) * len(crops))
            crops, seeds = all_gather(crops), all_gather(seeds.to(crops.device))
        size, places = crops.shape[2:], range(len(crops))[here]
        inputs, whole, turns = [], [], []
        for of_view in seeds.T.tolist():
            plans = [Plan.of(seed, size, len(crops)) for seed in of_view]
            views = [turned(crop, plan.turns) for crop, plan in zip(crops, plans, strict=True)]
            inputs.append(torch.stack(cut(views, plans, places)) * extent + low)
            whole.append(torch.stack(views[here]))
            turns += [plan.turns for plan in plans[here]]
        labels = torch.tensor(turns).to(crops.device, non_blocking=True)
        return Views(torch.cat(inputs).contiguous(memory_format=self.memory_format), torch.cat(whole), labels)

    def dummy_batch(self, samples: int, size: Sequence[int]) -> Views:
        """Return views with arbitrary values."""
        volumes = torch.empty(2, VIEWS * samples, self.in_channels, *size)
        return Views(volumes[0], volumes[1], torch.zeros(VIEWS * samples, dtype=torch.long))

    def training_step(self, batch: Views, progress: float) -> StepResult:
        """Sum the three losses, each with weight 1.

        Scalars: the losses, and rotation_accuracy, the share of the views whose rotation is found.
        """
        logits, vectors, reconstruction = self.network(batch.cut)
        losses = self.losses(logits, vectors, reconstruction, batch)
        found = (logits.detach().argmax(1) == batch.turns).to(losses["rotation_loss"].dtype).mean()
        scalars = {name: loss.detach() for name, loss in losses.items()}
        return StepResult(torch.stack(list(losses.values())).sum(), {**scalars, "rotation_accuracy": found})

    def losses(self, logits: Tensor, vectors: Tensor, reconstruction: Tensor, batch: Views) -> dict[str, Tensor]:
        """Compute the loss of each head's output, by its name in the logs: cross-entropy, NT-Xent and L1."""
        return {
            "rotation_loss": functional.cross_entropy(widened(logits), batch.turns),
            "contrast_loss": self._contrast(widened(vectors)),
            "reconstruction_loss": functional.l1_loss(widened(reconstruction), batch.whole),
        }

    def _contrast(self, vectors: Tensor) -> Tensor:
        """Compute the NT-Xent loss of this worker's vectors (2·B, width)."""
        if not self.together:
            return nt_xent(vectors)
        here, every = len(vectors) // VIEWS, workers() * len(vectors) // VIEWS
        rows = gather_rows(vectors).unflatten(0, (workers(), VIEWS, here)).transpose(0, 1).flatten(0, 2)
        return nt_xent(rows, [view * every + rank() * here + place for view in range(VIEWS) for place in range(here)])

    @torch.no_grad()
    def views(self, batch: Views) -> Mapping[str, Tensor]:
        """Return both views of the first sample: whole, cut and reconstructed."""
        shown: dict[str, Tensor] = {}
        for number, place in enumerate((0, len(batch.cut) // VIEWS), start=1):
            _, _, reconstruction = self.network(batch.cut[place : place + 1])
            shown |= {
                f"view {number}": batch.whole[place],
                f"cut {number}": batch.cut[place],
                f"reconstruction {number}": reconstruction[0],
            }
        return shown
