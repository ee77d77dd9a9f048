"""Effect of pretraining, in minutes on one GPU: `python benchmarks/gpu_evidence.py --base 16 --seconds 300`.

It pretrains AnatoMask and SparK, which differ only in self-masking, and finetunes from each and from scratch with few
labels, with as many seeds as fit; a seed means the same labelled scans and the same draws in every arm. Unless the
numbers of updates are given, they follow from the speed that is measured first. Every finding is printed at once as a
line of JSON. Weights are written to --out in half precision, and --weights continues from those of an earlier run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_pack import read_packed
from gpu_study import LONGEST_FINETUNING, Setting, Study
from gpu_training import seconds_per_update
from gpu_volumes import Volumes
from measure import tell

from anatomask.errors import UserError
from anatomask.evaluation.statistics import (
    difference_interval,
    mean_curve,
    paired_differences,
    updates_to_reach,
    verdict,
)
from anatomask.parsing import from_json
from anatomask.training.update import set_arithmetic
from anatomask.weights.tensor_files import Weights, read_described

ARMS = ("scratch", "spark", "anatomask")
COMPARED = (("anatomask", "scratch"), ("spark", "scratch"), ("anatomask", "spark"))
SHARE_OF_PRETRAINING = 0.45
"""Share of the time that is left once networks are compiled."""
LONGEST_SHARE = 0.35
"""Share of the same time after which a pretraining is stopped, if it is slower than was measured."""
LONGEST_PRETRAINING = 4000
SEEDS_WANTED = 4
"""Number of seeds of each arm for which finetunings are made shorter, if necessary."""
SHORTEST_FINETUNING = 200


def main() -> None:
    """Train, and print the findings."""
    arguments = parsed()
    ends = time.monotonic() + arguments.seconds
    device = torch.device(arguments.device)
    setting = Setting(
        base=arguments.base,
        edge=arguments.edge,
        pretraining_batch=arguments.batches[0],
        finetuning_batch=arguments.batches[1],
        labels=arguments.labels,
        points=arguments.points,
        rate=arguments.rate,
        pretraining_rate=arguments.pretraining_rate,
        precision="bf16" if device.type == "cuda" else "fp32",
        compiled=device.type == "cuda",
        seed=arguments.seed,
    )
    set_arithmetic(setting.precision)
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        study = Study(setting, Volumes.on(device, read_packed(arguments.data)), arguments.out)
        pretrain(study, arguments, ends)
        finetune(study, arguments, ends)
    except UserError as error:
        raise SystemExit(str(error)) from error


def parsed() -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/openkbp.gpu"), help="file of gpu_pack.py")
    parser.add_argument("--out", type=Path, default=Path("data/gpu"), help="folder for weights")
    parser.add_argument("--weights", type=Path, help="folder with an earlier run's weights, to continue from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument(
        "--beside", type=int, default=1, help="number of such programs that share the device, this one included"
    )
    parser.add_argument("--base", type=int, default=16, help="width of the network's first stage")
    parser.add_argument("--edge", type=int, default=64, help="edge of a crop in voxels")
    parser.add_argument(
        "--batches", type=int, nargs=2, default=(16, 4), help="batch sizes of pretraining and of finetuning"
    )
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--points", type=int, default=4, help="number of points of a learning curve")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of finetuning")
    parser.add_argument("--pretraining-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0, help="seed of pretraining")
    parser.add_argument("--first-seed", type=int, default=0, help="first seed of finetuning")
    parser.add_argument("--seeds", type=int, help="number of finetuning seeds. Default: as many as fit")
    parser.add_argument(
        "--pretraining-updates",
        type=int,
        help="updates of a pretraining. Default: as many as fit; 0: use --weights unchanged",
    )
    parser.add_argument(
        "--updates", type=int, help="updates of a finetuning, a multiple of --points. Default: 1000, or what fits"
    )
    arguments = parser.parse_args()
    if arguments.pretraining_updates == 0 and arguments.weights is None:
        parser.error("--pretraining-updates 0 needs --weights")
    if arguments.updates is not None and (arguments.updates < 1 or arguments.updates % arguments.points):
        parser.error(f"--updates must be a multiple of --points {arguments.points}, not {arguments.updates}")
    return arguments


def pretrain(study: Study, arguments: argparse.Namespace, ends: float) -> None:
    """Write the weights of both pretrainings into the study's folder."""
    given = arguments.pretraining_updates
    before: dict[str, Weights | None] = dict.fromkeys(ARMS[1:])
    if arguments.weights is not None:
        before = {arm: earlier(study.weights(arguments.weights, arm)) for arm in before}
    if given == 0:
        for arm in before:
            if arguments.weights.absolute() != study.out.absolute():
                shutil.copyfile(study.weights(arguments.weights, arm), study.weights(study.out, arm))
        return
    done = max(int(weights.header["updates"]) if weights else 0 for weights in before.values())
    plan = study.plan(given or LONGEST_PRETRAINING, done)
    tasks = study.pretrainings(plan)
    config = study.setting.training(study.setting.pretraining_batch)
    noise = torch.Generator(study.device).manual_seed(0)
    compiling, speed = {}, {}
    for arm, task in tasks.items():
        compiling[arm], speed[arm] = seconds_per_update(
            task, lambda number: plan.batch(number % len(plan.scans), noise), config, study.device, progress=1.0,
            updates=10 if given is None else 1,
        )  # fmt: skip
    left = max(ends - time.monotonic(), 0)
    fits = int(SHARE_OF_PRETRAINING * left / arguments.beside / sum(speed.values()))
    updates = given or max(1, min(LONGEST_PRETRAINING, fits))
    tell(
        f"base {study.setting.base}: pretraining's speed",
        ", ".join(f"{arm} {1e3 * each:.1f} ms" for arm, each in speed.items())
        + f" per update of {study.setting.pretraining_batch} crops; first two {sum(compiling.values()):.0f} s",
        seconds_per_update=speed,
        first_two_seconds=compiling,
        fewest_body_patches=plan.fewest,
        sparse_backend=tasks["anatomask"].method.student.sparse_backend,
        setting=asdict(study.setting),
    )
    for arm, task in tasks.items():
        limit = math.inf if given else time.monotonic() + LONGEST_SHARE * left
        study.pretrain(arm, task, plan, updates, before[arm], limit)


def earlier(path: Path) -> Weights:
    """Read an arm's weights of an earlier run.

    Raises:
        UserError: there are none.
    """
    if not path.is_file():
        raise UserError(f"--weights: {path} is missing; give the folder --out of an earlier run with the same --base")
    return read_described(path, parse=from_json)


def finetune(study: Study, arguments: argparse.Namespace, ends: float) -> None:
    """Finetune and score, seed by seed, each arm in turn, until the time is over or the seeds are done."""
    setting = study.setting
    config = setting.training(setting.finetuning_batch)
    compiling, speed = seconds_per_update(
        study.finetuning, study.batches(0, setting.labels), config, study.device, progress=0.5,
        updates=10 if arguments.updates is None else 1,
    )  # fmt: skip
    left = max(ends - time.monotonic(), 0)
    fits = int(0.8 * left / (SEEDS_WANTED * len(ARMS) * speed))
    updates = (
        arguments.updates or min(LONGEST_FINETUNING, max(SHORTEST_FINETUNING, fits)) // setting.points * setting.points
    )
    tell(
        f"base {setting.base}: finetuning's speed",
        f"{1e3 * speed:.1f} ms per update of {setting.finetuning_batch} crops, {updates} updates; first two "
        f"{compiling:.0f} s",
        seconds_per_update=speed,
        first_two_seconds=compiling,
        updates=updates,
    )
    records: list[dict[str, Any]] = []
    longest = 0.0
    first = arguments.first_seed
    for seed in itertools.count(first) if arguments.seeds is None else range(first, first + arguments.seeds):
        for arm in ARMS:
            if records and time.monotonic() + longest > ends:
                return
            record = study.finetune(arm, seed, updates)
            records.append(record)
            longest = max(longest, record["seconds"])
            dsc = 100 * record["curve"][-1][1]
            tell(f"base {setting.base}, seed {seed}, {arm}", f"DSC {dsc:.1f}", detail=True, **record)
        summarise(setting, records, updates)


def summarise(setting: Setting, records: list[dict[str, Any]], updates: int) -> None:
    """Print each arm's mean DSC with its seeds, and paired differences with intervals, of seeds in all arms."""
    by_arm = {arm: {record["seed"]: record for record in records if record["arm"] == arm} for arm in ARMS}
    seeds = sorted(set.intersection(*(set(found) for found in by_arm.values())))
    title = f"base {setting.base}, {setting.labels} labels"
    table = {
        arm: np.array([[np.mean(list(c.values())) for c in by_arm[arm][seed]["dsc"].values()] for seed in seeds])
        for arm in ARMS
    }
    for arm, values in table.items():
        curve = mean_curve([by_arm[arm][seed]["curve"] for seed in seeds])
        by_seed = {str(seed): float(row.mean()) for seed, row in zip(seeds, values, strict=True)}
        listed = ", ".join(f"{seed}: {100 * dsc:.1f}" for seed, dsc in by_seed.items())
        tell(
            f"{title}, {arm}",
            f"DSC {100 * values.mean():.1f} after {updates} updates (seeds {listed})",
            dsc=float(values.mean()),
            by_seed=by_seed,
            curve=[curve.updates.tolist(), curve.mean.tolist(), curve.sd.tolist()],
            updates_to_95_percent_of_scratch=updates_to_reach(
                list(zip(curve.updates.tolist(), curve.mean.tolist(), strict=True)), float(table["scratch"].mean())
            ),
        )
    for arm, reference in COMPARED:
        interval = difference_interval(paired_differences(table[arm], table[reference]))
        scope = "" if interval.over_seeds else ", for these runs alone"
        tell(
            f"{title}, {arm} - {reference}",
            f"{100 * interval.mean:+.2f} DSC [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]{scope}: "
            f"{verdict(interval)}",
            **asdict(interval),
        )


if __name__ == "__main__":
    main()
