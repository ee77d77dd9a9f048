"""One worker of a training: it restores its state, streams its share of the batches, and trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ray.train
import torch
from ray.train.torch import get_device

from anatomask.cluster_shares import TrainingResources
from anatomask.data.samples import worker_samples
from anatomask.data.stream import begun, stream_batches
from anatomask.errors import UserError, first_line, is_out_of_memory
from anatomask.runs.identity import identity
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.copies import worker_copy
from anatomask.training.failures import NonFiniteWatch
from anatomask.training.job import TrainingJob, refuse_wrong_gradients
from anatomask.training.journal import note, note_events
from anatomask.training.loop import train
from anatomask.training.parallel import Workers, distribute
from anatomask.training.recorder import Recorder, RunRecorder, SilentRecorder
from anatomask.training.scalars import ScalarLog
from anatomask.training.state import TrainingState
from anatomask.training.stopping import stop_file
from anatomask.training.task import Task
from anatomask.training.trackers import followed
from anatomask.training.update import Update, set_arithmetic

KINDS = {"pretraining": "pretraining", "segmentation": "finetuning"}
"""Kind of weights in a header -> kind of the training that makes them."""


def run_worker(job: TrainingJob, resources: TrainingResources) -> None:
    """Run one worker of a job: restore, stream its share of the batches, train.

    Raises:
        UserError: input, numbers or memory are at fault.
    """
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(resources.threads)
    note_events(job.run)
    try:
        with worker_copy(job, workers, get_device()) as written:
            run_share(job, resources, workers, get_device(), written)
    except (MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and not is_out_of_memory(error):
            raise
        raise UserError(
            f"the {'GPU' if on_gpu else 'machine'}'s memory is too small ({first_line(error)}): lower "
            "--training.batch-size or --loader.patch-size, raise --training.accumulate, or set "
            "--training.recompute-activations"
        ) from error
    if workers.rank == 0:
        stop_file(job.run).unlink(missing_ok=True)


def run_share(
    job: TrainingJob,
    resources: TrainingResources,
    workers: Workers,
    device: torch.device,
    written: Callable[[], None] = lambda: None,
) -> None:
    """Train this worker's share of a job; `written` is called after each checkpoint."""
    settings, writes = job.training, workers.rank == 0
    refuse_wrong_gradients(job, device)
    set_arithmetic(settings.precision)
    with Checkpoints(job.run, writes=writes, written=written) as checkpoints:
        start = workers.agree(checkpoints.step(), device)
        if start >= job.last_update:  # on a machine that could not upload it
            return
        batches = begun(
            stream_batches(
                job.data,
                job.sequence,
                job.draw,
                worker_samples(start, job.total_steps, settings.batch_size, workers.rank, workers.count),
                workers.share(settings.batch_size),
                read_ahead=job.loader.read_ahead,
                readers=resources.readers,
                reader_cpus=resources.reader_cpus,
                begin=partial(note_events, job.run),
            )
        )
        task = job.build_task(device)
        checkpoints.load(start, task)
        model = distribute(task, settings, workers)
        state = TrainingState.of(task, job.optimiser, device, scaled=settings.precision == "fp16")
        checkpoints.load_moments(start, state)
        recorder = open_recorder(job, start, task, workers)
        train(
            Update(state, model, workers, settings, job.optimiser.clip, device, job.optimiser.clip_of),
            batches,
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
            until=job.until,
            stop=lambda: any(file.exists() for file in (stop_file(job.run), job.stop) if file),
        )
        recorder.close()
    if writes:
        done = checkpoints.step()
        left = "left for a probe" if done == job.until else "stopped; the same command goes on"
        came_to = "the end" if done >= job.total_steps else left
        note(job.run, f"update {done} of {job.total_steps}: {came_to}")


def open_recorder(job: TrainingJob, start: int, task: Task, workers: Workers) -> Recorder:
    """Open the run's recorder for rank 0, which also notes where training continues, or a silent one for the others."""
    if workers.rank > 0:
        return SilentRecorder()
    kind = KINDS.get(task.header.get("kind", ""), "train")
    settings = identity(job.settings)
    recorder = RunRecorder(job.run, start, settings, identity(job.columns), task.charts, kind)
    again = f"; updates {start + 1} to {recorder.reached} are computed again" if recorder.reached > start else ""
    who = f"{workers.count} worker{'s' if workers.count > 1 else ''}"
    note(job.run, f"update {start} of {job.total_steps}: training with {who}{again}")
    return followed(recorder, job.run, job.training.trackers, settings)
