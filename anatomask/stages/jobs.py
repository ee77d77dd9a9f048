"""Common parts of the two training stages: running a job to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anatomask.cluster import running
from anatomask.cluster_settings import ClusterConfig
from anatomask.cluster_shares import training_resources
from anatomask.config import FinetuneConfig, PretrainConfig
from anatomask.errors import UserError
from anatomask.files import exclusive_lock
from anatomask.nested import plain
from anatomask.plugins import plugin_digests
from anatomask.ray_watch import RayGone
from anatomask.runs.checkpoint_index import last_step
from anatomask.runs.folder import open_run
from anatomask.terminal.progress import NewLines, following
from anatomask.training.job import TrainingJob, refuse_wrong_gradients, require_trackers
from anatomask.training.journal import JOURNAL, METRICS, note
from anatomask.training.memory import require_memory
from anatomask.training.ray_train import fit

if TYPE_CHECKING:
    from anatomask.training.cost import StepCost


def run_job(job: TrainingJob, cluster: ClusterConfig, description: str, *, overwrite: bool) -> None:
    """Train, or continue where an earlier call ended, and show the progress.

    Raises:
        UserError: the run's folder holds another run or is in use, its copy cannot be read or written, the cluster is
            too small, a tracker is not installed, a worker found bad input, or Ray died.
    """
    refuse_wrong_gradients_here(job, cluster)
    if cluster.address == "local":
        require_trackers(job.training.trackers)
    with kept_from_others(job.run), job.copy.kept(), end_noted(job.run), running(cluster):
        resources = training_resources(cluster)
        journal = NewLines(job.run / JOURNAL)
        open_run(
            job.run,
            job.settings,
            overwrite=overwrite,
            inputs={**job.inputs, **plugin_digests()},
            resources=asdict(resources),
        )
        start = last_step(job.run)
        for text in (job.origin, *job.remarks):
            if text and not start:
                note(job.run, text)
        job.copy.upload()
        with following(job.run / METRICS, journal, job.total_steps, description, start):
            fit(replace(job, columns=all_settings()), resources, cluster.max_failures)


@contextmanager
def end_noted(run: Path) -> Iterator[None]:
    """Note in the journal of a run that Ray died; what else ends a run is noted where it happens."""
    try:
        yield
    except RayGone as error:
        note(run, f"stopped: {error}")
        raise


@contextmanager
def kept_from_others(folder: Path) -> Iterator[None]:
    """Keep the folder of a run or a sweep from other processes.

    Raises:
        UserError: another process uses it.
    """
    with exclusive_lock(folder.with_name(f".{folder.name}.lock")) as mine:
        if not mine:
            raise UserError(f"{folder} is in use by another process; wait for its end, or choose another --name")
        yield


def refuse_wrong_gradients_here(job: TrainingJob, cluster: ClusterConfig) -> None:
    """Refuse what the workers would refuse (`refuse_wrong_gradients`), where they are to run on this machine's CPUs.

    Raises:
        UserError: torch computes wrong gradients for these settings.
    """
    if cluster.address == "local" and not cluster.wants_gpu and not torch.cuda.is_available():
        refuse_wrong_gradients(job, torch.device("cpu"))


def require_memory_here(config: PretrainConfig | FinetuneConfig) -> None:
    """Check that an update fits roughly into the memory of this machine.

    On a cluster, the memory of its nodes is not known before Ray starts.

    Raises:
        UserError: the update is far beyond the memory.
    """
    cluster = config.cluster
    if cluster.address == "local":
        gpu = torch.cuda.is_available() if cluster.wants_gpu is None else cluster.wants_gpu
        cost = partial(_update_cost, config)
        require_memory(config.training, config.loader, config.network.in_channels, cluster.workers, gpu, cost)


def _update_cost(config: PretrainConfig | FinetuneConfig) -> StepCost:
    """Count what an update takes, which needs seconds."""
    from anatomask.stages import costs

    if isinstance(config, PretrainConfig):
        return costs.worker_cost(config, *costs.pretraining_update(config))
    return costs.worker_cost(config, *costs.finetuning_update(config))


def all_settings() -> dict[str, Any]:
    """Return the fields of both kinds of trainings, with arbitrary values."""
    return plain(FinetuneConfig(data="")) | plain(PretrainConfig(data=""))
