"""A training under Ray Train: how its workers are started, replaced and stopped."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.exceptions import ActorDiedError, RayActorError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from anatomask.cluster_shares import TrainingResources
from anatomask.data.storage import storages
from anatomask.errors import Stopped, UserError, first_line
from anatomask.ray_watch import GONE, RayGone
from anatomask.runs.checkpoint_index import last_step
from anatomask.training.copies import driver_copy
from anatomask.training.job import TrainingJob
from anatomask.training.journal import note
from anatomask.training.process_group import ProcessGroupConfig
from anatomask.training.stopping import run_until_stopped

PEER_SECONDS = 1800


def fit(job: TrainingJob, resources: TrainingResources, max_failures: int) -> None:
    """Run a job to its end under Ray Train's TorchTrainer, from its last checkpoint on.

    Lost workers are replaced, up to `max_failures` times; the job continues with fewer where `resources` allow it.
    Workers of machines that Ray knew to be taken away (preempted) are replaced however often, which is Ray's default.
    Ray's own state lies in the run's `ray` folder. SIGTERM and Ctrl-C end the job with a checkpoint.

    Raises:
        UserError: a worker refused its input, or workers were lost too often.
        RayGone: Ray Train's own process for this training has died.
        Stopped: a signal came, or workers found a file that asks them to stop; the checkpoint is written.
    """
    if last_step(job.run) >= job.last_update:
        return
    callbacks: list[Any] = [FailureCallback(job.run)]
    workers = (resources.min_workers, resources.workers)
    trainer = TorchTrainer(
        start_worker,
        train_loop_config={"job": job, "resources": resources},
        scaling_config=ScalingConfig(
            num_workers=workers[0] if workers[0] == workers[1] else workers,  # type: ignore[arg-type]  # of Tune's kind
            use_gpu=resources.gpu,
            resources_per_worker=resources.per_worker,
            accelerator_type=resources.gpu_type or None,
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
        with driver_copy(job):
            run_until_stopped(trainer.fit, job.run)
        job.copy.fetch()
    except ActorDiedError as error:
        raise RayGone(GONE.format(process="controller of the training")) from error
    except TrainingFailedError as error:
        cause = _cause(error)
        if isinstance(cause, UserError):
            raise UserError(first_line(cause)) from error  # Ray Data adds what it thinks of it
        if isinstance(cause, OSError):
            raise cause from error
        if isinstance(cause, RayActorError):
            raise UserError(
                f"workers were lost more than {max_failures} times (--cluster.max-failures), the last time because "
                f"{first_line(cause)}. What happened is in {job.run / 'log.txt'}; the same command goes on"
            ) from error
        raise
    if last_step(job.run) < job.last_update:
        raise Stopped


def peer_seconds(job: TrainingJob) -> int:
    """Return the seconds that a worker waits for the others: Ray Train's limit, and the longest outage of the data."""
    return int(PEER_SECONDS + 60 * storages(job.data)[0].max_outage)


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
                    note(self.run, f"stopped: {first_line(cause)}")
                raise cause
        for rank, cause in causes.items():
            taken = isinstance(cause, RayActorError) and cause.preempted
            how = "lost, with a machine that was taken away" if taken else "failed"
            note(self.run, f"worker {rank} {how}: {first_line(cause)}")


def start_worker(config: dict[str, Any]) -> None:
    """Run one worker of a job. Its imports take seconds, which the driver and Ray's controller do without."""
    from anatomask.training.worker import run_worker

    run_worker(**config)


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
        wrapped = (getattr(cause, name, None) for name in ("cause", "_base_exc", "health_check_failure", "__cause__"))
        inner = next(filter(None, wrapped), None)
        posing = isinstance(cause, RayTaskError)  # as what it wraps
        if (isinstance(cause, UserError | OSError) and not posing) or not isinstance(inner, BaseException):
            return cause
        cause = inner


def _of_a_connection(error: OSError) -> bool:
    """Return whether an error concerns a connection to another worker, which is a consequence of losing it."""
    return isinstance(error, ConnectionError | TimeoutError)
