"""Settings of where a stage runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from anatomask.data.outages import MAX_OUTAGE
from anatomask.names import shown
from anatomask.settings import Settings

GPU_TYPE = re.compile(r"[\w.-]*", re.ASCII)
"""Pattern of the types of GPUs."""
ADDRESS = re.compile(r"local|auto|(ray://)?([\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}", re.ASCII)
"""Pattern of the addresses of a cluster."""


@dataclass(frozen=True)
class AtOnce:
    """Trainings of a sweep that run at the same time."""

    trials: int
    finetunings: int | None
    """Number of a trial's finetunings side by side. None: as many as there are GPUs for; without GPUs, one."""
    most: int
    """Number of a trial's finetunings that can run side by side at most, because they do not start from each other."""


@dataclass(frozen=True)
class ClusterConfig(Settings):
    """Settings of where a stage runs. They are not part of a run's identity: another cluster continues the same run."""

    address: str = "local"
    """Address of the cluster. local: an embedded Ray on this machine; auto: this machine's cluster."""
    workers: int = 1
    """Number of training workers; on a GPU cluster one per GPU."""
    min_workers: int | None = None
    """Number of workers, each with a GPU, with which training begins or continues while there is no place for all; a
    sweep's only continues. Default: all of them."""
    readers: int = 1
    """Number of processes that read samples for each training worker."""
    gpu: bool | None = None
    """Give each worker a GPU. Default: if the cluster has any."""
    gpu_type: str = ""
    """Type of the GPUs that are used, as Ray names it: H100, A100, A10G, L4 … Default: any."""
    threads: int | None = None
    """CPU threads of each training worker's torch. Default: its share of the machine's cores."""
    max_failures: int = 3
    """Number of lost workers after which training gives up. Those of machines that Ray knew to be taken away
    (preempted) do not count."""
    max_outage: float = MAX_OUTAGE
    """Minutes without an answer from remote storage, of data or output, after which work stops."""
    wait_minutes: float = 0.0
    """Minutes to wait for machines that a training, a sweep or an evaluation needs and that have not joined the cluster
    yet; a cluster that grows on demand is asked for them. Default: 0, which refuses at once."""
    temporary_folder: str = ""
    """Folder for the temporary files of an embedded Ray, which no other account may enter; it is created if missing.
    Default: Ray's own, which all accounts of the machine may write into (/tmp/ray)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not ADDRESS.fullmatch(self.address):
            raise ValueError(f"address must be local, auto or HOST:PORT, not {shown(self.address)}")
        if not GPU_TYPE.fullmatch(self.gpu_type):
            raise ValueError(f"gpu_type must be a type as H100, not {shown(self.gpu_type)}")
        if self.gpu_type and self.gpu is False:
            raise ValueError(f"gpu_type {self.gpu_type} needs GPUs, and gpu is False; leave one of them out")
        if self.temporary_folder and self.address != "local":
            raise ValueError(
                "temporary_folder is of an embedded Ray; that of a cluster is given to ray start --temp-dir"
            )
        if self.wait_minutes and self.address == "local":
            raise ValueError("wait_minutes is for a cluster, which address names: no machine joins an embedded Ray")
        self.require_range(1, 10_000, "workers", "threads")
        self.require_range(1, 1000, "readers")
        self.require_range(0, 1_000_000, "max_failures", "max_outage", "wait_minutes")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(f"min_workers must lie between 1 and workers {self.workers}, not {self.min_workers}")

    @property
    def wants_gpu(self) -> bool | None:
        """Return whether GPUs are used; None: if there are any."""
        return True if self.gpu_type else self.gpu

    def places(self) -> str:
        """Describe where a training runs."""
        device = {True: "a GPU", False: "CPUs", None: "a GPU, if there are any"}[self.wants_gpu]
        kind = f" of type {self.gpu_type}" if self.gpu_type else ""
        readers = self.workers * self.readers
        return (
            f"{self.workers} worker{'s, each' if self.workers > 1 else ''} on {device}{kind}; "
            f"{readers} reader{'s' if readers > 1 else ''} on free CPUs of any node"
        )
