"""How a training goes, whatever it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anatomask.settings import Settings


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """How long, how large, how often, how precisely."""

    epochs: int = 1000
    """Epochs; the schedules run over all of them."""
    steps_per_epoch: int | None = None
    """Updates per epoch; none: so many that an epoch sees each case `crops_per_case` times."""
    crops_per_case: int = 1
    """Crops of each case in an epoch."""
    batch_size: int = 4
    """Samples per update, over all workers."""
    accumulate: int = 1
    """Parts of a worker's share of a batch, computed one after another to save memory; BatchNorm sees one part."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
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
    """Divide weights, gradients and moments among the workers (FSDP2), for networks that fit no single one."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """stop: at the last good checkpoint; skip: leave the update out, and go on."""
    checkpoint_every: int = 200
    """Updates between checkpoints."""
    validate_every: int = 5
    """Epochs between validations and between pictures."""
    log_every: int = 10
    """Updates between transfers of the scalars from the device; each update's are recorded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1_000_000, "epochs", "steps_per_epoch", "crops_per_case", "batch_size", "accumulate")
        self.require_range(1, 1_000_000_000, "checkpoint_every", "validate_every", "log_every")
        if self.shard_weights and self.precision == "fp16":
            raise ValueError("shard_weights does not go with precision fp16, whose scale each worker would lower alone")
        if self.shard_weights and not self.synchronise_norms:
            raise ValueError("shard_weights needs synchronise_norms: a checkpoint holds one worker's statistics")

    def updates_per_epoch(self, cases: int) -> int:
        """Updates per epoch for a data set of `cases` cases."""
        return self.steps_per_epoch or max(1, self.crops_per_case * cases // self.batch_size)
