"""Settings of inference and of scoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from anatomask.settings import Settings

Metric = Literal["nsd", "hd95", "lesions", "nsd_1mm", "nsd_2mm"]
"""Metrics that are computed beside DSC and volumes."""
NSD_AT: Mapping[Metric, float] = {"nsd_1mm": 1.0, "nsd_2mm": 2.0}
"""Tolerance in mm, for all classes, of each NSD that is not at the data set's own tolerances."""
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
    """Metrics beside DSC and volumes; nsd is at the data set's tolerances, nsd_1mm and nsd_2mm are at theirs. Default:
    nsd and hd95; on AutoPET II lesions, too, on AMOS22 nsd_1mm and nsd_2mm."""
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
        return USUAL_METRICS.get(reader, ("nsd", "hd95"))


USUAL_METRICS: Mapping[str, tuple[Metric, ...]] = {
    "autopet2": ("nsd", "hd95", "lesions"),
    "amos22": ("nsd", "hd95", "nsd_1mm", "nsd_2mm"),
}
"""Metrics of data sets, by their readers, that have others than NSD and HD95; AMOS22 publishes no tolerance."""
