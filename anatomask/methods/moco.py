"""MoCo v2 (He et al., CVPR 2020; Chen et al., arXiv 2003.04297) in 3D: find a view's key among those of other scans.

No 3D code by the authors exists. Head, queue, loss and moving average are those of facebookresearch/moco, commit
132aea9; crops, their changes and the optimiser are this project's choices.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.methods.base import StepResult
from anatomask.methods.two_views import Branch, TwoViewsConfig, TwoViewsMethod, Views, follow
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.distributed import all_gather, exchanged
from anatomask.nn.norms import widened


@dataclass(frozen=True)
class MoCoConfig(TwoViewsConfig):
    """Settings of MoCo v2. The encoder has the five stages that masked methods train with patches of 16 voxels."""

    name = "moco"
    encoder = "query.encoder."

    hidden: int = 2048
    """Width of the projector's hidden layer. The authors' is that of the encoder's output, 2048 in ResNet-50."""
    projection: int = 128
    """Width of a projection."""
    queue: int = 1024
    """Number of keys in the queue, a multiple of training.batch_size. At batch 4, a key stays for 256 updates, as the
    authors' 65536 do at batch 256."""
    temperature: float = 0.2
    """Temperature by which similarities are divided."""
    ema_decay: float = 0.999
    """EMA decay of the key encoder's parameters, which follow the query encoder's after each update."""
    change: float = 2.0
    """Factor by which noise, blur, brightness, contrast, low resolution and gamma are likelier than in finetuning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 65_536, "hidden", "projection")
        self.require_range(1, 10_000_000, "queue")
        self.require_range(0, 3, "change")
        self.require_range(0.001, 1000, "temperature")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), not {self.ema_decay}")

    def label(self) -> str:
        """Return the name in tables."""
        return "MoCo v2"

    def check_batch(self, size: int, workers: int) -> None:
        """Check that whole batches fill the queue, and that workers can exchange their samples.

        Raises:
            ValueError: the queue is no multiple of the batch, or the batch none of the workers.
        """
        if self.queue % size:
            raise ValueError(
                f"method.queue {self.queue} must be a multiple of training.batch_size {size}, such as {256 * size}"
            )
        if size % workers:
            raise ValueError(
                f"training.batch_size {size} must be a multiple of cluster.workers {workers}: the workers of MoCo v2 "
                "exchange their samples one for one"
            )

    def build(self, network: BackboneConfig) -> MoCo:
        """Build the query encoder with its projector, the key encoder as a copy, and a random queue."""
        encoder = network.encoder(self.stages(network))
        query = Branch(encoder, projector(encoder.widths[-1], self.hidden, self.projection))
        return MoCo(query, self, network.in_channels)


def projector(in_width: int, hidden: int, out_width: int) -> nn.Sequential:
    """Build Linear – ReLU – Linear, the head of v2."""
    return nn.Sequential(nn.Linear(in_width, hidden), nn.ReLU(), nn.Linear(hidden, out_width))


def unit(projections: Tensor) -> Tensor:
    """Scale the rows of (B, width) to length 1, in float32 at least."""
    return functional.normalize(widened(projections), dim=1)


class MoCo(TwoViewsMethod):
    """Query encoder, which is trained, key encoder, which follows it, and the keys of earlier batches."""

    queue: Tensor
    """Unit columns (projection, keys)."""
    pointer: Tensor
    """Place (1,) int64 of the next key."""

    def __init__(self, query: Branch, config: MoCoConfig, in_channels: int = 1) -> None:
        super().__init__(config.change, in_channels)
        self.query = query
        self.key = copy.deepcopy(query).requires_grad_(False)
        self.register_buffer("queue", functional.normalize(torch.randn(config.projection, config.queue), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
        self.new_keys: list[Tensor] = []
        """Keys of this worker since the last update."""
        self.config = config

    def trainable(self) -> Branch:
        """Return the query encoder with its projector."""
        return self.query

    def networks(self) -> Sequence[nn.Module]:
        """Return query and key encoder."""
        return [self.query, self.key]

    def contrast(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Compare unit queries (B, width) with their keys (B, width) and with the queue.

        Returns:
            Logits (B, 1 + queue), the own key first, and the places (B,) of the own keys in them, which are 0.
        """
        with torch.autocast(queries.device.type, enabled=False):
            similarities = torch.cat(((queries * keys).sum(1, keepdim=True), queries @ self.queue), 1)
        return similarities / self.config.temperature, torch.zeros_like(queries[:, 0], dtype=torch.long)

    def training_step(self, batch: Views, progress: float) -> StepResult:
        """Compute the cross-entropy of each query's own key against the queue before this batch.

        Workers exchange the key views, so that a BatchNorm gives no hint at the query's batch (section 3.3). The
        networks here have none. Scalar: accuracy, the share of the queries whose own key is the most similar.
        """
        queries = unit(self.query(batch[0]))
        with torch.no_grad():
            keys = unit(exchanged(self._project, batch[1]) if self.training else self._project(batch[1]))
        if self.training:
            self.new_keys.append(keys)
        logits, labels = self.contrast(queries, keys)
        found = (logits.detach().argmax(1) == labels).to(logits.dtype).mean()
        return StepResult(functional.cross_entropy(logits, labels), {"accuracy": found})

    def _project(self, volume: Tensor) -> Tensor:
        return self.key(volume.contiguous(memory_format=self.memory_format))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Put the batch's keys into the queue, in the order of the samples, and let the key encoder follow.

        Keys that are not finite leave the queue as it was. The published code moves the key encoder at the beginning of
        the next step, which is the same.
        """
        if self.new_keys:
            keys = all_gather(torch.cat(self.new_keys)).T.to(self.queue.dtype)
            self.new_keys.clear()
            places = (self.pointer + torch.arange(keys.shape[1], device=keys.device)) % self.queue.shape[1]
            finite = keys.isfinite().all()
            self.queue[:, places] = torch.where(finite, keys, self.queue[:, places])
            self.pointer.copy_((self.pointer + finite * keys.shape[1]) % self.queue.shape[1])
        follow(self.key, self.query, self.config.ema_decay)
