"""`prepare` killed at random moments and started again, on real scans."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LABELLED, UNLABELLED, KILLS = 8, 4, 6


@pytest.fixture
def source(real_data: Path, tmp_path: Path) -> Path:
    """Twelve real head-and-neck CTs, eight of them labelled, and one that is cut off."""
    given, folder = real_data / "openkbp", tmp_path / "Dataset001_KBP"
    for name, count in (("imagesTr", LABELLED), ("labelsTr", LABELLED), ("imagesUnlabeled", UNLABELLED)):
        (folder / name).mkdir(parents=True)
        for path in sorted((given / name).iterdir())[:count]:
            shutil.copy(path, folder / name)
    shutil.copy(given / "dataset.json", folder)
    broken = sorted((folder / "imagesUnlabeled").iterdir())[1]
    broken.chmod(0o644)
    broken.write_bytes(broken.read_bytes()[:1000])
    return folder


def start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command, in a session of its own."""
    command = [sys.executable, "-m", "pipelines", "prepare", "--source", str(source), "--out", str(out)]
    spacing = ["--preprocess.spacing", "2", "2", "2"]
    return subprocess.Popen(
        [*command, *spacing], cwd=REPOSITORY, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started, as a power cut would."""
    while members := [pid for pid in session_members(process.pid) if pid != os.getpid()]:
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()  # reap it
        time.sleep(0.05)
    process.wait()


def session_members(session: int) -> list[int]:
    """The processes of a session that still run."""
    members = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, own = status.read_text().rpartition(") ")[2].split()[:4]
            if int(own) == session and state != "Z":
                members.append(int(status.parent.name))
    return members


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shards(folder: Path) -> dict[str, int]:
    """When each finished case was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("cases/[!.]*.parquet")}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for what was left running in /proc")
def test_killed_at_random_moments_it_ends_like_an_uninterrupted_run(source: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(source, whole)
    shown = process.communicate()[0].decode()
    kill(process)
    assert process.returncode == 1, shown  # the scan that is cut off
    assert "11 (11 now), 1 skipped" in shown

    seen_unfinished = 0
    for _ in range(KILLS):
        before = shards(broken)
        process = start(source, broken)
        more = rng.choice([-1, 0, 0, 1, 2])  # -1: whenever, perhaps before Ray is up
        while more >= 0 and process.poll() is None and len(shards(broken)) <= len(before) + more:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 4 if more < 0 else 0.7))
        running = process.poll() is None
        kill(process)
        after = shards(broken)
        assert before.items() <= after.items()  # what was finished is not written again
        seen_unfinished += running and 0 < len(after) < LABELLED + UNLABELLED - 1
    assert seen_unfinished  # else nothing was tested

    (broken / "cases" / ".kbp_001.parquet.0123abcd.tmp").write_bytes(b"what a write leaves that is cut off")
    before = shards(broken)
    process = start(source, broken)
    shown = process.communicate()[0].decode()
    kill(process)
    assert process.returncode == 1, shown
    assert f"11 ({11 - len(before)} now), 1 skipped" in shown
    assert before.items() <= shards(broken).items()
    assert contents(broken) == contents(whole)
