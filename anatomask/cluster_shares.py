"""Shares of the cluster: what each training, trial and task takes of its nodes."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import ray
import torch

from anatomask.cluster_nodes import (
    GPU_TYPE,
    TYPE_SHARE,
    awaited,
    node_resources,
    nodes_beside_trials,
    of_gpu_type,
    require_known_type,
    require_trials,
)
from anatomask.cluster_settings import AtOnce, ClusterConfig
from anatomask.errors import Note, UserError

WORKER_CPUS = 0.5
"""Number of CPUs that a CPU training worker reserves: its threads use idle cores regardless, and readers need room."""

FEWEST_READER_CPUS = 0.1
"""Number of CPUs below which a reader's share of a node is refused."""


@dataclass(frozen=True)
class TrainingResources:
    """Resources that one training takes of the cluster."""

    workers: int
    min_workers: int
    gpu: bool
    worker_cpus: float
    readers: int
    reader_cpus: float
    threads: int
    gpu_type: str = ""
    """Type of the workers' GPUs; empty: any."""

    @property
    def per_worker(self) -> dict[str, float]:
        """Ray resources of one training worker."""
        return {"GPU": 1.0} if self.gpu else {"CPU": self.worker_cpus}


@dataclass(frozen=True)
class TrialResources:
    """Resources that a trial of a sweep takes of the cluster."""

    pretraining: TrainingResources
    """Resources of each pretraining, which runs alone."""
    finetuning: TrainingResources
    """Resources of each of the finetunings that run side by side."""
    side_by_side: int
    """Number of these finetunings."""
    trials: int = 1
    """Number of trials at the same time."""

    @property
    def shared(self) -> bool:
        """Return whether trainings run at the same time, so that what needs several CPUs of a node may wait long."""
        return self.trials * self.side_by_side > 1


def memory_of_tasks(tasks: int) -> tuple[int, int]:
    """Divide the memory of the running cluster among `tasks` of one CPU each; return as `divide_memory`."""
    return divide_memory(nodes_beside_trials(), tasks)


def divide_memory(nodes: Sequence[Mapping[str, float]], tasks: int) -> tuple[int, int]:
    """Divide the memory of each node among as many tasks as it runs at once.

    Args:
        nodes: resources of each node as Ray names them: `CPU`, and `memory` in bytes.
        tasks: number of tasks; each takes a CPU.

    Returns:
        Bytes of memory that each task may take wherever it runs, and bytes of a task that has the largest node to
        itself; None where no node has a CPU.
    """
    memory = {index: node.get("memory", 0.0) for index, node in enumerate(nodes) if node.get("CPU", 0) >= 1}
    at_once = {index: max(1, min(tasks, int(nodes[index]["CPU"]))) for index in memory}
    shares = [memory[index] / at_once[index] for index in memory]
    return int(min(shares, default=0)), int(max(memory.values(), default=0))


def training_resources(config: ClusterConfig) -> TrainingResources:
    """Fit a training into the running cluster, and wait for nodes where the settings say so.

    Where not all workers find a place in that time, it begins with fewer if the settings allow it.

    Raises:
        UserError: as `divide`, `of_gpu_type` and `require_known_type`.
    """
    require_known_type(node_resources(), config.gpu_type)
    try:
        return awaited(lambda: divide(offered(config), config), config.wait_minutes, shapes(config))
    except UserError as refusal:
        fewest = config.min_workers or config.workers
        if fewest == config.workers:
            raise
        nodes = offered(config)
        places = sum(int(node.get("GPU", 0.0)) for node in nodes)  # those that Ray Train will take
        if not takes_gpus(nodes, config) or places >= config.workers:
            raise
        if places < fewest:
            raise UserError(f"{refusal}; {fewest} would do (--cluster.min-workers)") from refusal
    found = divide(nodes, replace(config, workers=places))
    text = (
        f"training begins with {places} of {config.workers} workers (--cluster.min-workers {fewest}), and "
        "goes on with all of them once their machines have joined"
    )
    warnings.warn(Note(text), stacklevel=2)
    return replace(found, workers=config.workers)


def takes_gpus(nodes: Sequence[Mapping[str, float]], config: ClusterConfig) -> bool:
    """Return whether workers on these nodes take GPUs: as the settings say, else where there are any."""
    return sum(node.get("GPU", 0.0) for node in nodes) >= 1 if config.wants_gpu is None else config.wants_gpu


def trial_resources(config: ClusterConfig, at_once: AtOnce, finetuning: ClusterConfig | None = None) -> TrialResources:
    """Fit the trainings of a sweep's trials into the running cluster; as `training_resources`.

    Args:
        config: where networks are pretrained.
        at_once: number of trainings at the same time.
        finetuning: where they are finetuned. Default: as pretrained.

    Raises:
        UserError: as `training_resources` and `require_trials`.
    """
    then = finetuning or config
    for kind in (config.gpu_type, then.gpu_type):
        require_known_type(node_resources(), kind)

    def fit(cluster: ClusterConfig, side_by_side: int) -> TrainingResources:
        require_trials(node_resources(), at_once.trials, side_by_side)
        return divide(offered(cluster), cluster, at_once.trials, side_by_side)

    def find() -> TrialResources:
        trial = arrange_trial(partial(fit, then), at_once)
        return trial if then == config else replace(trial, pretraining=fit(config, 1))

    needs = shapes(then, at_once.trials * min(at_once.finetunings or 1, at_once.most))
    if then != config:
        needs += shapes(config, at_once.trials)
    return awaited(find, config.wait_minutes, needs)


def arrange_trial(fit: Callable[[int], TrainingResources], at_once: AtOnce) -> TrialResources:
    """Choose how many finetunings of a trial run side by side: as many as are asked for, or as GPUs allow.

    Without GPUs a training takes all CPUs, and several would only take more memory.

    Args:
        fit: function of the number of trainings of a trial at the same time that returns the resources of each.
        at_once: what is asked for.

    Raises:
        UserError: what `fit` raises, unless fewer finetunings side by side will do.
    """
    alone = fit(1)
    if at_once.finetunings is not None:
        number = min(at_once.finetunings, at_once.most)
        return TrialResources(alone, fit(number), number, at_once.trials)
    for number in range(at_once.most, 1, -1) if alone.gpu else ():
        with suppress(UserError):
            return TrialResources(alone, fit(number), number, at_once.trials)
    return TrialResources(alone, alone, 1, at_once.trials)


def offered(config: ClusterConfig) -> list[dict[str, float]]:
    """List the resources of each node of the running cluster, without GPUs of another type than is asked for.

    Raises:
        UserError: as `of_gpu_type`.
    """
    nodes = node_resources()
    taken = of_gpu_type(nodes, config.gpu_type)
    return [node if node in taken else node | {"GPU": 0.0} for node in nodes]


def shapes(config: ClusterConfig, trainings: int = 1) -> list[dict[str, float]]:
    """List what each worker of `trainings` at the same time takes of a node, with its readers.

    It is for one reader more than there are, since a node may have less than a reader's share left over.
    """
    gpu = bool(ray.cluster_resources().get("GPU")) if config.wants_gpu is None else config.wants_gpu
    each = {"CPU": 1.0 + math.ceil(FEWEST_READER_CPUS * (config.readers + 1)), **({"GPU": 1.0} if gpu else {})}
    if config.gpu_type:
        each[f"{GPU_TYPE}{config.gpu_type}"] = TYPE_SHARE
    return [each] * (trainings * config.workers)


def this_machine() -> list[dict[str, float]]:
    """List the one node of an embedded Ray on this machine, without starting it."""
    return [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]


def divide(
    nodes: Sequence[Mapping[str, float]], config: ClusterConfig, concurrent: int = 1, side_by_side: int = 1
) -> TrainingResources:
    """Divide a cluster among the trainings of a moment, so that their workers and readers all find a place.

    On two CPUs, two workers of a whole CPU each would leave none to read the data, and would wait for ever. So CPU
    workers reserve half a CPU, and readers divide the rest. Workers with a GPU reserve none, so that no reader keeps
    them from their GPU, but the readers leave as much. On each node, less than the share of a reader may remain that no
    reader can use, so the rest is divided among one reader more for each further node. Several trainings get a whole
    CPU each, which scoring needs.

    Args:
        nodes: resources of each node, as Ray names them.
        config: what each training takes.
        concurrent: number of trials at the same time.
        side_by_side: number of trainings of each trial at the same time.

    Raises:
        UserError: the cluster is too small; the message names the fields to change.
    """
    trainings = concurrent * side_by_side
    total, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    cpus = total / trainings
    words = [f"{concurrent} trials at once"] * (concurrent > 1)
    words += [f"{side_by_side} finetunings side by side"] * (side_by_side > 1)
    fields = ["--concurrent"] * (concurrent > 1) + ["--finetunings-at-once"] * (side_by_side > 1)
    several = " × ".join(words)
    gpu = takes_gpus(nodes, config)
    kind = f" of type {config.gpu_type}" if config.gpu_type else ""
    workers = trainings * config.workers
    fewest = config.min_workers or config.workers
    if fewest < config.workers and not gpu:  # Ray would start as many workers as there are half CPUs
        raise UserError(
            f"--cluster.min-workers {fewest} is for workers with GPUs: on CPUs, those that are left would leave no "
            "place to read the data; leave it out"
        )
    if gpu and workers > gpus:
        raise UserError(
            f"{several}{' with ' * bool(several)}--cluster.workers {config.workers} need {workers} GPUs{kind}, and "
            f"there are {gpus:g}; lower {' or '.join([*fields, '--cluster.workers'])}"
        )
    if trainings > 1 and cpus < 1:
        raise UserError(f"{several} do not fit on {total:g} CPUs; lower {' or '.join(fields)}")
    readers = workers * config.readers
    left = total - workers * (1.0 if gpu and total >= 2 * workers else WORKER_CPUS)
    further = max(0, sum(node.get("CPU", 0.0) > 0 for node in nodes) - 1)
    share = left / (readers + further)
    if trainings > 1 and not gpu:  # the readers of one may come before the workers of another
        share = min(share, (left - further * WORKER_CPUS) / readers)
    reader_cpus = min(1.0, int(100 * share) / 100)
    if reader_cpus < FEWEST_READER_CPUS:
        raise UserError(
            f"{several}{' with ' * bool(several)}{config.workers} workers with {config.readers} readers each do not "
            f"fit on {total:g} CPUs; lower {' or '.join([*fields, '--cluster.workers'])} or --cluster.readers"
        )
    threads = config.threads or threads_of_worker(nodes, gpu, workers)
    worker_cpus = 0.0 if gpu else WORKER_CPUS
    return TrainingResources(
        config.workers, fewest, gpu, worker_cpus, config.readers, reader_cpus, threads, config.gpu_type
    )


def threads_of_worker(nodes: Sequence[Mapping[str, float]], gpu: bool, workers: int) -> int:
    """Return a worker's share of its node's CPUs, on the node where that is least: Ray packs workers together.

    Args:
        nodes: resources of each node, as Ray names them.
        gpu: whether each worker takes a GPU.
        workers: number of workers of all trainings at the same time.
    """
    shares = []
    for node in nodes:
        cpus = node.get("CPU", 0.0)
        together = min(workers, int(node.get("GPU", 0.0) if gpu else cpus / WORKER_CPUS))
        if together and cpus >= 1:
            shares.append(int(cpus / together))
    return max(1, min(shares, default=1))
