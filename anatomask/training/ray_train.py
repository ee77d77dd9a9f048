"""The training loop inside Ray Train: workers, their share of each batch, averaged gradients, one writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, get_device
from ray.train.torch.config import TorchConfig, _TorchBackend
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from anatomask.cluster import TrainingResources
from anatomask.data.samples import Draw, LoaderConfig, SampleSequence, worker_samples
from anatomask.data.storage import Root, Storage
from anatomask.data.stream import stream_batches
from anatomask.errors import UserError, is_out_of_memory
from anatomask.ray_watch import GONE, RayGone
from anatomask.runs.identity import identity
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.failures import NonFiniteWatch
from anatomask.training.journal import note, note_warnings
from anatomask.training.loop import train
from anatomask.training.parallel import Workers, distribute
from anatomask.training.recorder import Recorder, RunRecorder, SilentRecorder
from anatomask.training.scalars import ScalarLog
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.training.state import TrainingState
from anatomask.training.stopping import run_until_stopped, stop_file
from anatomask.training.task import Task
from anatomask.training.update import Update, set_arithmetic

PEER_SECONDS = 1800


@dataclass(frozen=True, repr=False)
class TrainingJob:
    """Everything that a worker needs. It is sent to the workers, so it holds settings and no tensors."""

    run: Path
    """Folder of the run, on storage that all nodes share."""
    data: Root
    """Folder that `prepare` wrote."""
    sequence: SampleSequence
    draw: Draw
    build_task: Callable[[torch.device], Task]
    loader: LoaderConfig
    training: TrainingConfig
    optimiser: OptimiserConfig
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The run's configuration, for TensorBoard's table of hyperparameters."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Settings of all kinds of runs, which are the columns of that table."""
    origin: str = ""
    """Sentence on what the training starts from, for the run's journal."""
    largest_stride: int = 16
    """Stride of the encoder's coarsest map."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Digests of the inputs of the run, by the name that a message gives them."""

    def __repr__(self) -> str:
        """Return a text without the data's address, which may hold credentials: Ray's dashboard shows it."""
        return f"TrainingJob({str(self.run)!r})"

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch."""
        return self.training.updates_per_epoch(len(self.sequence.cases))

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.training.epochs * self.steps_per_epoch

    def cases(self, step: int) -> list[str]:
        """Return the cases of the batch of update `step` (1 is the first)."""
        size = self.training.batch_size
        return [self.sequence.case(k) for k in range((step - 1) * size, step * size)]


def fit(job: TrainingJob, resources: TrainingResources, max_failures: int) -> None:
    """Run a job to its end under Ray Train's TorchTrainer, from its last checkpoint on.

    Lost workers are replaced, up to `max_failures` times; the job continues with fewer where `resources` allow it.
    Ray's own state lies in the run's `ray` folder. SIGTERM and Ctrl-C end the job with a checkpoint.

    Raises:
        UserError: a worker refused its input, or workers were lost too often.
        RayGone: Ray Train's own process for this training has died.
        Stopped: a signal came; the checkpoint is written.
    """
    if Checkpoints(job.run).step() >= job.total_steps:
        return
    callbacks: list[Any] = [FailureCallback(job.run)]
    workers = (resources.min_workers, resources.workers)
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job, "resources": resources},
        scaling_config=ScalingConfig(
            num_workers=workers[0] if workers[0] == workers[1] else workers,  # type: ignore[arg-type]  # of Tune's kind
            use_gpu=resources.gpu,
            resources_per_worker=resources.per_worker,
        ),
        torch_config=ProcessGroupConfig("nccl" if resources.gpu else "gloo", timeout_s=peer_seconds(job)),
        run_config=RunConfig(
            name="ray",
            storage_path=str(job.run),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=callbacks,
        ),
    )
    try:
        run_until_stopped(trainer.fit, job.run)
    except ActorDiedError as error:
        raise RayGone(GONE.format(process="controller of the training")) from error
    except TrainingFailedError as error:
        cause = _cause(error)
        if isinstance(cause, UserError):
            raise UserError(_first_line(cause)) from error  # Ray Data adds what it thinks of it
        if isinstance(cause, OSError):
            raise cause from error
        if isinstance(cause, RayActorError):
            raise UserError(
                f"workers were lost more than {max_failures} times (--cluster.max-failures), the last time because "
                f"{_first_line(cause)}. What happened is in {job.run / 'log.txt'}; the same command goes on"
            ) from error
        raise


def peer_seconds(job: TrainingJob) -> int:
    """Return the seconds that a worker waits for the others: Ray Train's limit, and the longest outage of the data."""
    return int(PEER_SECONDS + 60 * Storage.of(job.data).max_outage)


class ProcessGroupConfig(TorchConfig):
    """Settings of the workers' process group. A single worker needs none, so it opens no port, as Ray's own would."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Class that starts the workers' process group."""
        return _TorchProcessGroup


class _TorchProcessGroup(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        if len(worker_group) > 1:
            super().on_start(worker_group, backend_config)


class FailureCallback(UserCallback):
    """Callback that records why workers failed. A lost worker is worth a retry; bad input and a full disk are not."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise errors that the user has to fix, which ends the run; note all others."""
        causes = {rank: _unwrapped(exception) for rank, exception in worker_exceptions.items()}
        for cause in causes.values():
            if isinstance(cause, UserError) or (isinstance(cause, OSError) and not _of_a_connection(cause)):
                with suppress(OSError):  # where the disk is full
                    note(self.run, f"stopped: {_first_line(cause)}")
                raise cause
        for rank, cause in causes.items():
            note(self.run, f"worker {rank} failed: {_first_line(cause)}")


def run_worker(config: dict[str, Any]) -> None:
    """Run one worker of a job: restore, stream its share of the batches, train.

    Raises:
        UserError: input, numbers or memory are at fault.
    """
    job: TrainingJob = config["job"]
    resources: TrainingResources = config["resources"]
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(resources.threads)
    note_warnings(job.run)
    try:
        run_share(job, resources, workers, get_device())
    except (MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and not is_out_of_memory(error):
            raise
        raise UserError(
            f"the {'GPU' if on_gpu else 'machine'}'s memory is too small ({_first_line(error)}): lower "
            "--training.batch-size or --loader.patch-size, raise --training.accumulate, or set "
            "--training.recompute-activations"
        ) from error


def run_share(job: TrainingJob, resources: TrainingResources, workers: Workers, device: torch.device) -> None:
    """Train this worker's share of a job."""
    settings, writes = job.training, workers.rank == 0
    refuse_wrong_gradients(job, device)
    set_arithmetic(settings.precision)
    task = job.build_task(device)
    with Checkpoints(job.run, writes=writes) as checkpoints:
        start = workers.agree(checkpoints.step(), device)
        checkpoints.load(start, task)
        model = distribute(task, settings, workers)
        state = TrainingState.of(task, job.optimiser, device, scaled=settings.precision == "fp16")
        checkpoints.load_moments(start, state)
        recorder = open_recorder(job, start, task, workers)
        train(
            Update(state, model, workers, settings, job.optimiser.clip, device),
            stream_batches(
                job.data,
                job.sequence,
                job.draw,
                worker_samples(start, job.total_steps, settings.batch_size, workers.rank, workers.count),
                workers.share(settings.batch_size),
                read_ahead=job.loader.read_ahead,
                readers=resources.readers,
                reader_cpus=resources.reader_cpus,
                begin=partial(note_warnings, job.run),
            ),
            checkpoints,
            ScalarLog(
                recorder,
                workers,
                settings.batch_size,
                device,
                NonFiniteWatch(job.run, job.cases, settings.on_non_finite, settings.precision == "fp16", writes),
            ),
            settings,
            job.optimiser,
            start=start,
            steps_per_epoch=job.steps_per_epoch,
            stop=stop_file(job.run).exists,
        )
        recorder.close()
    if writes:
        note(job.run, f"update {checkpoints.step()} of {job.total_steps}: the end")
        stop_file(job.run).unlink(missing_ok=True)


def refuse_wrong_gradients(job: TrainingJob, device: torch.device) -> None:
    """Refuse settings for which torch 2.13 computes wrong gradients: see docs/results/precision.md.

    Raises:
        UserError: the settings are among them.
    """
    first, stride = job.loader.patch_size[0], job.largest_stride
    if device.type == "cpu" and job.training.precision == "bf16" and first <= 2 * stride:  # two voxels at that stride
        raise UserError(
            f"--training.precision bf16: PyTorch's gradients on CPUs are wrong for crops of {first} voxels along the "
            f"first axis; choose --loader.patch-size {3 * stride} … or --training.precision fp32"
        )


def open_recorder(job: TrainingJob, start: int, task: Task, workers: Workers) -> Recorder:
    """Open the run's recorder for rank 0, which also notes where training continues, or a silent one for the others."""
    if workers.rank > 0:
        return SilentRecorder()
    recorder = RunRecorder(job.run, start, identity(job.settings), identity(job.columns), task.charts)
    again = f"; updates {start + 1} to {recorder.reached} are computed again" if recorder.reached > start else ""
    who = f"{workers.count} worker{'s' if workers.count > 1 else ''}"
    note(job.run, f"update {start} of {job.total_steps}: on with {who}{again}")
    return recorder


def _cause(error: TrainingFailedError) -> BaseException:
    """Return the exception of the first worker that failed, or of the controller, without Ray's wrapping."""
    cause: BaseException = error
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        cause = error.worker_failures[min(error.worker_failures)]
    elif isinstance(error, ControllerError):
        cause = error.controller_failure
    return _unwrapped(cause)


def _unwrapped(cause: BaseException) -> BaseException:
    """Return the first error in a chain of Ray's wrappers that the user can fix, else the innermost."""
    while True:
        inner = getattr(cause, "cause", None) or getattr(cause, "_base_exc", None) or cause.__cause__
        posing = isinstance(cause, RayTaskError)  # as what it wraps
        if (isinstance(cause, UserError | OSError) and not posing) or not isinstance(inner, BaseException):
            return cause
        cause = inner


def _of_a_connection(error: OSError) -> bool:
    """Return whether an error concerns a connection to another worker, which is a consequence of losing it."""
    return isinstance(error, ConnectionError | TimeoutError)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
