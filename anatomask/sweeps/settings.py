"""Settings of sweeps, and of the reproduction of the paper's tables, which consists of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from anatomask.cluster_settings import AtOnce, ClusterConfig
from anatomask.config import FinetuneConfig, PretrainConfig, check_training
from anatomask.evaluation.settings import InferenceConfig
from anatomask.names import check_name
from anatomask.settings import Settings

SET_BY_SWEEP = {
    "pretrain": ("data", "runs", "name", "cluster"),
    "finetune": ("data", "init", "runs", "name", "cluster"),
}
"""Fields of the stages that a sweep fills in itself, by stage."""


@dataclass(frozen=True)
class ProbeConfig(Settings):
    """Settings of probes, by which trials are pruned: short finetunings, with their scoring, after shares of the
    pretraining. A trial is compared with others by its probe after the same share alone."""

    prune: Literal["never", "asha", "median"] = "never"
    """Rule by which trials are stopped. asha: after each probe the best 1/`factor` of those that were probed there go
    on; median: those that are not below the median of the others that were probed there; never: there are no probes."""
    first: float = 0.125
    """Share of the pretraining's epochs after which the first probe comes."""
    factor: int = 2
    """Factor from one probe's share to the next one's, below the whole: 1/8, 1/4, 1/2."""
    epochs: int = 10
    """Epochs of a probe's finetuning, on the first data set, over which its whole schedule runs."""
    startup: int = 4
    """Number of trials that must be complete before median prunes any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.first < 1:
            raise ValueError(f"first must lie in (0, 1), not {self.first}")
        self.require_range(2, 100, "factor")
        self.require_range(1, 1_000_000, "epochs")
        self.require_range(0, 1_000_000, "startup")

    @property
    def shares(self) -> list[float]:
        """Shares of the pretraining after which the probes come; none where no trial is pruned."""
        found, share = list[float](), self.first
        while self.prune != "never" and share < 1:
            found.append(share)
            share *= self.factor
        return found


@dataclass(frozen=True)
class SweepConfig(Settings):
    """Settings of many chains of pretraining, finetuning and scoring, one for each point of a space."""

    space: str
    """Space of the pretraining's fields that vary: the name of a file in tune_spaces, or a path."""
    pretrain_data: Annotated[str | tuple[str, ...], tyro.conf.arg(metavar="FOLDER [FOLDER ...]")]
    """Prepared folders to pretrain on, one or several as in `pretrain`."""
    finetune_data: tuple[str, ...]
    """Prepared folders, each to be finetuned and scored on; a trial's value is the mean DSC over them."""
    pretrain: PretrainConfig
    """Settings of every trial's pretraining, apart from the fields that vary."""
    finetune: FinetuneConfig
    """Settings of every trial's finetuning."""
    runs: str = "runs"
    """Folder of all runs. Those of trials lie in its folder `store`, where all sweeps share them; the sweep's own
    folder has links to them."""
    name: str = ""
    """Name of the sweep. Default: derived from the configuration."""
    seed: int = 0
    """Seed of the points of a free search. Trainings have their own seeds, the same in every trial."""
    seeds: tuple[int, ...] = ()
    """Seeds with each of which a trial runs its whole chain; its value is the mean over them. Default: one chain, with
    the seeds of the stages' settings."""
    trials: int = 20
    """Number of trials of a free search; a larger number continues the same sweep. A table ignores it."""
    concurrent: int = 1
    """Number of trials at once."""
    finetunings_at_once: int | None = None
    """Number of a trial's finetunings that run side by side, each with its scoring. Default: as many as there are GPUs
    for; without GPUs one, since a training takes all CPUs."""
    storage: str = ""
    """Where Optuna keeps the study, which is named as the sweep: the URL of a database (postgresql://…, mysql://…), or
    journal:FILE on storage that all machines share. Default: study.db in the sweep's folder."""
    start_from: Literal["pretrained", "first"] = "pretrained"
    """Weights that finetuning starts from. pretrained: those of the pretraining, on every data set; first: on the first
    data set those, on the others the network that was finetuned on the first, as in the paper."""
    split: Literal["auto", "val", "test"] = "auto"
    """Split that trials are scored on; auto: val where it has labelled cases, so that test stays unseen, else test."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """Settings of scoring the trials."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    finetune_gpu_type: str = ""
    """Type of the GPUs of finetuning and scoring. Default: cluster.gpu_type, that of the pretraining."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.name)
        self.require_local("runs")
        self.require_range(1, 1_000_000, "trials")
        self.require_range(1, 1000, "concurrent", "finetunings_at_once")
        self.require_range(0, 2**32, "seeds")
        self.require_distinct("pretrain_data", "finetune_data", "seeds")
        for name in ("pretrain_data", "finetune_data"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} must name at least one prepared folder")
        for stage, names in SET_BY_SWEEP.items():
            config = getattr(self, stage)
            for name in (*names, *(("seed",) if self.seeds else ())):
                if getattr(config, name) != getattr(type(config)(data=""), name):
                    raise ValueError(f"{stage}.{name} is set by the sweep; leave it out")
            check_training(config.training, config.optimiser, self.cluster, self.seed)
        try:
            self.finetuning_cluster()
        except ValueError as error:
            raise ValueError(f"finetune_{error}") from error

    def finetuning_cluster(self) -> ClusterConfig:
        """Return where networks are finetuned and scored."""
        return replace(self.cluster, gpu_type=self.finetune_gpu_type or self.cluster.gpu_type)

    @property
    def at_once(self) -> AtOnce:
        """Trainings that run at the same time: those that start from the first data set's network come after it."""
        after_first = len(self.finetune_data) - (self.start_from == "first")
        most = max(1, after_first) * max(1, len(self.seeds))
        return AtOnce(self.concurrent, self.finetunings_at_once, most)


@dataclass(frozen=True)
class ReproduceConfig(Settings):
    """Settings of the paper's tables on your data: every row pretrained, finetuned, scored, and laid out."""

    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FOLDER [NAME=FOLDER ...]")]
    """Prepared folders by the names of the data sets: totalsegmentator=shards/ts. The paper's are totalsegmentator,
    flare22, amos22 and autopet2; at other scales than the paper's, any name."""
    tables: tuple[Literal["1", "2", "3", "4", "5", "6"], ...] = ("1", "2", "3", "4", "5", "6")
    """Numbers of the paper's tables."""
    scale: Literal["paper", "openkbp", "phantom"] = "paper"
    """Size of the trainings. paper: as published; openkbp: the small recipes; phantom: those with two updates, which
    shows that everything runs."""
    pretrain_data: Annotated[str | tuple[str, ...], tyro.conf.arg(metavar="FOLDER [FOLDER ...]")] = ()
    """Prepared folders to pretrain on. Default: that of totalsegmentator at the paper's scale, else the first."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of each row."""
    split: Literal["auto", "val", "test"] = "test"
    """Split that is scored."""
    runs: str = "runs"
    """Folder of all runs. Trainings that another sweep has made there are not made again."""
    name: str = "reproduction"
    """First part of the names of the sweeps, and the name of the folder of the report."""
    concurrent: int = 1
    """Number of rows at once."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.name)
        self.require_local("runs")
        self.require_range(0, 2**32, "seeds")
        self.require_range(1, 1000, "concurrent")
        for name in ("data", "tables", "seeds"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} must name at least one")
        self.require_distinct("data", "tables", "seeds")
        if isinstance(self.data, tuple):  # else the user has still to give it
            self._check_data()

    def _check_data(self) -> None:
        names = []
        for given in self.data:
            name, _, folder = given.partition("=")
            if not (name and folder):
                raise ValueError(f"data must be NAME=FOLDER, as totalsegmentator=shards/ts, not {given}")
            names.append(name)
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"data names {name} twice")
