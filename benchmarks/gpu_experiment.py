"""The experiment of evidence.py on one GPU: `python benchmarks/gpu_experiment.py --data data/openkbp.gpu --out FOLDER`.

It takes the steps, the settings and the choices of evidence.py, with the scans of gpu_pack.py and the trainings of
gpu_study.py: several processes share the device. It needs what gpu.py needs. One record per scored network goes into
FOLDER/records and weights into FOLDER/encoders; the same command goes on after a kill. `evidence_report.py` makes the
tables. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence_design import CROP, Finetuning, Pretraining, Record, Scale, mean_dsc
from evidence_steps import FULL, QUICK, pretrainings, run_steps
from gpu_study import Setting
from gpu_workers import COST, Place, Workers, encoder_folder
from measure import machine

from anatomask.files import write_text
from anatomask.runs.folder import environment


class GpuExperiment:
    """Records and weights in a folder, and the processes that make them."""

    def __init__(self, place: Place, scale: Scale, workers: Workers, ahead: Sequence[Pretraining], commit: str) -> None:
        self.place = place
        self.scale = scale
        self.workers = workers
        self.ahead = ahead
        self.commit = commit
        self.pretraining: dict[Pretraining, Future[Any]] = {}
        (place.out / "records").mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """Begin the pretrainings, which go on beside the first step."""
        for run in self.ahead:
            self._begin(run)

    def pretrain(self, runs: Sequence[Pretraining]) -> None:
        """Wait until the pretrainings are there."""
        for run in runs:
            self._begin(run)
        for run in runs:
            if run in self.pretraining:
                print(f"{run.name}: {self.pretraining[run].result():.0f} s", flush=True)

    def _begin(self, run: Pretraining) -> None:
        if run not in self.pretraining and not (encoder_folder(self.place.out, run.name) / COST).exists():
            self.pretraining[run] = self.workers.submit(run)

    def scores(self, runs: Sequence[Finetuning]) -> list[Record]:
        """Train and score the networks that have no record yet; return the records of all."""
        missing = [run for run in dict.fromkeys(runs) if not self._record(run).exists()]
        for done in [self.workers.pool.submit(self._score, run) for run in missing]:
            done.result()
        return [json.loads(self._record(run).read_text()) for run in runs]

    def _score(self, run: Finetuning) -> None:
        record = {**self.workers.train(run), "commit": self.commit}
        print(f"{run.name}.{run.split}: DSC {100 * mean_dsc([record]):.1f}, {record['seconds']:.0f} s", flush=True)
        write_text(self._record(run), json.dumps(record, indent=1))

    def seconds(self, run: Pretraining) -> float:
        """Return the seconds that a pretraining took, beside other trainings."""
        return float(json.loads((encoder_folder(self.place.out, run.name) / COST).read_text())["seconds"])

    def updates_in(self, seconds: float) -> int:
        """Return the number of updates, in hundreds, that a finetuning does in that time, measured on all records."""
        rates = [record["updates"] / record["seconds"] for record in self.records()]
        return max(1, round(seconds * float(np.median(rates)) / 100)) * 100

    def records(self) -> list[Record]:
        """Read every record."""
        return [json.loads(path.read_text()) for path in sorted((self.place.out / "records").glob("*.json"))]

    def _record(self, run: Finetuning) -> Path:
        return self.place.out / "records" / f"{run.name}.{run.split}.json"


def parsed() -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, choices=range(1, 6), default=3, help="last step of evidence.py to run")
    parser.add_argument("--data", type=Path, default=Path("data/openkbp.gpu"), help="file of gpu_pack.py")
    parser.add_argument("--out", type=Path, default=Path("data/gpu"), help="folder of the experiment")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, default=6, help="processes that share the device")
    parser.add_argument("--seconds", type=float, default=500, help="time after which it ends, with what it has")
    parser.add_argument("--base", type=int, default=16, help="width of the network's first stage")
    parser.add_argument("--batches", type=int, nargs=2, default=(16, 4), help="of pretraining and of finetuning")
    parser.add_argument("--pretraining", type=int, default=3000, help="updates of a pretraining")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(FULL.budgets), help="of finetunings, ascending")
    parser.add_argument("--commit", default=environment()["commit"] or "", help="commit of this checkout")
    parser.add_argument("--quick", action="store_true", help="a few updates per training, to show that it runs")
    return parser.parse_args()


def main() -> None:
    """Run what is missing until the time is over, and print each score."""
    arguments = parsed()
    start = time.monotonic()
    on_gpu = arguments.device == "cuda"
    scale = QUICK if arguments.quick else replace(FULL, budgets=tuple(arguments.budgets))
    scale = scale if arguments.quick else replace(scale, pretraining=arguments.pretraining)
    setting = Setting(
        base=arguments.base,
        edge=int(CROP[0]),
        pretraining_batch=arguments.batches[0],
        finetuning_batch=arguments.batches[1],
        labels=scale.few_labels[0],
        points=4,
        rate=scale.rates[0],
        pretraining_rate=1e-3,
        precision="bf16" if on_gpu else "fp32",
        compiled=on_gpu,
        seed=0,
    )
    place = Place(arguments.device, arguments.data.absolute(), arguments.out.absolute(), setting)
    place.out.mkdir(parents=True, exist_ok=True)
    ahead = [run for seed in (0, 1) for run in pretrainings(scale, seed)] if arguments.step > 1 else []
    workers = Workers(place, arguments.jobs, max(1, (os.cpu_count() or 1) // arguments.jobs))
    experiment = GpuExperiment(place, scale, workers, ahead, arguments.commit)
    alarm = threading.Timer(arguments.seconds, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    ended = "all of it"
    try:
        run_steps(experiment, arguments.step)
    except KeyboardInterrupt:
        ended = "until the time was over"
    finally:
        alarm.cancel()
        workers.end()
    found = {"ended": ended, "records": len(experiment.records()), "seconds": time.monotonic() - start}
    print(json.dumps({**found, "setting": asdict(setting), "scale": asdict(scale), "machine": machine(place.device)}))


if __name__ == "__main__":
    main()
