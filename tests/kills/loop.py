"""Kill a command at random moments, start it again until it ends, and compare with one that was left alone."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kills.processes import end, kill, members, victims
from tests.kills.subjects import CASES, CUT_OFF, RATIOS, SPACE, SUBJECTS, Place, Subject, preparation, verb

REPOSITORY = Path(__file__).parents[2]
POLL_SECONDS = 0.05
EARLY = 0.3
"""Share of the kills that hit a start; the others hit the work."""
LATEST = 1.15
"""Largest share of the work at which a kill may be due; the last kills of a run would else crowd at its end."""
PATIENCE = 10
"""Factor of an undisturbed run's seconds beyond which, with 5 minutes more for a start, a life hangs."""
LINGER_SECONDS = 120
"""Seconds that processes may stay after their driver was killed."""
MESSAGE = re.compile(r"^anatomask(?: [\w-]+)?: .*", re.MULTILINE)


class Failed(Exception):
    """A kill was not survived as it should have been."""


@dataclass
class State:
    """A folder that remembers what was done, so that the program goes on where it was stopped."""

    folder: Path
    seed: int

    @property
    def inputs(self) -> Path:
        """Return the folder of what the subjects read."""
        return self.folder / "inputs"

    def records(self, subject: str, event: str) -> list[dict[str, Any]]:
        """Return what was written down of a subject: its undisturbed run, kills, and ends."""
        path = self.folder / "records.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row for row in rows if row["subject"] == subject and row["event"] == event]

    def write(self, subject: str, event: str, **values: Any) -> None:
        """Write a record down."""
        with (self.folder / "records.jsonl").open("a") as file:
            file.write(json.dumps({"subject": subject, "event": event, **values}) + "\n")


@dataclass
class Life:
    """One start of a command, until it ended or was killed."""

    process: subprocess.Popen[bytes]
    log: Path
    said_before: int
    started: float = field(default_factory=time.monotonic)
    advanced: bool = False
    """Whether it has been seen to work: before, there is nothing that it could save."""
    struck: list[str] = field(default_factory=list)
    """Kinds of the processes that were killed."""

    def seconds(self) -> float:
        """Return its age."""
        return time.monotonic() - self.started

    def said(self) -> str:
        """Return what it wrote."""
        return self.log.read_bytes()[self.said_before :].decode(errors="replace")

    def last_words(self) -> str:
        """Return what it wrote, once the process that speaks for one that Ray has ended had time to."""
        deadline = time.monotonic() + 5
        while not MESSAGE.search(self.said()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return self.said()


@contextmanager
def alive(argv: Sequence[str], log: Path) -> Iterator[Life]:
    """Start a program in a session of its own; on the way out by an error, all of it is killed."""
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=file, cwd=REPOSITORY, start_new_session=True)
    try:
        yield Life(process, log, before)
    except BaseException:
        end(process.pid)
        process.wait()
        raise


def run(argv: Sequence[str], log: Path, code: int = 0) -> None:
    """Run a program to its end. Raises Failed on another exit code."""
    with alive(argv, log) as life:
        if life.process.wait() != code:
            raise Failed(f"{shlex.join(argv)}: exit code {life.process.returncode}\n{life.said()[-2000:]}")


def make_inputs(state: State) -> None:
    """Make the scans, one of them cut off, the shards, the sweep's space, and the network that the subjects read.

    The network is that of the run of `finetune` that nothing kills.
    """
    inputs, log = state.inputs, state.folder / "inputs.txt"
    if not (inputs / "shards" / "dataset.json").exists():
        run(verb(f"phantom --out {inputs / 'scans'} --cases {CASES} --size 48 --spacing 6"), log)
        scan = inputs / "scans" / "Totalsegmentator_dataset" / CUT_OFF / "ct.nii.gz"
        scan.write_bytes(scan.read_bytes()[:1000])
        run(verb(f"{preparation(inputs)} --out {inputs / 'shards'}"), log, code=1)
    (inputs / RATIOS).write_text(SPACE)
    if not (inputs / "finetuned").exists():
        finetuning = Loop(SUBJECTS["finetune"], 0, state)
        finetuning.undisturbed()
        (inputs / "finetuned").symlink_to(finetuning.folder / "whole" / "run")


@dataclass
class Loop:
    """The kills of one subject."""

    subject: Subject
    count: int
    """Kills in all."""
    state: State

    @property
    def folder(self) -> Path:
        """Return the folder of its runs."""
        return self.state.folder / self.subject.name

    def run(self) -> None:
        """Deliver the kills that the state does not know of yet, and let what was killed last come to its end.

        Raises:
            Failed: an end without a message, another result than without kills, or a run that hangs.
        """
        make_inputs(self.state)
        self.whole = self.undisturbed()
        with Leftovers(self.state, self.subject.name) as leftovers:
            while True:
                attempt = len(self.records("end"))
                begun = any(row["attempt"] == attempt for row in self.records("kill"))
                if len(self.records("kill")) >= self.count and not begun:
                    break
                place = Place(self.state.inputs, self.folder / f"attempt-{attempt}")
                if not begun:
                    self.begin(place)
                self.attempt(attempt, place, leftovers)
            leftovers.wait()

    def records(self, event: str) -> list[dict[str, Any]]:
        """Return what was written down of this subject."""
        return self.state.records(self.subject.name, event)

    def undisturbed(self) -> dict[str, Any]:
        """Return the record of the run that nothing kills: its seconds, those before any progress, its digests."""
        if known := self.records("whole"):
            return known[0]
        place = Place(self.state.inputs, self.folder / "whole")
        self.begin(place)
        with alive(self.subject.argv(place), self.folder / "whole.txt") as life:
            first = None
            while life.process.poll() is None:
                if first is None and self.subject.progress(place) > 0:
                    first = life.seconds()
                time.sleep(POLL_SECONDS)
            seconds = life.seconds()
        if life.process.returncode != self.subject.code:
            raise Failed(f"{place.out} without a kill: exit code {life.process.returncode}\n{life.said()[-2000:]}")
        digests = self.subject.digests(place)
        self.state.write(self.subject.name, "whole", seconds=seconds, first=first or seconds, digests=digests)
        return self.records("whole")[0]

    def begin(self, place: Place) -> None:
        """Make the folder of a run anew."""
        shutil.rmtree(place.out, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.subject.begin(place)

    def attempt(self, attempt: int, place: Place, leftovers: Leftovers) -> None:
        """Start a run again and again until it ends by itself, then compare it with the undisturbed one."""
        argv, log = self.subject.argv(place), place.out.with_suffix(".txt")
        starts = 0
        while True:
            starts += 1
            before = self.subject.finished(place)
            with alive(argv, log) as life:
                killed = self.disturb(attempt, place, life, leftovers)
            after = self.subject.finished(place)
            if again := [name for name, when in before.items() if after.get(name) != when]:
                raise Failed(f"{place.out}: {again[0]} was finished, and was done again")
            if self.ended_well(place, life):
                break
            self.check_end(place, life, killed)
        digests, expected = self.subject.digests(place), self.whole["digests"]
        if other := sorted(
            name for name in expected.keys() | digests.keys() if expected.get(name) != digests.get(name)
        ):
            raise Failed(f"{place.out}: {len(other)} of {len(expected)} values differ, as {', '.join(other[:5])}")
        if not self.records("end"):  # once is enough
            run(argv, log, self.subject.code)
            if self.subject.digests(place) != digests:
                raise Failed(f"{place.out}: the same command once more changed what was finished")
        self.state.write(self.subject.name, "end", attempt=attempt, starts=starts, compared=len(digests))

    def disturb(self, attempt: int, place: Place, life: Life, leftovers: Leftovers) -> str:
        """Kill processes of a life at random moments until it has ended; return what was killed last, if anything."""
        limit = PATIENCE * self.whole["seconds"] + 300
        before = self.subject.progress(place)
        last = ""
        while True:
            number = len(self.records("kill"))
            rng = random.Random(f"{self.state.seed} {self.subject.name} {number} {attempt}")
            due = self.moment(rng, place, life) if number < self.count else lambda: False
            while life.process.poll() is None and not due():
                leftovers.look()
                life.advanced |= self.subject.progress(place) != before
                if life.seconds() > limit:
                    raise Failed(f"{place.out} hangs: {self.whole['seconds']:.0f} s would do\n{life.said()[-2000:]}")
                time.sleep(POLL_SECONDS)
            if life.process.poll() is not None:
                return last
            time.sleep(rng.uniform(0, 0.3))
            last = self.strike(rng, number, attempt, place, life)
            life.struck += [last] if last else []
            if last not in ("driver", "all"):
                continue
            leftovers.add(life.process.pid)
            life.process.wait()
            return last

    def moment(self, rng: random.Random, place: Place, life: Life) -> Callable[[], bool]:
        """Draw a moment: seconds of a start, or a share of the work; beyond 1, the run comes to its end before."""
        if rng.random() < EARLY:
            due = life.seconds() + rng.uniform(0, self.whole["first"])
            return lambda: life.seconds() >= due
        share = rng.uniform(self.subject.progress(place), LATEST)
        return lambda: self.subject.progress(place) >= share

    def strike(self, rng: random.Random, number: int, attempt: int, place: Place, life: Life) -> str:
        """Kill a process of a kind that is drawn, the driver where there is none of the kind; return the kind."""
        session = life.process.pid
        kind = rng.choice(self.subject.victims)
        kind = kind if victims(session, kind) else "driver"
        found = victims(session, kind)
        if not found:  # it ended this moment
            return ""
        chosen = found if kind == "all" else [rng.choice(found)]
        number_of = rng.choice(self.subject.signals) if kind == "driver" else signal.SIGKILL
        at = self.subject.progress(place)
        if number_of == signal.SIGINT:
            os.killpg(session, signal.SIGINT)  # as Ctrl-C in a terminal
        else:
            kill(chosen, number_of)
        self.state.write(
            self.subject.name, "kill", number=number, attempt=attempt, victim=kind, signal=number_of.name,
            command=chosen[0].command[:80].strip(), seconds=round(life.seconds(), 2), progress=round(at, 3),
        )  # fmt: skip
        return kind

    def ended_well(self, place: Place, life: Life) -> bool:
        """Return whether a life came to the end of the work."""
        return life.process.returncode == self.subject.code and self.subject.progress(place) >= 1

    def check_end(self, place: Place, life: Life, killed: str) -> None:
        """Refuse an end that no kill explains, and one that says it unclearly."""
        code, said = life.process.returncode, life.last_words()
        told = len(MESSAGE.findall(said)) == 1 and "Traceback" not in said
        known = killed or "no kill"
        if killed in ("driver", "all"):
            last = self.records("kill")[-1]
            how = signal.Signals[last["signal"]]
            kept = self.subject.saved(place)
            known = f"{', '.join(life.struck)} ({how.name}) at {last['progress']:.3f} of the work; {kept:.3f} is saved"
            dying = "raylet" in life.struck  # a Ray that had been killed before can save nothing more
            saved = not life.advanced or dying or kept > last["progress"] - 1e-3
            in_order = code == 128 + how and "Traceback" not in said and saved
            # -how: before it listens to signals
            ok = code == -how or (how != signal.SIGKILL and in_order) or (dying and told)
        else:
            ok = bool(killed) and told
        if not ok:
            raise Failed(f"{place.out}: exit code {code} after {known}, unclear\n{said[-3000:]}")


@dataclass
class Leftovers:
    """Sessions whose driver was killed, until the last of their processes has ended."""

    state: State
    subject: str
    since: dict[int, float] = field(default_factory=dict)
    looked: float = 0.0

    def __enter__(self) -> Leftovers:
        return self

    def __exit__(self, *error: object) -> None:
        for session in self.since:
            end(session)

    def add(self, session: int) -> None:
        """Watch a session."""
        self.since[session] = time.monotonic()

    def look(self) -> None:
        """Write down which sessions have ended, at most once a second."""
        if time.monotonic() < self.looked + 1:
            return
        self.looked = time.monotonic()
        for session, since in list(self.since.items()):
            if not members(session):
                self.state.write(self.subject, "gone", seconds=round(time.monotonic() - since, 1))
                del self.since[session]

    def wait(self) -> None:
        """Wait for all of them, and write down which stay."""
        while self.since and time.monotonic() < max(self.since.values()) + LINGER_SECONDS:
            time.sleep(POLL_SECONDS)
            self.look()
        for session in self.since:
            self.state.write(self.subject, "stays", processes=[one.command[:80] for one in members(session)])
