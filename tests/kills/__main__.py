"""Random kills of every command that runs for long: `python -m tests.kills STATE [--pretrain 60] [--seed 7] …`.

Each command is killed at random moments and started again until it ends; what it leaves must be what an undisturbed
run leaves. A table and one JSON object with the figures are printed. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.kills.loop import Failed, Loop, State
from tests.kills.subjects import SUBJECTS

COUNTS = {"pretrain": 60, "sweep": 20, "prepare": 20, "evaluate": 20, "finetune": 20, "predict": 20}
"""Kills of each command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the loops; return 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("state", type=Path, help="folder of what was done; with another one, all begins anew")
    parser.add_argument("--seed", type=int, help="seed of moments and victims; default: drawn, and printed")
    for name, count in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"kills of {name}; default {count}")
    given = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job would ignore the first
        signal.signal(number, signal.default_int_handler)
    state = open_state(given.state, given.seed)
    print(f"seed {state.seed}, in {state.folder}", flush=True)
    failed = {}
    for name, subject in SUBJECTS.items():
        count = getattr(given, name)
        started = time.monotonic()
        if count:
            try:
                Loop(subject, count, state).run()
            except Failed as failure:
                failed[name] = str(failure)
        if count:
            state.write(name, "time", seconds=round(time.monotonic() - started, 1))
    figures = [figures_of(state, name) for name in COUNTS if getattr(given, name)]
    show(figures, failed)
    return 1 if failed else 0


def open_state(folder: Path, seed: int | None) -> State:
    """Return the state in a folder, with the seed that it was begun with."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "seed.json"
    if not path.exists():
        path.write_text(json.dumps(int(time.time()) if seed is None else seed))
    known = json.loads(path.read_text())
    if seed not in (None, known):
        sys.exit(f"{folder} was begun with --seed {known}: give that, or another folder")
    return State(folder, known)


def figures_of(state: State, name: str) -> dict[str, Any]:
    """Return the figures of one subject."""
    kills, ends = state.records(name, "kill"), state.records(name, "end")
    gone = [row["seconds"] for row in state.records(name, "gone")]
    return {
        "command": name,
        "kills": len(kills),
        "victims": dict(Counter(row["victim"] for row in kills)),
        "signals": dict(Counter(row["signal"] for row in kills)),
        "before any progress": sum(row["progress"] == 0 for row in kills),
        "runs compared": len(ends),
        "starts": sum(row["starts"] for row in ends),
        "values compared": sum(row["compared"] for row in ends),
        "longest until gone, s": max(gone, default=None),
        "stayed": len(state.records(name, "stays")),
        "minutes": round(sum(row["seconds"] for row in state.records(name, "time")) / 60, 1),
    }


def show(figures: Sequence[dict[str, Any]], failed: dict[str, str]) -> None:
    """Print the table, what failed, and all as one JSON object in the last line."""
    table = Table(title="Random kills, compared with undisturbed runs", title_justify="left")
    for title in figures[0] if figures else ():
        table.add_column(title, overflow="fold")
    table.add_column("result")
    for row in figures:
        cells = (
            ", ".join(f"{k} {v}" for k, v in cell.items()) if isinstance(cell, dict) else str(cell)
            for cell in row.values()
        )
        table.add_row(*cells, "[red]failed" if row["command"] in failed else "[green]equal")
    Console(width=200).print(table)
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    print(json.dumps({"figures": figures, "failed": {name: reason.splitlines()[0] for name, reason in failed.items()}}))


def shown(cell: Any) -> str:
    """Return the text of a cell."""
    return ", ".join(f"{name} {count}" for name, count in cell.items()) if isinstance(cell, dict) else str(cell)


if __name__ == "__main__":
    raise SystemExit(main())
