"""Functions that the benchmarks share: timing side by side, a table, and one JSON object as the last line."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from anatomask.nn.backbones.stunet import SIZES

Batch = TypeVar("Batch")

PATCH = 16
"""Edge of a hidden patch in voxels, as published."""


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Measure the median seconds of each candidate, called in turn `rounds` times after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, candidate in candidates.items():
            took = timed(candidate, device)
            if turn:
                seconds[name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(candidate: Callable[[], object], device: str) -> float:
    """Measure the seconds of one call, the device's work included."""
    synchronise(device)
    start = time.perf_counter()
    candidate()
    synchronise(device)
    return time.perf_counter() - start


def per_iteration(
    batches: Iterator[Batch], step: Callable[[Batch], object], iterations: int, device: str
) -> dict[str, float]:
    """Measure the seconds of an iteration of a training, and those of them that pass until its batch is there.

    The first three iterations are left out. Seconds are the process's on a CPU, and the clock's on a GPU.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    began = waiting = 0.0
    for number in range(-3, iterations):
        asked = clock()
        batch = next(batches)
        if number >= 0:
            waiting += clock() - asked
        step(batch)
        if number == -1:
            synchronise(device)
            began = clock()
    synchronise(device)
    return {"seconds": (clock() - began) / iterations, "waiting": waiting / iterations}


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory_gib(make: Callable[[], Callable[[], object]], device: str) -> tuple[Callable[[], object], float | None]:
    """Build what `make` builds; measure the peak GPU memory of building and calling it, above that before."""
    if device != "cuda":
        return make(), None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    built = make()
    for _ in range(2):  # an optimiser has its moments from the second call on
        built()
    torch.cuda.synchronize()
    return built, (torch.cuda.max_memory_allocated() - before) / 2**30


def matrix_products(dtype: torch.dtype, device: str) -> tuple[Callable[[], object], int]:
    """Make products of two large square matrices, and count their FLOPs: their speed is the peak for comparison.

    On a GPU there are ten in a row, because a single one takes a millisecond, of which a part is its start.
    """
    size, times = (8192, 10) if device == "cuda" else (4096, 1)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def run() -> None:
        for _ in range(times):
            a @ b

    return run, 2 * size**3 * times


def machine(device: str) -> dict[str, object]:
    """Describe the machine on which the figures were measured."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line for line in lines if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def report(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], result: Mapping[str, object]) -> None:
    """Print the table, then `result` as one line of JSON."""
    table(title, header, rows)
    print(json.dumps(result))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    cells = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(title)
    for first, *others in cells:
        print("  ".join([first.ljust(widths[0]), *(o.rjust(w) for o, w in zip(others, widths[1:], strict=True))]))


def parse_json_lines(text: str) -> list[dict[str, Any]]:
    """Parse the lines of a benchmark's output that are JSON objects."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def tell(what: str, says: str, **figures: object) -> None:
    """Print one finding at once, as a line of JSON: its name, its text in a table, and its figures."""
    print(json.dumps({"what": what, "says": says, **figures}), flush=True)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the flags that the benchmarks of networks share, with the device's defaults filled in."""
    parser.add_argument("--quick", action="store_true", help="size S, few rounds: within a minute")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["b"], help="the ratios are the first's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--patch", nargs=3, type=int, help="default: 64 64 64 on CPU, 112 112 128 on GPU")
    parser.add_argument("--batch", type=int, help="default: 1 on CPU, 4 on GPU")
    parser.add_argument("--mask-ratio", type=float, default=0.6)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on CPU, bfloat16 on GPU")
    parser.add_argument(
        "--compile",
        nargs="*",
        choices=["dense", "blocks"],
        help="compile these backends (all that are torch's own where none is named)",
    )
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    gpu = arguments.device == "cuda"
    arguments.patch = arguments.patch or ([112, 112, 128] if gpu else [64, 64, 64])
    arguments.batch = arguments.batch or (4 if gpu else 1)
    if arguments.compile == []:
        arguments.compile = ["dense", "blocks"]
    arguments.compile = arguments.compile or []
    arguments.dtype = arguments.dtype or ("bfloat16" if gpu else "float32")
    if arguments.quick:
        arguments.sizes, arguments.rounds = ["s"], 3
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return arguments


def setting(arguments: argparse.Namespace) -> str:
    """Describe what was measured, for a table's title."""
    compiled = f", compiled: {', '.join(arguments.compile)}" if arguments.compile else ""
    return (
        f"{'x'.join(map(str, arguments.patch))}, batch {arguments.batch}, γ = {arguments.mask_ratio}, "
        f"{arguments.device} {arguments.dtype}{compiled}"
    )
