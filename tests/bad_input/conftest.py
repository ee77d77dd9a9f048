"""The good input, made once, and a copy of it for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_input import world


@pytest.fixture(scope="session")
def good_input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good input of every verb."""
    root = tmp_path_factory.mktemp("good")
    world.build(root)
    return root


@pytest.fixture
def folder(good_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, in which the command runs."""
    world.copy(good_input, tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for path in [tmp_path, *tmp_path.rglob("*")]:  # what a kind took the permission from
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
