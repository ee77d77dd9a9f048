"""AnatoMask: reconstruction-guided self-masking for 3D medical image segmentation (Li et al., ECCV 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anatomask.api import (
        features,
        load_encoder,
        load_network,
        predict,
        prepare_scan,
        read_scan,
        score_case,
        self_mask,
    )

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "features",
    "load_encoder",
    "load_network",
    "predict",
    "prepare_scan",
    "read_scan",
    "score_case",
    "self_mask",
]


def __getattr__(name: str) -> Any:
    """Import what is exported when it is asked for: torch takes seconds, which `--help` need not pay."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from anatomask import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
