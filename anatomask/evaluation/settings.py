"""Settings of inference."""

from __future__ import annotations

from dataclasses import dataclass

from anatomask.settings import Settings


@dataclass(frozen=True)
class InferenceConfig(Settings):
    """Settings of the sliding windows."""

    overlap: float = 0.5
    """Share by which neighbouring windows overlap."""
    mirror: bool = True
    """True: average over all mirrorings of the axes along which the training crops were mirrored."""
    batch: int = 2
    """Number of windows per forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 4096, "batch")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), not {self.overlap}")
