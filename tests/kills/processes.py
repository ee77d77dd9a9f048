"""Processes of one command, found through /proc, and killed by their ids alone."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
RAYLET = re.compile(r"\S*/raylet ")
WORKER = re.compile(r"ray::(RayTrainWorker|Map|_one_case)")
"""What trains, reads or prepares, and scores."""
ACTOR = re.compile(r"ray::(?!IDLE|RuntimeEnvAgent|DashboardAgent)\w")
"""Any of Ray's processes that holds an actor or does a task."""


@dataclass(frozen=True)
class Process:
    """A running process."""

    id: int
    command: str


def members(session: int) -> list[Process]:
    """Return the processes of a session that still run; the session's number is the id of its first process."""
    return [Process(id, command_of(id)) for id in process_ids() if session_of(id) == session]


def process_ids() -> Iterator[int]:
    """Yield the ids of all processes."""
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            yield int(folder.name)


def session_of(id: int) -> int | None:
    """Return the session of a process; None where it has ended."""
    with suppress(OSError):
        state, _, _, session = (PROC / str(id) / "stat").read_text().rpartition(") ")[2].split()[:4]
        return None if state == "Z" else int(session)
    return None


def command_of(id: int) -> str:
    """Return the command line of a process, empty where it has ended."""
    with suppress(OSError):
        return (PROC / str(id) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def victims(session: int, kind: str) -> list[Process]:
    """Return the processes of a kind: driver, raylet, worker, actor (what is no worker), or all of the session."""
    running = members(session)
    if kind == "all":
        return running
    if kind == "driver":
        return [process for process in running if process.id == session]
    pattern = {"raylet": RAYLET, "worker": WORKER, "actor": ACTOR}[kind]
    found = [process for process in running if pattern.match(process.command)]
    return [process for process in found if kind != "actor" or not WORKER.match(process.command)]


def kill(processes: list[Process], number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to each of the processes that still runs."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.id, number)


def end(session: int) -> None:
    """Kill all of a session, and what it starts meanwhile."""
    while running := [process for process in members(session) if process.id != os.getpid()]:
        kill(running)
        time.sleep(0.05)
