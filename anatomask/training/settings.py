"""Settings of a training, whatever it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from anatomask.settings import Settings

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""The arithmetic of forward and backward."""
Tracker = Literal["wandb", "mlflow"]
"""The optional package that follows runs: Weights & Biases, MLflow."""


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """Length, size and arithmetic of a training."""

    epochs: int = 1000
    """Number of epochs; the schedules run over all of them."""
    steps_per_epoch: int | None = None
    """Updates per epoch. Default: enough to draw `crops_per_case` crops from each case."""
    crops_per_case: int = 1
    """Crops of each case in an epoch."""
    batch_size: int = 4
    """Samples per update, over all workers."""
    accumulate: int = 1
    """Parts of a worker's share of a batch, computed one after another to save memory; BatchNorm sees one part."""
    precision: Precision = "fp32"
    """Arithmetic of forward and backward (fp16 with scaled losses); weights stay fp32."""
    synchronise_norms: bool = True
    """Normalise over the whole batch where several workers share it, so that their number does not matter."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    channels_last: bool = True
    """Memory format of volumes and convolution weights."""
    recompute_activations: bool = False
    """Compute each block's activations again in the backward pass: much less memory for a third more time."""
    shard_weights: bool = False
    """Divide weights, gradients and moments among the workers (FSDP2), for networks that do not fit on one."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """Reaction to an update that is not finite. stop: end at the last good checkpoint; skip: leave it out."""
    checkpoint_every: int = 200
    """Updates between checkpoints."""
    checkpoint_minutes: float = 30.0
    """Minutes after which a checkpoint is written at the latest, however few the updates."""
    validate_every: int = 5
    """Epochs between validations and between pictures."""
    log_every: int = 10
    """Updates between transfers of the scalars from the device; those of every update are recorded."""
    trackers: tuple[Tracker, ...] = ()
    """Experiment trackers that follow the run beside TensorBoard: docs/watching.md."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1_000_000, "epochs", "steps_per_epoch", "crops_per_case", "batch_size", "accumulate")
        self.require_range(1, 1_000_000_000, "checkpoint_every", "validate_every", "log_every")
        self.require_range(0.01, 1_000_000, "checkpoint_minutes")
        self.require_distinct("trackers")
        if self.shard_weights and self.precision == "fp16":
            raise ValueError("shard_weights does not go with precision fp16, whose scale each worker would lower alone")
        if self.shard_weights and not self.synchronise_norms:
            raise ValueError("shard_weights needs synchronise_norms: a checkpoint holds one worker's statistics")

    def updates_per_epoch(self, cases: int) -> int:
        """Return the updates per epoch for a data set of `cases` cases."""
        return self.steps_per_epoch or max(1, self.crops_per_case * cases // self.batch_size)


@dataclass(frozen=True)
class OptimiserConfig(Settings):
    """AdamW or SGD, with a learning rate that rises linearly, then decays to zero."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimiser: AdamW, or SGD with Nesterov momentum."""
    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 1e-5
    """Weight decay: decoupled in AdamW, added to the gradient in SGD."""
    weight_decay_end: float | None = None
    """Weight decay at the end, to which it changes by half a cosine. Default: it does not change."""
    decayed: Literal["all", "matrices"] = "all"
    """Parameters that decay. matrices: none of one dimension (biases, norms) and, in finetuning, no learned tokens and
    positions."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    eps: float = 1e-8
    """Epsilon of AdamW (the published finetuning uses 1e-4)."""
    momentum: float = 0.99
    """Momentum of SGD."""
    warmup_epochs: int = 20
    """Epochs of linear warm-up."""
    rate_every: Literal["epoch", "update", "sample"] = "epoch"
    """Interval at which the learning rate changes. sample: every schedule has as many steps as an epoch has samples, of
    which an update takes one, so that it hardly moves within an epoch, then jumps (UniMiSS's code)."""
    warmup_updates: int | None = None
    """Updates of linear warm-up, in place of warmup_epochs. The rate then changes with every update, also in its decay.
    Default: warmup_epochs."""
    warmup_lr: float = 1e-6
    """Learning rate at which warm-up begins."""
    lr_end: float = 0.0
    """Learning rate to which the cosine falls."""
    decay: Literal["cosine", "poly"] = "cosine"
    """Decay to zero after the warm-up: half a cosine, or (1 - t)^0.9."""
    decoder_first: tuple[int, int] = (0, 0)
    """Epochs of warm-up and of decay in which only finetuning's decoder learns, before the schedule of all."""
    freeze: int = 0
    """Epochs at the start in which finetuning's encoder does not learn; equal to training.epochs, it never learns."""
    encoder_lr_factor: float = 1.0
    """Factor of the learning rate of finetuning's encoder."""
    layer_decay: float = 1.0
    """Factor per stage of the encoder's learning rate: for six stages applied once for the last, six times for the
    first; for a transformer's twelve blocks likewise, and thirteen times for what is before them."""
    clip: float = 12.0
    """Largest norm of the gradient."""
    clip_of: Literal["all", "each"] = "all"
    """Gradient whose norm is clipped. all: that of all parameters together; each: that of each on its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(0, 1_000_000, "warmup_epochs", "freeze", "decoder_first")
        self.require_range(0, 1_000_000_000, "warmup_updates")
        for name in ("lr", "eps", "clip", "encoder_lr_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        for name in ("weight_decay", "warmup_lr", "lr_end"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.weight_decay_end is not None and not (self.weight_decay > 0 and 0 <= self.weight_decay_end < math.inf):
            raise ValueError(
                f"weight_decay_end must not be negative, and weight_decay positive beside it, not "
                f"{self.weight_decay_end} and {self.weight_decay}"
            )
        if self.rate_every == "sample" and (self.decay != "cosine" or self.warmup_updates is not None):
            raise ValueError("rate_every sample needs decay cosine, and no warmup_updates")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), not {self.betas}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), not {self.momentum}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in (0, 1], not {self.layer_decay}")

    @property
    def encoder_start(self) -> int:
        """First epoch in which the encoder learns."""
        return max(self.freeze, sum(self.decoder_first))

    @property
    def moments(self) -> int:
        """Number of tensors that the optimiser keeps per parameter."""
        return 2 if self.name == "adamw" else int(self.momentum > 0)
