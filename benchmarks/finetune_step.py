"""Time of an iteration of finetuning against nnU-Net 2.8.1's trainer: `python benchmarks/finetune_step.py [--quick]`.

An iteration reads and augments a batch of two crops of real CT, and updates the same STU-Net by SGD with deep
supervision. nnU-Net runs its own trainer, loader and augmentation in an environment of its own (`make nnunet`); only
its network is replaced by ours. The ways run in processes of their own, in turn. On a CPU, one thread does everything,
so seconds are those of a core. On a GPU, seconds are the clock's: both compile the network, nnU-Net computes in half
precision and prepares batches in `--processes` processes, ours computes in bfloat16 and reads in `--readers` threads.
The median of the rounds is printed; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import torch
from inference import ENVIRONMENT
from loader import child as loader_child
from loader import save_volumes, write_shards
from measure import machine, per_iteration, report

from anatomask.config import FinetuneConfig
from anatomask.data.samples import LoaderConfig, Sample, stacked
from anatomask.data.shards import PreparedDataset
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.stages.finetune import build_job
from anatomask.training.loop import to_device
from anatomask.training.parallel import Workers, distribute
from anatomask.training.schedule import nnunet
from anatomask.training.settings import TrainingConfig
from anatomask.training.state import TrainingState
from anatomask.training.update import Update

BATCH = 2


def main() -> None:
    """Measure each way in turn, and print."""
    arguments = parse()
    if arguments.ours:
        print(json.dumps(ours(arguments)), flush=True)
        return
    theirs = arguments.nnunet / "bin" / "python"
    ways = {"ours": sys.executable} | ({"nnunet": str(theirs)} if theirs.is_file() else {})
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_volumes(Path(arguments.scans), folder, arguments.volumes, 2 * max(arguments.size))
        write_shards(folder, "none", 32)
        if "nnunet" in ways:
            loader_child(ways["nnunet"], "nnunet-write", folder, 0)
        for _ in range(arguments.rounds):
            for way, python in ways.items():
                runs[way].append(child(way, python, folder, arguments))
    medians = {
        way: {key: statistics.median(one[key] for one in found) for key in found[0]} for way, found in runs.items()
    }
    result: dict[str, Any] = {
        **medians,
        "arguments": {**vars(arguments), "nnunet": "nnunet" in ways},
        "machine": machine(arguments.device),
    }
    if "nnunet" in medians:
        result["nnunet_over_ours"] = medians["nnunet"]["seconds"] / medians["ours"]["seconds"]
    report(
        f"Iteration of finetuning: STU-Net of base {arguments.base}, {BATCH} crops of "
        f"{'x'.join(map(str, arguments.size))}, {arguments.device}",
        ["", "s per iteration", "until the batch is there"],
        [[way, f"{found['seconds']:.3f}", f"{found['waiting']:.3f}"] for way, found in medians.items()],
        result,
    )


def child(way: str, python: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one way in its own process, and return its figures."""
    program = Path(__file__) if way == "ours" else Path(__file__).with_name("finetune_step_nnunet.py")
    given = {"base": arguments.base, "iterations": arguments.iterations, "device": arguments.device}
    command = [python, str(program), "--folder" if way == "nnunet" else "--ours", str(folder)]
    command += [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command += ["--size", *map(str, arguments.size)]
    if way == "ours":
        command += ["--readers", str(arguments.readers)]
    places = {"nnUNet_raw": folder, "nnUNet_preprocessed": folder, "nnUNet_results": folder / "results"}
    environment = {
        **os.environ,
        **{name: str(path) for name, path in places.items()},
        "nnUNet_n_proc_DA": str(arguments.processes),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "PYTHONWARNINGS": "ignore",
    }
    if arguments.device == "cpu":
        environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def ours(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure what a worker of `anatomask finetune` does, without Ray."""
    folder, device, gpu = Path(arguments.ours), torch.device(arguments.device), arguments.device == "cuda"
    config = FinetuneConfig(
        data=str(folder / "shards"),
        runs=str(folder / "runs"),
        network=STUNetConfig(base=arguments.base),
        loader=LoaderConfig(patch_size=tuple(arguments.size)),
        optimiser=nnunet(1000),
        training=TrainingConfig(batch_size=BATCH, precision="bf16" if gpu else "fp32", compile=gpu),
    )
    job, dataset = build_job(config), PreparedDataset.open(config.data)
    task = job.build_task(device)
    model = distribute(task, job.training, Workers())
    state = TrainingState.of(task, job.optimiser, device)
    update = Update(state, model, Workers(), job.training, job.optimiser.clip, device)
    rates = [job.optimiser.lr] * len(state.optimiser.param_groups)

    def read(number: int) -> Sample:
        numbers = range(BATCH * number, BATCH * (number + 1))
        return stacked([job.draw(dataset, job.sequence.case(k), job.sequence.rng(k)) for k in numbers])

    batches = (to_device(batch, device) for batch in in_order(read, arguments.readers))
    return per_iteration(
        batches, lambda batch: float(update(batch, 0, rates)["loss"]), arguments.iterations, device.type
    )


def in_order(read: Callable[[int], Sample], threads: int) -> Iterator[Sample]:
    """Yield batch after batch, two for each thread read ahead; without a thread, each when it is asked for."""
    if not threads:
        yield from map(read, count())
    with ThreadPoolExecutor(threads) as pool:
        numbers = count()
        ahead = deque(pool.submit(read, next(numbers)) for _ in range(2 * threads))
        while True:
            yield ahead.popleft().result()
            ahead.append(pool.submit(read, next(numbers)))


def parse() -> argparse.Namespace:
    """Parse the flags, with the device's defaults filled in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small network, few iterations: within a minute")
    parser.add_argument("--scans", default="../shared/data", help="folder of real scans")
    parser.add_argument("--nnunet", type=Path, default=ENVIRONMENT, help="nnU-Net's environment; default: %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", nargs=3, type=int, help="crop in voxels; default: 64 64 64, on a GPU 112 112 128")
    parser.add_argument("--base", type=int, help="width of the first stage; default: 8, on a GPU 32")
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=40, help="iterations of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, help="nnU-Net's processes; default: 0, on a GPU the cores less one")
    parser.add_argument("--readers", type=int, help="our reading threads; default: 0, on a GPU 2")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    gpu = arguments.device == "cuda"
    arguments.size = arguments.size or ([112, 112, 128] if gpu else [64, 64, 64])
    arguments.base = arguments.base or (32 if gpu else 8)
    if arguments.processes is None:
        arguments.processes = max(1, (os.cpu_count() or 1) - 1) if gpu else 0
    if arguments.readers is None:
        arguments.readers = 2 if gpu else 0
    if arguments.quick:
        arguments.size, arguments.base = [32, 32, 32], 4
        arguments.volumes, arguments.iterations, arguments.rounds = 1, 5, 1
    return arguments


if __name__ == "__main__":
    main()
