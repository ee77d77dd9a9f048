"""Time of steps at the published sizes on a GPU, against the published way: `python benchmarks/gpu_steps.py`.

Pretraining is measured in the published way as released (float32, whose convolutions PyTorch rounds to TensorFloat-32)
and in bfloat16, and in ours in both, and compiled. Finetuning is measured in ours in bfloat16, compiled and not. Each
result is printed at once as a line of JSON: median milliseconds, samples/s, share of the speed of ten matrix products
in a row in the same arithmetic, peak memory. Ways that compile for minutes come last; ways that do not fit in memory
are reported.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from measure import matrix_products, peak_memory_gib, tell, timed
from pretrain_step import Step, check_same_loss, counted, our_step, published_step, random_batch, whole_step
from torch.nn.utils.memory_format import convert_conv3d_weight_memory_format

from anatomask.nn.backbones.stunet import SIZES, STUNet
from anatomask.training.losses import segmentation_loss
from anatomask.training.update import set_arithmetic

BATCH = {"s": 1, "b": 4, "l": 4, "h": 2}
"""Samples of a pretraining step; at size H, 4 samples of the published way exceed a GPU's memory."""
FINETUNING_BATCH = 2
SECONDS_TO_COMPILE = {"s": 20, "b": 40, "l": 120, "h": 200}
"""Approximate seconds of a compilation, so that none is begun in vain; L was measured on an H200."""


@dataclass(frozen=True)
class Way:
    """One way to compute a step."""

    size: str
    name: str
    """Name of the way: published, finetuning, or a sparse backend."""
    precision: str
    """Arithmetic: tf32 or bf16."""
    compiled: bool = False

    @property
    def finetuning(self) -> bool:
        """Return whether it is a finetuning."""
        return self.name == "finetuning"

    @property
    def dtype(self) -> str:
        """Return the name of the precision in `pretrain_step`."""
        return "bfloat16" if self.precision == "bf16" else "float32"

    @property
    def batch(self) -> int:
        """Return the samples of a step."""
        return min(FINETUNING_BATCH, BATCH[self.size]) if self.finetuning else BATCH[self.size]

    def __str__(self) -> str:
        compiled = ", compiled" if self.compiled else ""
        return f"{self.size.upper()} {self.name}, {self.precision}{compiled}, batch {self.batch}"


def ways(sizes: list[str], precisions: list[str], compiled: bool) -> list[Way]:
    """List the ways to measure, the most valuable first."""
    first, fast = sizes[0], precisions[0]
    found = [
        *(Way(size, "published", precision) for size in sizes for precision in reversed(precisions)),
        *(Way(size, "blocks", fast) for size in sizes),
        Way(first, "finetuning", fast),
    ]
    found.sort(key=lambda way: sizes.index(way.size) + (way.name == "finetuning") * len(sizes))
    slow = [Way(size, name, fast, compiled=True) for size in sizes for name in ("blocks", "finetuning")]
    rest = [Way(size, "blocks", precision) for size in sizes for precision in precisions[1:]]
    return [*found, *(slow[:2] if compiled else []), *rest, *(slow[2:] if compiled else [])]


def measure(way: Way, arguments: argparse.Namespace) -> None:
    """Measure one way, and print the result."""
    set_arithmetic(way.precision)
    torch.backends.cudnn.deterministic = way.name != "published"  # which asks for nothing
    settings = argparse.Namespace(
        device=arguments.device, dtype=way.dtype, batch=way.batch, patch=arguments.patch, mask_ratio=0.6
    )
    gflop = flops(way.size, way.name, way.batch, arguments.device, tuple(arguments.patch)) / 1e9
    start = time.monotonic()
    built, memory = peak_memory_gib(partial(make, way, settings), arguments.device)
    if arguments.device != "cuda":
        built()
    warm = time.monotonic() - start
    seconds = statistics.median(timed(built, arguments.device) for _ in range(arguments.rounds))
    share = 1e9 * gflop / seconds / peak(way.dtype, arguments.device)
    gib = "" if memory is None else f", {memory:.1f} GiB"
    tell(
        str(way),
        f"{1e3 * seconds:.0f} ms, {way.batch / seconds:.2f} samples/s, {100 * share:.0f} % of matrix products{gib}",
        seconds=seconds,
        first_steps_seconds=warm,
        samples_per_second=way.batch / seconds,
        gflop=gflop,
        share_of_matrix_products=share,
        peak_memory_gib=memory,
        patch=arguments.patch,
    )


def make(way: Way, settings: argparse.Namespace) -> Step:
    """Build the step of a way."""
    network = SIZES[way.size]
    with torch.device(settings.device):  # drawing size H's weights on a CPU takes tens of seconds
        if way.finetuning:
            return finetuning_step(way, settings)
        batch = random_batch(settings)
        if way.name == "published":
            return published_step(network, batch, settings)
        return our_step(way.name, network, batch, settings, way.compiled)


def finetuning_step(way: Way, settings: argparse.Namespace) -> Step:
    """Build a step of finetuning on random crops and labels, prepared as the training task prepares it."""
    device, classes = settings.device, 104 if settings.device == "cuda" else 5  # those of TotalSegmentator
    network = STUNet(SIZES[way.size], classes).to(device)
    network.heads[0].requires_grad_(False)
    convert_conv3d_weight_memory_format(network, torch.channels_last_3d)
    if way.compiled:
        network.compile()
    shape = (settings.batch, 1, *settings.patch)
    volume = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last_3d)
    label = torch.randint(0, classes + 1, shape, device=device, dtype=torch.uint8)
    return whole_step(lambda: segmentation_loss(network(volume), label), network, lambda progress: None, settings)


@cache
def flops(size: str, name: str, batch: int, device: str, patch: tuple[int, ...]) -> int:
    """Count the FLOPs of a step, which the precision does not change; on a GPU in bfloat16, to save memory."""
    dtype = "bfloat16" if device == "cuda" else "float32"
    settings = argparse.Namespace(device=device, dtype=dtype, batch=batch, patch=list(patch), mask_ratio=0.6)
    try:
        return counted(make(Way(size, name, "bf16"), settings))
    finally:
        free(device)


@cache
def peak(dtype: str, device: str) -> float:
    """Measure the FLOP/s of ten matrix products in a row, in the arithmetic that is set."""
    products, work = matrix_products(getattr(torch, dtype), device)
    products()
    return work / statistics.median(timed(products, device) for _ in range(3 if device == "cuda" else 1))


def free(device: str) -> None:
    """Free the memory that is not in use."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def tried(way: Way, work: Callable[[Way], None], device: str) -> bool:
    """Return whether it worked; a failure is printed, and the next way can run."""
    try:
        work(way)
        return True
    except torch.OutOfMemoryError:
        tell(str(way), "out of memory", failed="memory")
    except Exception as error:
        tell(str(way), f"failed: {type(error).__name__}: {str(error).splitlines()[:1]}", failed=str(error)[:1000])
    finally:
        free(device)
    return False


def main() -> None:
    """Measure until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["b", "l", "h"])
    parser.add_argument("--patch", nargs=3, type=int, default=[112, 112, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "tf32"], default=["bf16", "tf32"])
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    ends = time.monotonic() + arguments.seconds
    torch.manual_seed(0)
    check_same_loss(
        SIZES[arguments.sizes[0]],
        random_batch(argparse.Namespace(device="cpu", batch=1, patch=[32, 32, 48], mask_ratio=0.6)),
    )
    missed, worked = [], 0
    for way in ways(arguments.sizes, arguments.precisions, not arguments.no_compile):
        needed = SECONDS_TO_COMPILE[way.size] if way.compiled else 0
        if time.monotonic() + needed > ends:
            missed.append(way)
        else:
            worked += tried(way, partial(measure, arguments=arguments), arguments.device)
    if missed:
        tell("steps that were not reached", "; ".join(map(str, missed)))
    if not worked:
        raise SystemExit("no step could be measured")


if __name__ == "__main__":
    main()
