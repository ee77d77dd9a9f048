"""Nine minutes on a GPU: `python benchmarks/gpu.py --data data/openkbp.gpu --out data/gpu`.

It needs one GPU, PyTorch, NumPy, SciPy, PyYAML, safetensors, xxhash, Matplotlib, TensorBoard, pytest, pytest-timeout
and hypothesis, but neither Ray nor MONAI nor readers of NIfTI. The parts, the most valuable first, run in processes of
their own, which are ended at the part's limit:

a. The tests that need a GPU.
b. A small evidence run at base 16 and 32, both at once (gpu_evidence.py).
c. Steps at the published sizes against the published way (gpu_steps.py).
d. The sparse encoder's backends (encoder.py).

Each finding is added to OUT/results.jsonl at once, and OUT/table.txt is rewritten after each part; OUT/log.txt holds
all output. The limits are shares of --minutes; time that a part leaves goes to the next. The last line is JSON. Exit
code 1 means that a part failed; the findings of the others are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch
from measure import machine

from anatomask.files import write_text

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SECONDS = {"a": 60, "b": 300, "c": 120, "d": 45}
"""Seconds of each part in nine minutes; with other minutes, or without some parts, all change in proportion."""
LAST = 10
"""Seconds at the end in which no part runs: for the last processes to end, and for the table."""
GRACE = 3
"""Seconds between asking processes to end and ending them."""
START = 8
"""Seconds until a program first checks the clock: the imports."""
ALONE = ("tests/nn/test_upsampling.py", "tests/nn/test_backends.py", "tests/training/test_telemetry.py",
         "tests/benchmarks/test_gpu_training.py")  # fmt: skip
"""Files with tests on a GPU that need only PyTorch."""
WHOLE = ("tests/training/test_update.py", "tests/evaluation/test_inference.py")
"""Files with tests on a GPU that need the whole environment, and real scans."""
OUTCOME = re.compile(r"^(\S+::\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b")
ALL_OUTCOMES = re.compile(r"^=+ (.*\b(?:passed|failed|skipped|errors?)\b.*) in [\d.]+s\b.*=+$")


@dataclass
class Part:
    """Programs that run at the same time, and their findings."""

    name: str
    commands: list[list[str]]
    told_time: bool
    """True if the programs accept --seconds, and end by themselves."""
    found: list[dict[str, Any]] = field(default_factory=list)
    status: str = "not run"
    seconds: float = 0.0


def parts_of(arguments: argparse.Namespace) -> list[Part]:
    """Return the chosen parts with their commands, in the order in which they run."""
    quick, device = arguments.quick, ["--device", arguments.device]
    beside = [4] if quick else [16, 32]
    evidence = [*device, "--data", str(arguments.data), "--out", str(arguments.out), "--beside", str(len(beside))]
    evidence += ["--weights", str(arguments.weights)] if arguments.weights else []
    steps, encoder = [*device], [*device, "--rounds", "5"]
    if quick:
        evidence += ["--edge", "32", "--batches", "2", "2", "--labels", "1", "--seeds", "1", "--updates", "2"]
        evidence += ["--pretraining-updates", "2", "--points", "1"]
        steps += ["--sizes", "s", "--patch", "32", "32", "32", "--rounds", "1", "--no-compile", "--precisions", "tf32"]
        encoder += ["--quick", "--patch", "32", "32", "32"]
    whole = all(find_spec(name) for name in ("ray", "monai", "nibabel", "blosc2"))
    tests = ["-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", "a_gpu or device_of_the_logits"]
    tests += [*ALONE, *WHOLE] if whole else ["--noconftest", *ALONE]
    commands = {
        "a": [tests],
        "b": [[_program("gpu_evidence"), "--base", str(base), *evidence] for base in beside],
        "c": [[_program("gpu_steps"), *steps]],
        "d": [[_program("encoder"), *encoder]],
    }
    return [
        Part(name, [[sys.executable, *command] for command in commands[name]], told_time=name in ("b", "c"))
        for name in arguments.parts
    ]


def _program(name: str) -> str:
    return str(HERE / f"{name}.py")


class Results:
    """Folder that results are written to as they come."""

    def __init__(self, out: Path) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self.lines = (out / "results.jsonl").open("a", encoding="utf-8")
        self.log = (out / "log.txt").open("a", encoding="utf-8")

    def take(self, part: Part, line: str) -> None:
        """Keep a line that a program printed: a finding, the outcome of a test, or a line for only the log."""
        print(line, file=self.log, flush=True)
        finding = _finding(part, line)
        if finding is not None:
            part.found.append(finding)
            print(json.dumps({"part": part.name, **finding}), file=self.lines, flush=True)
            print(f"{part.name}  {finding['what']}: {finding['says']}", flush=True)

    def table(self, parts: list[Part]) -> str:
        """Write the table of all parts so far, and return it. A later finding replaces one of the same name."""
        rows = []
        for part in parts:
            shown = {each["what"]: each["says"] for each in part.found if not each.get("detail")}
            rows += [[part.name, what, says] for what, says in shown.items()]
            rows.append([part.name, "the part itself", f"{part.status}, {part.seconds:.0f} s"])
        width = max(len(row[1]) for row in rows)
        text = "\n".join(f"{name}  {what.ljust(width)}  {says}" for name, what, says in rows)
        write_text(self.out / "table.txt", text + "\n")
        return text


def _finding(part: Part, line: str) -> dict[str, Any] | None:
    if (outcome := OUTCOME.match(line)) is not None:
        test, result = outcome.groups()
        return {"what": test, "says": result.lower(), "detail": result in ("PASSED", "SKIPPED")}
    if (outcomes := ALL_OUTCOMES.match(line)) is not None:
        return {"what": "tests", "says": outcomes[1]}
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if "what" not in found:  # the last line of a benchmark of its own
        figures = {name: value for name, value in found.items() if isinstance(value, float)}
        says = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
        return {"what": "encoder" if part.name == "d" else "figures", "says": says, **found}
    return found


def run(part: Part, ends: float, results: Results) -> None:
    """Run a part's programs until they are done or the time is over."""
    start = time.monotonic()
    part.status = "cut off"
    told = ["--seconds", f"{max(1.0, ends - start - START):.0f}"] if part.told_time else []
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    printed: queue.Queue[str | None] = queue.Queue()
    processes = []
    try:
        for command in part.commands:
            process = subprocess.Popen(
                [*command, *told], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                encoding="utf-8", errors="replace", start_new_session=True,
            )  # fmt: skip
            processes.append(process)
            assert process.stdout is not None
            threading.Thread(target=_listen, args=(process.stdout, printed), daemon=True).start()
        listening = len(processes)
        while listening and time.monotonic() < ends:
            try:
                line = printed.get(timeout=max(0.01, min(1.0, ends - time.monotonic())))
            except queue.Empty:
                continue
            if line is None:
                listening -= 1
            else:
                results.take(part, line)
        late = listening > 0
    finally:
        end(processes)
        part.seconds = time.monotonic() - start
    while not printed.empty():
        if (line := printed.get()) is not None:
            results.take(part, line)
    codes = [process.returncode for process in processes]
    part.status = "ended at its limit" if late else "done" if not any(codes) else f"failed with exit codes {codes}"


def _listen(output: TextIO, printed: queue.Queue[str | None]) -> None:
    for line in output:
        printed.put(line.rstrip("\n"))
    printed.put(None)


def end(processes: list[subprocess.Popen[str]]) -> None:
    """Ask the processes that still run, and all that they started, to end; then kill them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            try:
                os.killpg(process.pid, number)  # also what a process that has ended left behind
            except ProcessLookupError:
                continue
        for process in processes:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue


def main() -> None:
    """Run the parts, and print their findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/openkbp.gpu"), help="file of gpu_pack.py")
    parser.add_argument("--out", type=Path, default=Path("data/gpu"), help="folder for results and weights")
    parser.add_argument("--weights", type=Path, help="folder --out of an earlier run, whose pretraining is continued")
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS))
    parser.add_argument("--minutes", type=float, default=9.0, help="time after which everything has ended")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="everything small, to see that it runs")
    arguments = parser.parse_args()
    start = time.monotonic()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch sees no GPU; --device cpu --quick shows that everything runs")
    if "b" in arguments.parts and not arguments.data.is_file():
        raise SystemExit(
            f"--data {arguments.data} is missing: write it with benchmarks/gpu_pack.py, or choose --parts a c d"
        )
    for name in ("data", "out", "weights"):  # the programs run in the repository
        given = getattr(arguments, name)
        setattr(arguments, name, None if given is None else given.absolute())
    arguments.parts = [name for name in SECONDS if name in arguments.parts]
    usable = 60 * arguments.minutes - LAST
    whole = sum(SECONDS[name] for name in arguments.parts)
    limit = {name: usable * SECONDS[name] / whole for name in arguments.parts}
    parts, results = parts_of(arguments), Results(arguments.out)

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    ends = start
    try:
        for part in parts:
            ends += limit[part.name]
            run(part, ends - GRACE, results)
            results.table(parts)
    finally:  # also where it is ended from outside
        print(f"GPU, {(time.monotonic() - start) / 60:.1f} minutes\n{results.table(parts)}")
        everything = {
            "parts": {part.name: {"status": part.status, "seconds": part.seconds} for part in parts},
            "found": [{"part": part.name, **found} for part in parts for found in part.found],
            "machine": machine(arguments.device),
        }
        print(json.dumps(everything))
    if any(part.status.startswith("failed") for part in parts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
