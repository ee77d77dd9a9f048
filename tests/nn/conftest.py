"""Where the published implementation's numbers are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with `b1_depth1.npz` and its checkpoint; beside the real data. Skips where it is absent."""
    here = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("ANATOMASK_REAL_DATA", here)).parent / "golden"
    if not (folder / "b1_depth1.npz").is_file():
        pytest.skip(f"the published implementation's numbers are not at {folder}")
    return folder
