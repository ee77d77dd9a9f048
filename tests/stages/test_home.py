"""A home folder that cannot be written: nothing needs it, and nothing is printed about it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.cluster import own_token

REPOSITORY = Path(__file__).parents[2]


def test_a_token_is_ours_only_where_ray_could_not_keep_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with own_token():
        assert "RAY_AUTH_TOKEN" not in os.environ
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    tokens = []
    for _ in range(2):
        with own_token():
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert tokens[0] != tokens[1] and min(map(len, tokens)) == 64
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's")
    with own_token():
        assert os.environ["RAY_AUTH_TOKEN"] == "the user's"
    assert os.environ["RAY_AUTH_TOKEN"] == "the user's"


def anatomask(*argv: str, home: Path) -> subprocess.CompletedProcess[str]:
    settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    settings |= {"HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, "-m", "anatomask", *argv], env=settings, capture_output=True, text=True)


@pytest.fixture
def no_home(tmp_path: Path) -> Path:
    """What cannot be a folder, even for root."""
    path = tmp_path / "home"
    path.write_text("no folder")
    return path


def test_a_dry_run_without_home_prints_its_plan_alone(tmp_path: Path, no_home: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (12, 12, 12)).astype(np.int16)
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scans" / "a.nii.gz")
    shown = anatomask("survey", str(tmp_path / "scans"), "--dry-run", home=no_home)
    assert (shown.returncode, shown.stderr) == (0, ""), shown.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_survey_without_home_goes_through(tmp_path: Path, no_home: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (12, 12, 12)).astype(np.int16)
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scans" / "a.nii.gz")
    shown = anatomask("survey", str(tmp_path / "scans"), "--output", str(tmp_path / "survey"), home=no_home)
    assert shown.returncode == 0, shown.stderr
    assert [line for line in shown.stderr.splitlines() if not re.search(r"^$| [01]/1\b", line)] == []  # progress alone
    assert (tmp_path / "survey" / "contact-sheet.png").is_file()
