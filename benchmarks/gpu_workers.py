"""Processes that share one GPU: each builds a `Networks` of its own, and trains what it is sent."""

from __future__ import annotations

import json
import queue
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from evidence_design import DIGITS, FINER_TOLERANCE_MM, Finetuning, Pretraining, Record
from gpu_pack import read_packed
from gpu_study import OVERLAP, Setting, Study
from gpu_training import segmented
from gpu_volumes import Volumes

from anatomask.evaluation.metrics import score_classes
from anatomask.files import write_text
from anatomask.parsing import from_json
from anatomask.training.update import set_arithmetic
from anatomask.weights.files import describe_architecture, split_init
from anatomask.weights.tensor_files import read_described, write_described

WEIGHTS, COST = "weights.safetensors", "cost.json"
TOLERANCE_MM = 3.0
"""Tolerance in mm of the first NSD: OpenKBP's own."""


@dataclass(frozen=True)
class Place:
    """Device, data and folder of a process."""

    device: str
    data: Path
    out: Path
    setting: Setting


class Networks:
    """Networks of one process, which it compiles once."""

    def __init__(self, place: Place) -> None:
        self.place = place
        set_arithmetic(place.setting.precision)
        packed = read_packed(place.data)
        self.spacing = packed.header["spacing"]
        self.volumes = Volumes.on(torch.device(place.device), packed)
        self.study = Study(place.setting, self.volumes, place.out)

    def do(self, run: Pretraining | Finetuning) -> Any:
        """Train and score a network, or pretrain one, and keep what it leaves."""
        return self.pretrain(run) if isinstance(run, Pretraining) else self.finetune(run)

    def pretrain(self, run: Pretraining) -> float:
        """Keep the weights in `encoders/NAME`; return the seconds that it took."""
        start = time.monotonic()
        arm = "spark" if run.masking == "random" else run.masking
        folder = encoder_folder(self.place.out, run.name)
        folder.mkdir(parents=True, exist_ok=True)
        study = Study(replace(self.place.setting, seed=run.seed), self.volumes, folder)
        plan = study.plan(run.updates, 0)
        study.pretrain(arm, study.pretrainings(plan)[arm], plan, run.updates, None, float("inf"))
        study.weights(folder, arm).rename(folder / WEIGHTS)
        seconds = time.monotonic() - start
        write_text(folder / COST, json.dumps({**asdict(run), "seconds": seconds}))
        return seconds

    def finetune(self, run: Finetuning) -> Record:
        """Train with labels, score, and keep a network that chose with many labels, for the positive control."""
        study = self.study
        cases = sorted(case for case in self.volumes.splits[run.split] if case in self.volumes.labelled)
        transfer, source = split_init(run.init)
        weights = None
        if source != "scratch":
            weights = read_described(encoder_folder(self.place.out, source) / WEIGHTS, parse=from_json)
        found = study.train_labelled(run, weights, transfer, cases)
        network = study.finetuning.network
        if run.init == "scratch" and run.split == "budget" and run.labels > study.setting.labels:
            header = {
                "format": 1,
                "kind": "segmentation",
                "architecture": describe_architecture(network.config, network.classes),
            }
            folder = encoder_folder(self.place.out, run.name)
            folder.mkdir(parents=True, exist_ok=True)
            write_described(folder / WEIGHTS, network.state_dict(), header)
        return {
            **asdict(run),
            "name": run.name,
            "seconds": round(found["seconds"], 1),
            "curve": [[done, round(score, DIGITS)] for done, score in found["curve"]],
            "dsc": found["dsc"],
            **self.surface_scores(cases),
        }

    def surface_scores(self, cases: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
        """Compute NSD at 3 and 2 mm of the network as it is, by case and organ."""
        names = self.volumes.class_names
        setting, network = self.place.setting, self.study.finetuning.network
        found: dict[str, dict[str, dict[str, float]]] = {"nsd_3mm": {}, "nsd_2mm": {}}
        for case in cases:
            predicted = segmented(network, self.volumes, case, setting.edge, OVERLAP, setting.precision)
            maps = predicted.to(torch.uint8).cpu().numpy(), self.volumes.label_map(case).cpu().numpy()
            for name, mm in (("nsd_3mm", TOLERANCE_MM), ("nsd_2mm", FINER_TOLERANCE_MM)):
                scores = score_classes(*maps, self.spacing, dict.fromkeys(names, mm), {"nsd"})
                found[name][case] = {names[c]: round(s.nsd, DIGITS) for c, s in scores.items() if s.voxels}
        return found


def encoder_folder(out: Path, name: str) -> Path:
    """Return the folder of a run's weights."""
    return out / "encoders" / name


def serve(connection: Connection, place: Place, threads: int) -> None:
    """Do what comes through `connection` until it is closed; send results, or what went wrong."""
    torch.set_num_threads(threads)
    networks: Networks | None = None
    while True:
        try:
            run = connection.recv()
        except EOFError:
            return
        try:
            networks = networks or Networks(place)
            connection.send((networks.do(run), None))
        except Exception:
            connection.send((None, traceback.format_exc()))


class Workers:
    """Processes, each with its own networks on the same device."""

    def __init__(self, place: Place, number: int, threads: int) -> None:
        context = get_context("spawn")
        self.idle: queue.Queue[Connection] = queue.Queue()
        self.processes = []
        for _ in range(number):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, place, threads), daemon=True)
            process.start()
            there.close()
            self.processes.append(process)
            self.idle.put(here)
        self.pool = ThreadPoolExecutor(number)

    def submit(self, run: Pretraining | Finetuning) -> Future[Any]:
        """Train in the next process that is idle."""
        return self.pool.submit(self.train, run)

    def train(self, run: Pretraining | Finetuning) -> Any:
        """Wait for an idle process, train there, and return what it answers.

        Raises:
            RuntimeError: it failed; the message has the traceback.
        """
        connection = self.idle.get()
        try:
            connection.send(run)
            result, failure = connection.recv()
        finally:
            self.idle.put(connection)
        if failure is not None:
            raise RuntimeError(f"{run.name} failed:\n{failure}")
        return result

    def end(self) -> None:
        """End all processes, whatever they do."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in self.processes:
            process.terminate()
