"""What tests share: real scans, one Ray for the whole session, and small prepared data sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from anatomask.cluster import ClusterConfig, running

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from more threads, and threads that spin on busy cores cost much."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans: ANATOMASK_REAL_DATA, else ../shared/data beside the repository; skips without it."""
    folder = Path(os.environ.get("ANATOMASK_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder}; set ANATOMASK_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """An embedded Ray for all tests that need one."""
    with running(ClusterConfig()):
        yield
