"""Settings of inference and of scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anatomask.settings import Settings

Metric = Literal["nsd", "hd95", "lesions"]
"""Metrics that are computed beside DSC and volumes."""
AbsentRule = Literal["totalsegmentator", "nnunet", "flare"]
"""Rules for the classes that a case's reference lacks."""


@dataclass(frozen=True)
class InferenceConfig(Settings):
    """Settings of the sliding windows."""

    overlap: float = 0.5
    """Share by which neighbouring windows overlap."""
    mirror: bool = True
    """True: average over all mirrorings of the axes along which the training crops were mirrored."""
    batch: int = 2
    """Number of windows per forward pass of a GPU; a CPU, which gains nothing from more, takes one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 4096, "batch")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), not {self.overlap}")


@dataclass(frozen=True)
class ScoringConfig(Settings):
    """Settings of the scores, see docs/evaluation.md."""

    metrics: tuple[Metric, ...] | None = None
    """Metrics beside DSC and volumes. Default: nsd and hd95; on AutoPET II lesions, too."""
    absent: AbsentRule = "totalsegmentator"
    """DSC and NSD of a class that a case's reference lacks. totalsegmentator: left out; nnunet: 0 where it is
    predicted, else left out; flare: 0 where it is predicted, else 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_distinct("metrics")

    def metrics_of(self, reader: str) -> tuple[Metric, ...]:
        """Return the metrics for data of a reader."""
        if self.metrics is not None:
            return self.metrics
        return ("nsd", "hd95", "lesions") if reader == "autopet2" else ("nsd", "hd95")
