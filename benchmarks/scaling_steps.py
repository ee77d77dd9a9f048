"""Split of a pretraining update on one and on two workers into computing, reducing and waiting, for `scaling.py`.

Workers are processes of one thread that talk by gloo. Each computes the same number of samples however many there are.
In the split updates, workers first meet at a barrier before every sum: what passes there is waiting for the other one,
what passes in the sum itself is reducing, and the rest is computing. So nothing hides behind the backward pass; the
whole updates, measured apart, are as training runs them.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from anatomask.cluster_settings import ClusterConfig
from anatomask.config import PretrainConfig
from anatomask.methods.base import Method
from anatomask.methods.masked import MaskedBatch
from anatomask.recipes import RECIPES
from anatomask.stages import costs
from anatomask.training.cost import StepCost
from anatomask.training.parallel import Workers, distribute
from anatomask.training.recorder import Recorder
from anatomask.training.scaling import LinkConfig, StepTime, step_time
from anatomask.training.state import TrainingState
from anatomask.training.task import Task
from anatomask.training.update import Update

CPU = torch.device("cpu")
WARM_UP = 2
"""Number of first updates of each kind that do not count."""


@dataclass
class Split:
    """Seconds of one update of one worker, and what it exchanged."""

    seconds: float = 0.0
    waiting: float = 0.0
    """Seconds at the barriers, until the slower worker came."""
    sums: float = 0.0
    """Seconds in which statistics of norms were summed."""
    gradients: float = 0.0
    """Seconds in which gradients were averaged."""
    cpu: float = 0.0
    """Seconds of CPU time of the thread that computes, waiting and reducing included."""
    count: int = 0
    """Number of the sums of statistics."""
    gradient_bytes: int = 0

    @property
    def computing(self) -> float:
        """Seconds of everything else."""
        return self.seconds - self.waiting - self.sums - self.gradients


@dataclass
class Steps:
    """Updates of one worker."""

    split: list[Split] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    """Seconds of updates that were not split."""


class Pretraining(Task):
    """Training of a method on crops that are there already."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        self.header: Mapping[str, Any] = {}
        self.method: Method = config.method.resolved().build(config.network)

    def trainable(self) -> torch.nn.Module:
        """Return what the method trains."""
        return self.method.trainable()

    def networks(self) -> Any:
        """Return all networks of the method."""
        return self.method.networks()

    def forward(self, sample: Mapping[str, Any], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Compute the loss of normalised crops with the random numbers of their masks."""
        volume = sample["volume"].contiguous(memory_format=self.memory_format)
        result = self.method.training_step(MaskedBatch(volume, sample["noise"]), progress)
        return result.loss, result.scalars

    def after_step(self, progress: float) -> None:
        """Let the method follow an update."""
        self.method.after_step(progress)

    def validate(self, recorder: Recorder, step: int) -> float | None:
        """Do nothing."""
        return None


def configuration(recipe: str, workers: int, samples: int) -> PretrainConfig:
    """Return the settings of a recipe on so many workers, each of which computes `samples` samples of an update."""
    config: PretrainConfig = RECIPES[recipe].settings("pretrain")
    return replace(
        config,
        data="",
        training=replace(config.training, batch_size=samples * workers),
        cluster=ClusterConfig(workers=workers),
    )


def worker(rank: int, workers: int, meeting: str, config: PretrainConfig, updates: int) -> Steps:
    """Run updates in this process, split ones and whole ones in turn."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of weights in channels-last, as in training
    if workers > 1:
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    found = Steps()
    plain, split = (Run(config, Workers(rank, workers), splitting) for splitting in (False, True))
    for number in range(-WARM_UP, updates):
        seconds, parts = plain.update().seconds, split.update()
        if number >= 0:
            found.whole.append(seconds)
            found.split.append(parts)
    if workers > 1:
        distributed.destroy_process_group()
    return found


def random_sample(config: PretrainConfig, samples: int) -> dict[str, Tensor]:
    """Make crops of noise, and the random numbers of their masks."""
    size = config.loader.patch_size
    patches = math.prod(edge // config.method.patch for edge in size)  # type: ignore[attr-defined]  # AnatoMask's
    return {"volume": torch.randn(samples, 1, *size), "noise": torch.rand(samples, 2, patches)}


class Run:
    """A training of its own, whose updates are split or not."""

    def __init__(self, config: PretrainConfig, workers: Workers, splitting: bool) -> None:
        self.splitting = splitting and workers.count > 1
        task = Pretraining(config)
        model = distribute(task, config.training, workers)
        state = TrainingState.of(task, config.optimiser, CPU)
        self.sample = random_sample(config, workers.share(config.training.batch_size))
        self.step = Update(state, model, workers, config.training, config.optimiser.clip, CPU)
        self.found = Split()
        if self.splitting:
            assert distributed.group.WORLD and isinstance(model, DistributedDataParallel)
            self.group = distributed.group.WORLD
            model.register_comm_hook(None, lambda nothing, bucket: self.average(bucket))

    def update(self) -> Split:
        """Run one update."""
        self.found = Split()
        reduce = self.sum if self.splitting else distributed.all_reduce
        began, cpu = time.perf_counter(), time.thread_time()
        with patch.object(distributed, "all_reduce", reduce):
            self.step(self.sample, 0.5, [1e-4] * len(self.step.state.optimiser.param_groups))
        self.found.seconds, self.found.cpu = time.perf_counter() - began, time.thread_time() - cpu
        return self.found

    def sum(self, values: Tensor) -> None:
        """Sum statistics over the workers, as `distributed.all_reduce` does."""
        self.found.sums += self.reduced(values)
        self.found.count += 1

    def average(self, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
        """Average a bucket of gradients over the workers, as DistributedDataParallel does, and wait for the result."""
        gradients = bucket.buffer().div_(distributed.get_world_size())
        self.found.gradients += self.reduced(gradients)
        self.found.gradient_bytes += gradients.nbytes
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(gradients)
        return done

    def reduced(self, values: Tensor) -> float:
        """Meet the others, then sum; return the seconds of the sum."""
        began = time.perf_counter()
        distributed.barrier()
        met = time.perf_counter()
        self.group.allreduce([values]).wait()
        self.found.waiting += met - began
        return time.perf_counter() - met


def measured(recipe: str, workers: int, samples: int, updates: int) -> list[Steps]:
    """Run updates on so many workers; return those of each."""
    config = configuration(recipe, workers, samples)
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes,
    ):
        meeting = str(Path(folder) / "meeting")
        running = [processes.submit(worker, rank, workers, meeting, config, updates) for rank in range(workers)]
        return [one.result() for one in running]


def figures(steps: list[Steps]) -> dict[str, float]:
    """Return the medians over the updates of all workers."""
    parts = [one for worker in steps for one in worker.split]

    def median(read: Callable[[Split], float]) -> float:
        return statistics.median(map(read, parts))

    return {
        "whole": statistics.median(seconds for worker in steps for seconds in worker.whole),
        "computing": median(lambda one: one.computing),
        **{name: median(lambda one, name=name: getattr(one, name)) for name in asdict(Split())},  # type: ignore[misc]
    }


def predicted(found: Mapping[str, float], recipe: str, samples: int) -> tuple[StepTime, LinkConfig, StepCost]:
    """Predict the whole update on two workers from the computing of its parts, by the arithmetic of the dry run.

    Returns:
        The time; the links, whose speeds are those of the split updates; what the arithmetic counts of an update.
    """
    config = configuration(recipe, 2, samples)
    cost = costs.worker_cost(config, *costs.pretraining_update(config))
    links = LinkConfig(
        inside=found["gradient_bytes"] / found["gradients"] / 1e9,
        hop=1e6 * found["sums"] / found["count"] / 2,
    )
    return step_time(found["computing"], cost.exchange, 2, links), links, cost
