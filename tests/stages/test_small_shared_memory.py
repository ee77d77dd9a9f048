"""A machine, or a container, whose /dev/shm is far too small for Ray's object store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from anatomask.cli.main import main
from anatomask.data.shards import PreparedDataset

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_goes_elsewhere(tmp_path: Path) -> None:
    smaller = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=16m none /dev/shm && exec "$@"', "sh"]
    tried = subprocess.run([*smaller, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no file system may be mounted here: {tried.stderr.strip()}")
    scans, shards = tmp_path / "scans", tmp_path / "shards"
    assert main(["phantom", "--out", str(scans), "--cases", "3", "--size", "32", "--spacing", "8"]) == 0
    command = ["-m", "anatomask", "prepare", "--recipe", "tiny", "--source", str(scans), "--out", str(shards)]
    ended = subprocess.run([*smaller, sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(PreparedDataset.open(str(shards)).records) == 3
