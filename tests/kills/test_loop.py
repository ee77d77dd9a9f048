"""The loop of kills itself, on a program that counts: what goes wrong is found."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kills.loop import Failed, Loop, State
from tests.kills.processes import PROC, end, members, victims
from tests.kills.subjects import Digests, Place, Subject, file_digests

pytestmark = pytest.mark.skipif(not PROC.is_dir(), reason="processes are looked for in /proc")

GOES_ON = """
import sys, time, pathlib
for number in range(10):
    path = pathlib.Path(sys.argv[1], f"{number}.txt")
    if not path.exists():
        time.sleep(0.1)
        path.with_suffix(".new").write_text(str(number))
        path.with_suffix(".new").rename(path)
"""
DOUBLES = "import pathlib, sys; pathlib.Path(sys.argv[1], 'starts').open('a').write('x')\n" + GOES_ON
FORGETS = "import pathlib, sys; [path.unlink() for path in pathlib.Path(sys.argv[1]).iterdir()]\n" + GOES_ON
GIVES_UP = "import pathlib, sys\nif list(pathlib.Path(sys.argv[1]).iterdir()): sys.exit('Traceback')\n" + GOES_ON


class Counting(Subject):
    """Ten files, one after another."""

    name = "counting"
    victims = ("driver", "all")

    def __init__(self, script: str) -> None:
        self.script = script

    def argv(self, place: Place) -> list[str]:
        """Return the script."""
        return [sys.executable, "-c", self.script, str(place.out)]

    def progress(self, place: Place) -> float:
        """Return the share of the files that are there."""
        return len(self.finished(place)) / 10

    def finished(self, place: Place) -> dict[str, int]:
        """Return when each file was written."""
        return {path.name: path.stat().st_mtime_ns for path in place.out.glob("?.txt")}

    def digests(self, place: Place) -> Digests:
        """Return digests of all files."""
        return file_digests(place.out, "[!.]*")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """A folder without inputs."""
    monkeypatch.setattr("tests.kills.loop.make_inputs", lambda state: None)
    return State(tmp_path, seed=1)


def test_a_program_that_goes_on_passes_and_the_loop_goes_on_too(state: State) -> None:
    for kills in (2, 5, 5):  # as if it had been stopped in between
        Loop(Counting(GOES_ON), kills, state).run()
        assert len(state.records("counting", "kill")) == kills
    ends = state.records("counting", "end")
    assert ends and all(row["compared"] == 10 for row in ends)
    assert not state.records("counting", "stays")


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        (DOUBLES, "1 of 11 values differ, as starts|once more changed what was finished"),
        (FORGETS, "was finished, and was done again"),
        (GIVES_UP, "exit code 1"),
    ],
)
def test_a_program_that_does_not_is_found_out(script: str, fault: str, state: State) -> None:
    """After a kill, or when an attempt that came to its end before any kill is started once more."""
    with pytest.raises(Failed, match=fault):
        Loop(Counting(script), 20, state).run()


def test_processes_are_found_by_session_and_kind() -> None:
    script = (
        "import subprocess, time; "
        "subprocess.Popen(['bash', '-c', 'exec -a ray::RayTrainWorker sleep 60']); "
        "subprocess.Popen(['bash', '-c', 'exec -a ray::TrainController sleep 60'], process_group=0); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        while not all(victims(process.pid, kind) for kind in ("worker", "actor")):
            assert process.poll() is None
            time.sleep(0.02)
        found = {kind: victims(process.pid, kind) for kind in ("driver", "worker", "actor", "raylet", "all")}
        assert [len(found[kind]) for kind in found] == [1, 1, 1, 0, 3]
        assert found["driver"][0].id == process.pid
    finally:
        end(process.pid)
        process.wait()
    assert not members(process.pid)
