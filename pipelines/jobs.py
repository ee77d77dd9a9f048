"""What the two training stages share: the digest of their inputs, and running a job to its end."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from anatomask.cluster import ClusterConfig, running, training_resources
from anatomask.data.storage import Storage
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.journal import JOURNAL
from anatomask.training.ray_train import TrainingJob, fit
from anatomask.training.recorder import METRICS
from anatomask.training.run import open_run
from anatomask.weights import TENSORS
from pipelines.progress import NewLines, following


def data_digest(path: str) -> str:
    """Digest of what a prepared data set holds: its cases and their splits."""
    storage = Storage(path)
    return hashlib.sha256(storage.read("cases.jsonl") + storage.read("splits.json")).hexdigest()


def weights_digest(folder: Path) -> str:
    """Digest of the weights in a folder."""
    with (folder / TENSORS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_job(job: TrainingJob, cluster: ClusterConfig, description: str, *, overwrite: bool) -> None:
    """Train, or go on with it, and show its progress.

    Raises:
        UserError: the run's folder holds another run, the cluster is too small, or a worker found bad input.
    """
    with running(cluster):
        resources = training_resources(cluster)
        journal = NewLines(job.run / JOURNAL)
        open_run(job.run, job.settings, overwrite=overwrite, inputs=job.inputs, resources=asdict(resources))
        start = Checkpoints(job.run).step()
        with following(job.run / METRICS, journal, job.total_steps, description, start):
            fit(job, resources, cluster.max_failures)
