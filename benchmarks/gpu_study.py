"""Trainings of `gpu_evidence.py`: networks that are compiled once, and trained again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence_design import Finetuning
from gpu_training import LabelledTask, PretrainingTask, Scores, scores, train
from gpu_volumes import PretrainingPlan, Volumes, finetuning_batch, shuffled
from measure import tell
from torch import Tensor

from anatomask.data.samples import LoaderConfig, mirrored_axes
from anatomask.errors import UserError
from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.nn.backends import choose_backend
from anatomask.parsing import from_json
from anatomask.training.parallel import Workers, distribute
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.weights.files import Transfer, describe_architecture, initialise
from anatomask.weights.matching import load_matching
from anatomask.weights.tensor_files import Weights, read_described, write_described

METHOD = AnatoMaskConfig(patch=8, among="body", decoder_width=32, ema_decay=0.98, ema_decay_final=0.998)
"""Settings of the method, as in evidence.py."""
OVERLAP, FOREGROUND = 0.25, 0.66
DRAWN_UPDATES = 4000
"""Updates after which a finetuning reads its scans in the same order again."""
LONGEST_FINETUNING = 1000
"""Updates of a finetuning of gpu_evidence.py at most."""


@dataclass(frozen=True)
class Setting:
    """Settings that all trainings share."""

    base: int
    edge: int
    pretraining_batch: int
    finetuning_batch: int
    labels: int
    points: int
    """Number of points of a learning curve; numbers of updates are multiples of it."""
    rate: float
    pretraining_rate: float
    precision: str
    compiled: bool
    seed: int

    @property
    def network(self) -> STUNetConfig:
        """Return the settings of the network."""
        return STUNetConfig(base=self.base)

    def training(self, batch: int) -> TrainingConfig:
        """Return the batch size and precision of a training."""
        return TrainingConfig(batch_size=batch, precision=self.precision, compile=self.compiled)  # type: ignore[arg-type]


class Study:
    """Networks that are compiled once, and trained again and again."""

    def __init__(self, setting: Setting, volumes: Volumes, out: Path) -> None:
        self.setting = setting
        self.volumes = volumes
        self.device = volumes.device
        self.out = out
        self.axes = mirrored_axes(LoaderConfig(), volumes.class_names.values())
        self.train_cases = sorted(case for case in volumes.splits["train"] if case in volumes.labelled)
        scored = volumes.splits["val"] or volumes.splits["test"]
        self.val_cases = sorted(case for case in scored if case in volumes.labelled)
        if len(self.train_cases) < setting.labels or len(self.val_cases) < 2:
            raise UserError(
                f"the data hold {len(self.train_cases)} labelled training cases and {len(self.val_cases)} to score: "
                f"--labels {setting.labels} needs as many, and at least 2 to score"
            )
        tested = {case for split in ("val", "test", "unlabeled_test") for case in volumes.splits.get(split, ())}
        self.pretraining_cases = [case for case in volumes.cases if case not in tested]
        torch.manual_seed(setting.seed)
        self.finetuning = LabelledTask(STUNet(setting.network, len(volumes.class_names)).to(self.device))
        distribute(self.finetuning, setting.training(setting.finetuning_batch), Workers())

    def plan(self, updates: int, done: int) -> PretrainingPlan:
        """Draw what both pretrainings read in `updates` updates, after those that are done."""
        setting = self.setting
        return PretrainingPlan.draw(
            self.volumes, self.pretraining_cases, updates, setting.pretraining_batch, setting.edge, METHOD.patch,
            METHOD.body_share, setting.seed + done,
        )  # fmt: skip

    def pretrainings(self, plan: PretrainingPlan) -> dict[str, PretrainingTask]:
        """Build both methods, AnatoMask first; they share the student, so that it is compiled once.

        The sparse backend is chosen for the crop with the least body, in which the most patches are visible.
        """
        method = AnatoMask(METHOD, self.setting.network).to(self.device)
        method.set_sparse_backend(choose_backend(METHOD.mask_ratio * plan.fewest / plan.among.shape[2]))
        anatomask = PretrainingTask(method)
        distribute(anatomask, self.setting.training(self.setting.pretraining_batch), Workers())
        other = AnatoMask(replace(METHOD, masking="random"), self.setting.network)
        other.student = method.student
        spark = PretrainingTask(other)
        spark.memory_format = anatomask.memory_format
        return {"anatomask": anatomask, "spark": spark}

    def pretrain(
        self, arm: str, task: PretrainingTask, plan: PretrainingPlan, updates: int, before: Weights | None, ends: float
    ) -> None:
        """Train one of them from the seed, or from the weights of an earlier run, and write its weights.

        The training stops at `ends`, a time of `time.monotonic`, even if updates are left.
        """
        setting = self.setting
        torch.manual_seed(setting.seed)
        fresh = AnatoMask(METHOD, setting.network)
        done = 0
        if before is not None:
            student = {name.removeprefix("student."): tensor for name, tensor in before.tensors.items()}
            load_matching(fresh.student, student)
            fresh.teacher.load_state_dict(fresh.student.state_dict())  # type: ignore[union-attr]
            done = int(before.header["updates"])
        start = {name: tensor for name, tensor in fresh.state_dict().items() if name in task.method.state_dict()}
        task.method.load_state_dict(start)
        generator = torch.Generator(self.device).manual_seed(setting.seed + 1 + done)
        began = time.monotonic()
        losses = train(
            task,
            lambda number: plan.batch(number, generator),
            updates,
            setting.training(setting.pretraining_batch),
            OptimiserConfig(lr=setting.pretraining_rate, warmup_epochs=updates // 25),
            self.device,
            ends=ends,
        )
        took, last = time.monotonic() - began, losses[-max(1, len(losses) // 10) :]
        path, method = self.weights(self.out, arm), task.method.config
        header = {
            "format": 1,
            "kind": "pretraining",
            "architecture": describe_architecture(setting.network),
            "method": {"name": method.name, "label": method.label(), **asdict(method)},
            "encoder": method.encoder,
            "stages": method.stages(setting.network),
            "dataset": self.volumes.name,
            "patch_size": [setting.edge] * 3,
            "updates": done + len(losses),
            "setting": asdict(setting),
        }
        tensors = {f"student.{name}": _half(tensor) for name, tensor in task.method.student.state_dict().items()}
        write_described(path, tensors, header)
        tell(
            f"base {setting.base}, {arm}: pretraining",
            f"{len(losses)} of {updates} updates, loss {np.mean(last):.4f}, {1e3 * took / len(losses):.1f} ms each",
            updates=len(losses),
            wanted=updates,
            seconds=took,
            losses=losses[:: max(1, len(losses) // 100)],
            weights=path.name,
            weights_mb=path.stat().st_size / 1e6,
        )

    def weights(self, folder: Path, arm: str) -> Path:
        """Return the file of an arm's weights."""
        return folder / f"base{self.setting.base}-{arm}.safetensors"

    def batches(self, seed: int, labels: int) -> Callable[[int], dict[str, Tensor]]:
        """Draw batches of the labelled cases of a seed: smaller numbers of labels are contained in larger ones."""
        setting, order = self.setting, np.random.default_rng([seed, 2]).permutation(len(self.train_cases))
        scans = self.volumes.numbers([self.train_cases[index] for index in order[:labels]])
        generator = torch.Generator(self.device).manual_seed(1000 + seed)
        waiting = shuffled(scans, DRAWN_UPDATES * setting.finetuning_batch, generator).split(setting.finetuning_batch)

        def batch(number: int) -> dict[str, Tensor]:
            chosen = waiting[number % len(waiting)]
            image, label = finetuning_batch(self.volumes, chosen, setting.edge, FOREGROUND, self.axes, generator)
            return {"image": image, "label": label}

        return batch

    def finetune(self, arm: str, seed: int, updates: int) -> dict[str, Any]:
        """Train one network of an arm from a seed, and score it."""
        setting = self.setting
        weights = None if arm == "scratch" else read_described(self.weights(self.out, arm), parse=from_json)
        run = Finetuning(arm, setting.labels, updates, setting.rate, seed, "val")
        return {"arm": arm, "seed": seed, **self.train_labelled(run, weights, "whole", self.val_cases)}

    def train_labelled(
        self, run: Finetuning, weights: Weights | None, transfer: Transfer, cases: Sequence[str]
    ) -> dict[str, Any]:
        """Train the network from `weights`, or from the seed alone, and score it on `cases` at a few points."""
        setting, network = self.setting, self.finetuning.network
        torch.manual_seed(run.seed)
        fresh = STUNet(setting.network, network.classes)
        if weights is not None:
            initialise(fresh, weights, transfer, run.seed)
        network.load_state_dict(fresh.state_dict())
        curve: list[tuple[int, Scores]] = []

        def score(done: int) -> None:
            curve.append((done, scores(network, self.volumes, cases, setting.edge, OVERLAP, setting.precision)))

        points = range(run.updates // setting.points, run.updates + 1, run.updates // setting.points)
        began = time.monotonic()
        train(
            self.finetuning,
            self.batches(run.seed, run.labels),
            run.updates,
            setting.training(setting.finetuning_batch),
            OptimiserConfig(lr=run.rate, warmup_epochs=run.updates // 10),
            self.device,
            at={point: lambda point=point: score(point) for point in points},  # type: ignore[misc]
        )
        return {
            "seconds": time.monotonic() - began,
            "curve": [(done, mean_dsc(found)) for done, found in curve],
            "dsc": {case: {c: round(v, 6) for c, v in found.items()} for case, found in curve[-1][1].items()},
        }


def mean_dsc(found: Scores) -> float:
    """Compute the mean over cases of the mean over classes, as a fraction."""
    return float(np.mean([np.mean(list(classes.values())) for classes in found.values()]))


def _half(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor
