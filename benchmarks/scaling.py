"""Training on many devices, measured on two processes, predicted for H100s: `python benchmarks/scaling.py [--quick]`.

Three tables. First, how a pretraining update on one and on two gloo workers of one thread each splits into computing,
reducing and waiting (`scaling_steps.py`), and what the arithmetic of `--dry-run` (`anatomask/training/scaling.py`)
makes of the same figures. Then what that arithmetic predicts for the paper's recipes on H100s: a GPU's computing time
is taken from `benchmarks/results/`, the speeds of links and of storage are assumed (`--inside` and so on), and crops
per device stay what they are, so that batches grow with the devices. Last, what the index and the plan of many cases
take before the first batch (`scaling_index.py`). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from measure import machine, parse_json_lines, table
from scaling_index import simulated
from scaling_steps import figures, measured, predicted

from anatomask.cluster_settings import ClusterConfig
from anatomask.config import PretrainConfig
from anatomask.recipes import RECIPES
from anatomask.stages.workload import Load, load_of
from anatomask.training.scaling import LinkConfig, StepTime, step_time
from anatomask.training.settings import TrainingConfig

RESULTS = Path(__file__).parent / "results"
GPU_FILES = ("gpu-h100.txt", "pretrain-step-h*.txt")
"""Files of steps on GPUs, the most fitting first."""
LOADER_FILE = "loader-cpu.txt"
SIZES = {"paper-b": "b", "paper-l": "l", "paper-h": "h"}
"""Size of the network of each recipe, in the files of results."""
PER_DEVICE = 4
"""Number of crops that a device computes: the paper's batch."""
CASES = 1204
"""Number of cases of an epoch: TotalSegmentator's."""
CROP = (112, 112, 128)
CROP_BYTES = 2 * math.prod(CROP)
FAIR = 0.8
"""Share of the time in which devices compute below which more of them are called a waste."""
WAY = re.compile(r"(?P<size>[A-Z]) blocks, bf16(?:, compiled)?, batch (?P<batch>\d+)")
"""Name that `gpu_steps.py` gives to our step in bfloat16."""


@dataclass(frozen=True)
class GpuStep:
    """Step of our pretraining in bfloat16 on a GPU, loading left out."""

    seconds_per_crop: float
    source: str
    """Where the figure is from."""


@dataclass(frozen=True)
class Prediction:
    """What a recipe takes on a number of devices."""

    recipe: str
    devices: int
    batch: int
    updates: int
    step: StepTime
    gradient_bytes: int
    read_mb_per_second: float
    checkpoint_bytes: int
    checkpoint_mb_per_second: float
    """Mean over the run, a checkpoint every `checkpoint_every` updates."""

    @property
    def hours(self) -> float:
        """Hours of the whole training, validation and start left out."""
        return self.updates * self.step.seconds / 3600


def main() -> None:
    """Measure, predict, simulate, and print."""
    arguments = parse()
    links = LinkConfig(arguments.per_machine, arguments.inside, arguments.between, arguments.hop)
    split = measured_split(arguments)
    gpu, read_bytes = gpu_steps(RESULTS), bytes_per_crop(RESULTS)
    recipes, predictions = predicted_recipes(arguments, gpu, read_bytes, links)
    index = simulated(arguments.cases, arguments.readers)
    show_index(index)
    result = {
        "split": split,
        "recipes": recipes,
        "predictions": [
            {**asdict(one), "hours": one.hours, "gpu_hours": one.devices * one.hours, "efficiency": one.step.efficiency}
            for one in predictions
        ],
        "index": index,
        "assumed": {"links": asdict(links), "storage_gb_per_second": arguments.storage, "read_bytes": read_bytes},
        "arguments": vars(arguments),
        "machine": machine("cpu"),
    }
    print(json.dumps(result))


# ---- measured


def measured_split(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the split of an update on one and two workers, and print it with what the arithmetic makes of it."""
    found = {
        count: figures(measured(arguments.recipe, count, arguments.samples, arguments.updates)) for count in (1, 2)
    }
    step, links, cost = predicted(found[2], arguments.recipe, arguments.samples)
    counted = {"sums": cost.exchange.sums, "gradient_bytes": cost.exchange.gradient_bytes}
    columns = ("whole", "seconds", "computing", "cpu", "sums", "gradients", "waiting")
    rows = [
        [f"{count} worker{'s' if count > 1 else ''}", *(f"{1e3 * figure[name]:.0f}" for name in columns)]
        for count, figure in found.items()
    ]
    rows.append(["2 workers, by the dry run", f"{1e3 * step.seconds:.0f}", *["-"] * 6])
    table(
        f"Update of pretraining, recipe {arguments.recipe}, {arguments.samples} crops per worker, gloo, one thread, "
        f"medians of {arguments.updates}: ms",
        ["", "whole", "split", "computing", "CPU", "sums of norms", "gradients", "waiting"],
        rows,
    )
    print(
        f"Exchanged per update: {found[2]['gradient_bytes'] / 1e6:.2f} MB of gradients, {found[2]['count']:.0f} sums "
        f"(counted by the dry run: {counted['gradient_bytes'] / 1e6:.2f} MB and {counted['sums']}); gloo reached "
        f"{links.inside:.3g} GB/s and {links.hop:.0f} µs a hop, which the dry run was given here\n"
    )
    return {
        "workers": found,
        "counted": counted,
        "gloo": {"gb_per_second": links.inside, "hop_us": links.hop},
        "predicted_seconds": step.seconds,
        "predicted_over_measured": step.seconds / found[2]["whole"],
    }


def gpu_steps(folder: Path) -> dict[str, GpuStep]:
    """Read the fastest of our steps in bfloat16 of each size from the first of the files that has one."""
    found: dict[str, GpuStep] = {}
    for path in (path for pattern in GPU_FILES for path in sorted(folder.glob(pattern))):
        new: dict[str, GpuStep] = {}
        for size, one in steps_in(path):
            if size not in new or one.seconds_per_crop < new[size].seconds_per_crop:
                new[size] = one
        found = new | found
    return found


def steps_in(path: Path) -> Iterator[tuple[str, GpuStep]]:
    """Yield the steps of a file that `pretrain_step.py` or `gpu_steps.py` has printed, by size."""
    for line in parse_json_lines(path.read_text(encoding="utf-8")):
        if "sizes" in line and line["arguments"]["dtype"] == "bfloat16" and tuple(line["arguments"]["patch"]) == CROP:
            for size, way in line["sizes"].items():
                for name in ("blocks", "blocks compiled"):
                    if name in way["seconds"]:
                        per_crop = way["seconds"][name] / line["arguments"]["batch"]
                        yield size, GpuStep(per_crop, f"{name}, {line['machine']['gpu']}, {path.name}")
        elif "seconds" in line and (way := WAY.fullmatch(line["what"])) and tuple(line["patch"]) == CROP:
            source = f"{line['what']}, {path.name}"
            yield way["size"].lower(), GpuStep(line["seconds"] / int(way["batch"]), source)


def bytes_per_crop(folder: Path) -> float:
    """Return the bytes that are read for a crop of the paper's size, as `loader.py` has measured them."""
    last = parse_json_lines((folder / LOADER_FILE).read_text(encoding="utf-8"))[-1]
    return float(last["bytes_read_over_crop"]) * CROP_BYTES


# ---- predicted


def predicted_recipes(
    arguments: argparse.Namespace, gpu: dict[str, GpuStep], read_bytes: float, links: LinkConfig
) -> tuple[dict[str, Any], list[Prediction]]:
    """Predict each recipe on each number of devices, and print it with what stops it from growing."""
    recipes: dict[str, Any] = {}
    predictions: list[Prediction] = []
    for recipe in arguments.recipes:
        load = load_of(settings_of(recipe, 2))
        step = gpu_step_of(SIZES[recipe], load, gpu)
        predictions += [predict(recipe, count, load, step, read_bytes, links) for count in arguments.devices]
        limits = limits_of(recipe, load, step, read_bytes, links, arguments.storage)
        recipes[recipe] = {"gpu_step": asdict(step), "limits": limits}
    table(
        f"Predicted on H100s: {PER_DEVICE} crops of {'x'.join(map(str, CROP))} per device, 1000 epochs of "
        f"{CASES} cases, bf16, {links.inside:g} GB/s within machines of {links.devices_per_machine}, "
        f"{links.between:g} GB/s between them, {links.hop:g} µs a hop",
        ["", "batch", "updates", "ms", "of which sums", "gradients", "not hidden", "all-reduce MB", "computing",
         "hours", "GPU-hours", "read MB/s", "checkpoint GB", "written MB/s"],
        list(map(row_of, predictions)),
    )  # fmt: skip
    print(f"Read per crop: {read_bytes / 1e6:.2f} MB ({LOADER_FILE})")
    for recipe, found in recipes.items():
        print(
            f"{recipe}: {found['gpu_step']['seconds_per_crop'] * 1e3:.1f} ms per crop ({found['gpu_step']['source']})"
        )
        for limit in found["limits"]:
            print(f"  {limit['devices']:>6} devices: {limit['why']}")
    print()
    return recipes, predictions


def settings_of(recipe: str, devices: int) -> PretrainConfig:
    """Return the settings of a recipe on so many devices, whose batch grows with them."""
    config: PretrainConfig = RECIPES[recipe].settings("pretrain")
    training = replace(config.training, batch_size=PER_DEVICE * devices, precision="bf16")
    return replace(config, data="", training=training, cluster=ClusterConfig(workers=devices))


def gpu_step_of(size: str, load: Load, gpu: dict[str, GpuStep]) -> GpuStep:
    """Return a size's step; of one that was not measured, at the operations per second of one that was."""
    if size in gpu:
        return gpu[size]
    other = next(iter(gpu))
    flops = load_of(settings_of(next(name for name, own in SIZES.items() if own == other), 2)).cost.flops
    per_crop = gpu[other].seconds_per_crop * load.cost.flops / flops
    return GpuStep(per_crop, f"not measured; at the FLOP/s of size {other.upper()}: {gpu[other].source}")


def predict(recipe: str, devices: int, load: Load, gpu: GpuStep, read_bytes: float, links: LinkConfig) -> Prediction:
    """Predict a recipe on so many devices by the arithmetic of the dry run."""
    training = settings_of(recipe, devices).training
    step = step_time(PER_DEVICE * gpu.seconds_per_crop, load.cost.exchange, devices, links)
    return Prediction(
        recipe,
        devices,
        training.batch_size,
        training.epochs * training.updates_per_epoch(CASES),
        step,
        load.cost.exchange.gradient_bytes if devices > 1 else 0,
        training.batch_size / step.seconds * read_bytes / 1e6,
        load.checkpoint_bytes,
        load.checkpoint_bytes / (training.checkpoint_every * step.seconds) / 1e6,
    )


def limits_of(
    recipe: str, load: Load, gpu: GpuStep, read_bytes: float, links: LinkConfig, storage: float
) -> list[dict[str, Any]]:
    """List what stops a recipe from growing, and the largest number of devices that it allows, the smallest first."""
    shares = {2**k: predict(recipe, 2**k, load, gpu, read_bytes, links).step.efficiency for k in range(14)}
    fair = max(count for count, share in shares.items() if share >= FAIR)
    one = predict(recipe, 1, load, gpu, read_bytes, links)
    published = TrainingConfig().batch_size
    limits = [
        (published, f"the paper's batch of {published} has a crop for no more; beyond, batches grow, untested"),
        (CASES // PER_DEVICE, f"an epoch of {CASES} cases is then a single update"),
        (int(1e3 * storage / one.read_mb_per_second), f"crops are read with {storage:g} GB/s (--storage)"),
        (
            fair,
            f"devices compute for {shares[fair]:.0%} of the time ({FAIR:.0%} at least; up to {max(shares)} were tried)",
        ),
    ]
    return [{"devices": devices, "why": why} for devices, why in sorted(limits)]


def row_of(one: Prediction) -> list[str]:
    """Format a prediction."""
    step = one.step
    return [
        f"{one.recipe} on {one.devices}",
        str(one.batch),
        str(one.updates),
        *(f"{1e3 * seconds:.2f}" for seconds in (step.seconds, step.sums, step.gradients, step.exposed)),
        f"{one.gradient_bytes / 1e6:.0f}",
        f"{step.efficiency:.1%}",
        f"{one.hours:.2f}",
        f"{one.devices * one.hours:.1f}",
        f"{one.read_mb_per_second:.0f}",
        f"{one.checkpoint_bytes / 1e9:.2f}",
        f"{one.checkpoint_mb_per_second:.0f}",
    ]


# ---- simulated


def show_index(index: dict[str, Any]) -> None:
    """Print what the index and the plan take."""
    rows = [
        [
            name,
            f"{index[role]['seconds']:.2f}",
            f"{index[role]['cpu_seconds']:.2f}",
            f"{index[role]['mb']:.0f}",
            f"{index[role]['mb_with_imports']:.0f}",
        ]
        for name, role in (
            ("driver: index, job", "driver"),
            ("worker: its samples, the first tables", "worker"),
            ("reader: index, the first samples", "reader"),
        )
    ]
    table(
        f"Before the first batch of {index['cases']} cases and {index['readers']} workers of one reader: index "
        f"{index['index_mb']:.1f} MB, job {index['driver']['job_mb']:.2f} MB; {index['seconds_to_first_plan']:.1f} s "
        "one after another, without Ray's start",
        ["", "s", "CPU s", "MB", "MB with imports"],
        rows,
    )


def parse() -> argparse.Namespace:
    """Parse the command line."""
    links = LinkConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few updates, paper-b alone, 1000 cases: within a minute")
    parser.add_argument("--recipe", default="small", help="network and crop of the updates that are measured")
    parser.add_argument("--samples", type=int, default=2, help="crops of each worker")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--recipes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--per-machine", type=int, default=links.devices_per_machine, help="devices of a machine")
    parser.add_argument("--inside", type=float, default=links.inside, help="GB/s of a device within its machine")
    parser.add_argument("--between", type=float, default=links.between, help="GB/s of a device to other machines")
    parser.add_argument("--hop", type=float, default=links.hop, help="microseconds of a small message")
    parser.add_argument("--storage", type=float, default=5.0, help="GB/s at which all nodes together read data")
    parser.add_argument("--cases", type=int, default=10_000, help="cases of the index")
    parser.add_argument("--readers", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.recipe, arguments.samples, arguments.updates = "tiny", 1, 2
        arguments.recipes, arguments.cases = ["paper-b"], 1000
    return arguments


if __name__ == "__main__":
    main()
