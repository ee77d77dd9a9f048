"""Starting or joining Ray, and the arithmetic of resources."""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private import ray_constants

from anatomask.cluster_nodes import (
    DRIVERS,
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
from anatomask.errors import Note, Stopped, UserError
from anatomask.plugins import worker_setup
from anatomask.ray_watch import connected, probe
from anatomask.signals import stopped_by_signals

TOKENS = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
"""Environment variables that give Ray a token, or the path of one."""

WORKER_CPUS = 0.5
"""Number of CPUs that a CPU training worker reserves: its threads use idle cores regardless, and readers need room."""

FEWEST_READER_CPUS = 0.1
"""Number of CPUs below which a reader's share of a node is refused."""

OTHER_VERSIONS = "Version mismatch"
"""Beginning of Ray's refusal of a cluster that runs on another Python or Ray; the refusal has no type of its own."""

LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes of the path of a Unix socket at most."""
SOCKET_BYTES = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead")
"""Bytes that Ray's longest socket adds to the path of its temporary folder."""


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
        return {"CPU": self.worker_cpus, **({"GPU": 1.0} if self.gpu else {})}


@dataclass(frozen=True)
class TrialResources:
    """Resources that a trial of a sweep takes of the cluster."""

    pretraining: TrainingResources
    """Resources of each pretraining, which runs alone."""
    finetuning: TrainingResources
    """Resources of each of the finetunings that run side by side."""
    side_by_side: int
    """Number of these finetunings."""


@contextmanager
def running(config: ClusterConfig) -> Iterator[None]:
    """Start or join Ray, unless it already runs in this process; what was started here ends with the block.

    A Ray that is started here listens on loopback only. Its dashboard stays on: without it, a trial that Tune stops
    never releases its workers.

    Raises:
        UserError: no cluster answers at the address within seconds, the cluster has other versions of Python or Ray, or
            Ray's processes of this machine died meanwhile, or while they started.
        Stopped: a signal came that ends a program in order.
    """
    if ray.is_initialized():
        yield
        return
    tell_threads(config)
    local = config.address == "local"
    options: dict[str, Any] = {"dashboard_host": "127.0.0.1", "resources": {DRIVERS: 16}} if local else {}
    if config.temporary_folder:
        options["_temp_dir"] = str(private_folder(Path(config.temporary_folder)))
    if (setup := worker_setup()) is not None:
        options["runtime_env"] = {"worker_process_setup_hook": setup}
    if not local:
        probe(config.address)
    with own_token() if local else nullcontext(), rays_exit_as_stop():
        try:
            with on_loopback() if local else nullcontext():
                ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except ConnectionError as error:
            raise UserError(f"--cluster.address {config.address}: no Ray cluster answers there") from error
        except RuntimeError as error:
            if not str(error).startswith(OTHER_VERSIONS):
                raise
            raise UserError(
                f"--cluster.address {config.address}: Ray and Python must have the same versions here and there, "
                "down to Python's patch version: install those of the cluster, or run this on its nodes (ray submit, "
                f"ray job submit). {' '.join(str(error).split())}"
            ) from error
        except Exception as error:
            if type(error) is not Exception:  # which Ray raises where one of its processes died while it started
                raise
            raise UserError(f"Ray did not start: {error} The same command goes on where it stopped.") from error
        with stopped_by_signals(), connected():  # after Ray's start, which sets a handler of its own
            yield


@contextmanager
def rays_exit_as_stop() -> Iterator[None]:
    """Turn the exit by which Ray answers SIGTERM while it starts into the exception of our own handler.

    Raises:
        Stopped: SIGTERM came after Ray had set its handler, and before ours was set.
    """
    try:
        yield
    except SystemExit as ending:
        if ending.code != signal.SIGTERM:
            raise
        raise Stopped(signal.SIGTERM) from None


def tell_threads(config: ClusterConfig) -> None:
    """Warn with a `Note` where OMP_NUM_THREADS is set, which nothing reads: Ray sets it for its workers."""
    own = os.environ.get("OMP_NUM_THREADS")
    if own and config.threads is None:
        text = f"OMP_NUM_THREADS={own} is not read: --cluster.threads sets the threads of a worker"
        warnings.warn(Note(text), stacklevel=2)


@contextmanager
def own_token() -> Iterator[None]:
    """Give a Ray that starts within the block its own token, if the home folder neither holds nor can hold one.

    Ray demands a token from those who join it; it makes the token at its first start and stores it below the home
    folder.
    """
    if TOKENS & os.environ.keys() or _keeps_token():
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]


def _keeps_token() -> bool:
    """Return whether the home folder holds Ray's token, or can store it."""
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: this account has no home folder
        return False
    return os.access(folder / "auth_token", os.R_OK) or os.access(folder, os.W_OK | os.X_OK)


def private_folder(folder: Path) -> Path:
    """Make a folder for Ray's temporary files that other accounts cannot enter.

    Ray lets all accounts write into the folder that it is given, so it gets a folder inside the private one.

    Returns:
        The folder for Ray.

    Raises:
        UserError: the path is too long for the sockets in it, or the folder exists and is open to others.
        OSError: the folder cannot be made.
    """
    folder = folder.absolute()
    within = folder / "ray"
    length = len(os.fsencode(within)) + SOCKET_BYTES
    if length > LONGEST_SOCKET:
        raise UserError(
            f"--cluster.temporary-folder {folder} is {length - LONGEST_SOCKET} bytes too long: the sockets in it may "
            f"have paths of {LONGEST_SOCKET} bytes; choose a shorter one"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UserError(
            f"--cluster.temporary-folder {folder} is open to other accounts: name one that is not there yet, or close "
            f"it with chmod 700 {folder}"
        )
    return within


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let a Ray that starts within the block, and all its processes, listen on 127.0.0.1 only.

    On macOS and Windows that is Ray's default. On Linux it has no option: `ray.init` replaces a given 127.0.0.1 by the
    machine's own address. So, while Ray starts, the constant that enables clusters has the value of those systems.
    """
    variable, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    inherited = os.environ.get(variable)
    os.environ[variable], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(variable)
        if inherited is not None:
            os.environ[variable] = inherited


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

    Raises:
        UserError: as `divide`, `of_gpu_type` and `require_known_type`.
    """
    require_known_type(node_resources(), config.gpu_type)
    return awaited(lambda: divide(offered(config), config), config.wait_minutes, shapes(config))


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
        return TrialResources(alone, fit(number), number)
    for number in range(at_once.most, 1, -1) if alone.gpu else ():
        with suppress(UserError):
            return TrialResources(alone, fit(number), number)
    return TrialResources(alone, alone, 1)


def offered(config: ClusterConfig) -> dict[str, float]:
    """Return the resources of the running cluster, of its GPUs those of the type that is asked for, of its CPUs all.

    Raises:
        UserError: as `of_gpu_type`.
    """
    total: dict[str, float] = dict(ray.cluster_resources())
    if config.gpu_type:
        total["GPU"] = sum(node.get("GPU", 0.0) for node in of_gpu_type(node_resources(), config.gpu_type))
    return total


def shapes(config: ClusterConfig, trainings: int = 1) -> list[dict[str, float]]:
    """List what each worker of `trainings` at the same time takes of a node, with its readers."""
    gpu = bool(ray.cluster_resources().get("GPU")) if config.wants_gpu is None else config.wants_gpu
    each = {"CPU": 1.0 + math.ceil(FEWEST_READER_CPUS * config.readers), **({"GPU": 1.0} if gpu else {})}
    if config.gpu_type:
        each[f"{GPU_TYPE}{config.gpu_type}"] = TYPE_SHARE
    return [each] * (trainings * config.workers)


def local_total() -> dict[str, float]:
    """Return the resources of an embedded Ray on this machine, without starting it."""
    return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}


def divide(
    total: Mapping[str, float], config: ClusterConfig, concurrent: int = 1, side_by_side: int = 1
) -> TrainingResources:
    """Divide the resources `total` among the trainings of a moment, so that their workers and readers all find a place.

    On two CPUs, two workers of a whole CPU each would leave none to read the data, and would wait for ever. So CPU
    workers reserve half a CPU, and readers divide the rest. Several trainings get a whole CPU each, which scoring
    needs.

    Args:
        total: resources of the cluster, as Ray names them.
        config: what each training takes.
        concurrent: number of trials at the same time.
        side_by_side: number of trainings of each trial at the same time.

    Raises:
        UserError: `total` is too small; the message names the fields to change.
    """
    trainings = concurrent * side_by_side
    cpus, gpus = total.get("CPU", 0.0) / trainings, total.get("GPU", 0.0)
    words = [f"{concurrent} trials at once"] * (concurrent > 1)
    words += [f"{side_by_side} finetunings side by side"] * (side_by_side > 1)
    fields = ["--concurrent"] * (concurrent > 1) + ["--finetunings-at-once"] * (side_by_side > 1)
    several = " × ".join(words)
    gpu = gpus >= 1 if config.wants_gpu is None else config.wants_gpu
    kind = f" of type {config.gpu_type}" if config.gpu_type else ""
    if gpu and trainings * config.workers > gpus:
        raise UserError(
            f"{several}{' with ' * bool(several)}--cluster.workers {config.workers} need {trainings * config.workers} "
            f"GPUs{kind}, and there are {gpus:g}; lower {' or '.join([*fields, '--cluster.workers'])}"
        )
    if trainings > 1 and cpus < 1:
        raise UserError(f"{several} do not fit on {trainings * cpus:g} CPUs; lower {' or '.join(fields)}")
    worker_cpus = 1.0 if gpu and cpus >= 2 * config.workers else WORKER_CPUS
    readers = config.workers * config.readers
    left = cpus - config.workers * worker_cpus
    reader_cpus = min(1.0, int(100 * left / readers) / 100)
    if reader_cpus < FEWEST_READER_CPUS:
        raise UserError(
            f"{several}{' with ' * bool(several)}{config.workers} workers with {config.readers} readers each do not "
            f"fit on {trainings * cpus:g} CPUs; lower {' or '.join([*fields, '--cluster.workers'])} or "
            "--cluster.readers"
        )
    threads = config.threads or max(1, (os.cpu_count() or 1) // (trainings * config.workers))
    fewest = config.min_workers or config.workers
    return TrainingResources(
        config.workers, fewest, gpu, worker_cpus, config.readers, reader_cpus, threads, config.gpu_type
    )
