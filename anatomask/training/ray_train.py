"""The training loop inside Ray Train: workers, their share of each batch, averaged gradients, one writer."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from torch import distributed, nn

from anatomask.cluster import TrainingResources
from anatomask.data.samples import Draw, LoaderConfig, SampleSequence, worker_samples
from anatomask.data.stream import stream_batches
from anatomask.errors import UserError
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.loop import TrainingConfig, train
from anatomask.training.optimiser import OptimiserConfig, build_optimiser
from anatomask.training.recorder import RunRecorder, SilentRecorder
from anatomask.training.task import Task


@dataclass(frozen=True, repr=False)
class TrainingJob:
    """All that a worker needs. It travels to the workers, so it holds settings and no tensors."""

    run: Path
    """Folder of the run, on storage that all nodes share."""
    data: str
    """Folder that `prepare` wrote."""
    sequence: SampleSequence
    draw: Draw
    build_task: Callable[[torch.device], Task]
    loader: LoaderConfig
    training: TrainingConfig
    optimiser: OptimiserConfig
    seed: int
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Digests of what the run is made from, by the name under which a message would speak of it."""

    def __repr__(self) -> str:
        """Ray's dashboard shows it: the data's address may hold credentials."""
        return f"TrainingJob({str(self.run)!r})"

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch."""
        return self.training.updates_per_epoch(len(self.sequence.cases))

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.training.epochs * self.steps_per_epoch


def fit(job: TrainingJob, resources: TrainingResources, max_failures: int) -> None:
    """Run a job to its end under Ray Train's TorchTrainer, from its last checkpoint on.

    A worker that is lost is replaced, up to `max_failures` times. Ray's own state lies in the run's `ray` folder.

    Raises:
        UserError: what a worker found wrong, as it said it.
    """
    if Checkpoints(job.run).step() >= job.total_steps:
        return
    callbacks: list[Any] = [GiveUpOnUserError()]
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job, "resources": resources},
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.gpu, resources_per_worker=resources.per_worker
        ),
        torch_config=TorchConfig(backend="nccl" if resources.gpu else "gloo"),
        run_config=RunConfig(
            name="ray",
            storage_path=str(job.run),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=callbacks,
        ),
    )
    try:
        with interruptible():
            trainer.fit()
    except TrainingFailedError as error:
        cause = _cause(error)
        if isinstance(cause, UserError | OSError):
            raise cause from error
        raise


class GiveUpOnUserError(UserCallback):
    """A lost worker is worth another try; bad input and a full disk are not."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise what the user has to mend, which ends the run."""
        for exception in worker_exceptions.values():
            cause = _unwrapped(exception)
            if isinstance(cause, UserError | OSError):
                raise cause


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt again: Ray Train's handler ends the program with exit code 0, and stays."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        raise KeyboardInterrupt from end
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def run_worker(config: dict[str, Any]) -> None:
    """One worker of a job: restore, stream its share of the batches, train."""
    job: TrainingJob = config["job"]
    resources: TrainingResources = config["resources"]
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = get_device()
    torch.set_num_threads(resources.threads)
    torch.manual_seed(job.seed)

    task = job.build_task(device)
    optimiser = build_optimiser(task.trainable().parameters(), job.optimiser)
    checkpoints = Checkpoints(job.run, writes=rank == 0)
    start = checkpoints.restore(task, optimiser)
    recorder = RunRecorder(job.run, start) if rank == 0 else SilentRecorder()
    batches = stream_batches(
        job.data,
        job.sequence,
        job.draw,
        worker_samples(start, job.total_steps, job.training.batch_size, rank, workers),
        job.training.batch_size // workers,
        read_ahead=job.loader.read_ahead,
        readers=resources.readers,
        reader_cpus=resources.reader_cpus,
    )
    train(
        task,
        batches,
        optimiser,
        checkpoints,
        recorder,
        job.training,
        job.optimiser,
        start=start,
        steps_per_epoch=job.steps_per_epoch,
        device=device,
        synchronise=average_over_workers if workers > 1 else lambda module: None,
    )
    recorder.close()


def average_over_workers(module: nn.Module) -> None:
    """Replace every gradient, and every statistic that normalisation keeps, by its mean over the workers."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    gradients += [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _cause(error: TrainingFailedError) -> BaseException:
    """The exception of the first worker that failed, or of the controller, without Ray's wrapping."""
    cause: BaseException = error
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        cause = error.worker_failures[min(error.worker_failures)]
    elif isinstance(error, ControllerError):
        cause = error.controller_failure
    return _unwrapped(cause)


def _unwrapped(cause: BaseException) -> BaseException:
    """The first error in a chain of Ray's wrappers that is the user's to mend, else the innermost."""
    while True:
        inner = getattr(cause, "cause", None) or getattr(cause, "_base_exc", None) or cause.__cause__
        if isinstance(cause, UserError | OSError) or not isinstance(inner, BaseException):
            return cause
        cause = inner
