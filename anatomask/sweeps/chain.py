"""The chain of a trial: pretraining, then finetuning and scoring on each data set, as stages of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anatomask.config import SCRATCH, EvaluateConfig
from anatomask.data.addresses import folder_name
from anatomask.data.index import data_digest
from anatomask.data.joined import open_joined
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.settings import InferenceConfig
from anatomask.names import file_name
from anatomask.nested import overlay_dotted, plain
from anatomask.runs.folder import run_folder
from anatomask.runs.store import Store
from anatomask.sweeps.graph import Stage
from anatomask.sweeps.probes import Probe, probes_of
from anatomask.sweeps.settings import SweepConfig
from anatomask.sweeps.space import Point
from anatomask.training.stopping import stop_file

NEEDED = "needed"
"""Placeholder of the run that a stage reads, until its folder is known."""
PRETRAINED = "pretrained"
"""Value of a point's `finetune.init` that starts from the trial's pretraining, which trials do without that field."""


@dataclass(frozen=True)
class Chain:
    """Everything that a trial needs besides its point. Paths are absolute: trials run elsewhere."""

    folder: Path
    """Folder of the sweep."""
    config: SweepConfig
    splits: Mapping[str, str]
    """Split of each data set whose cases are scored."""
    digests: Mapping[str | tuple[str, ...], str]
    """Digest of what each stage may read: of each folder that is finetuned on, and of those of the pretraining."""
    channels: Mapping[str, int]
    """Number of image channels of each data set, over which the weights that it starts from are repeated."""

    @property
    def inputs(self) -> dict[str, str]:
        """Digest of the content of each input of the sweep, by the field that names it."""
        finetuned = " ".join(self.digests[data] for data in self.config.finetune_data)
        return {"pretrain_data": self.digests[self.config.pretrain_data], "finetune_data": finetuned}

    @property
    def store(self) -> Store:
        """Folder of the runs of all sweeps; once this one is to stop, it claims none of them."""
        return Store(self.folder.parent, stop_file(self.folder))

    def stages(self, point: Point) -> dict[str, Stage]:
        """Return the stages of a trial by the names of their links, each after those that it needs.

        Raises:
            UserError: the space sets a field wrongly; the message names it.
        """
        found: dict[str, Stage] = {}
        for seed in self.config.seeds or (None,):
            found |= {link_name(name, seed): one for name, one in self._stages_of_seed(point, seed).items()}
        return found

    def probes(self, point: Point) -> list[Probe]:
        """Return the probes of a trial; none where trials are not pruned.

        Raises:
            UserError: as `stages`.
        """
        return probes_of(self.config.probe, self.stages(point)) if self.config.probe.shares else []

    def _stages_of_seed(self, point: Point, seed: int | None) -> dict[str, Stage]:
        """Return the stages of a trial with one seed, or with those of the settings.

        Raises:
            UserError: the space sets a field wrongly, or a seed beside `seeds`.
        """
        source, fields = f"--space {self.config.space}", fields_by_stage(point)
        if seed is not None and (own := [name for name in ("pretrain", "finetune") if "seed" in fields[name]]):
            raise UserError(f"{source} sets the seed of {own[0]}, and --seeds sets it too; leave one out")
        seeded = {} if seed is None else {"seed": seed}
        pretraining = replace(self.config.pretrain, data=self.config.pretrain_data, cluster=self.config.cluster)
        inference = overlay_dotted(self.config.inference, fields["inference"], source)
        first = self._stage("pretrain", overlay_dotted(pretraining, {**fields["pretrain"], **seeded}, source))
        init = fields["finetune"].pop("init", PRETRAINED)
        if init not in (PRETRAINED, SCRATCH):
            raise UserError(f"{source}: finetune.init must be {PRETRAINED} or {SCRATCH}, not {init}")
        start, found = first, {} if init == SCRATCH else {"pretrain": first}
        for data in self.config.finetune_data:
            name = file_name(folder_name(data))
            network = replace(self.config.finetune.network, in_channels=self.channels[data])
            settings = replace(self.config.finetune, data=data, init=init, network=network)
            settings = replace(settings, cluster=self.config.finetuning_cluster())
            settings = overlay_dotted(settings, {**fields["finetune"], **seeded}, source)
            finetuned = self._stage("finetune", settings, **({} if init == SCRATCH else {"init": start}))
            if start is first and self.config.start_from == "first":
                start = finetuned
            found[f"finetune-{name}"] = finetuned
            found[f"evaluate-{name}"] = self._stage("evaluate", self.evaluation(data, inference), run=finetuned)
        return found

    def evaluation(self, data: str, inference: InferenceConfig) -> EvaluateConfig:
        """Return the settings of scoring."""
        return EvaluateConfig(
            run=NEEDED,
            data=data,
            split=self.splits[data],
            inference=inference,
            cluster=self.config.finetuning_cluster(),
        )

    def _stage(self, verb: str, config: Any, **needs: Stage) -> Stage:
        return Stage(verb, config, self.digests[config.data], needs)


def link_name(name: str, seed: int | None) -> str:
    """Return the name of the link to a trial's stage; with several seeds, it says which: `pretrain-seed1`."""
    return name if seed is None else f"{name}-seed{seed}"


def fields_by_stage(point: Point) -> dict[str, dict[str, Any]]:
    """Divide a point's fields among the stages, named as they name them: `finetune.optimiser.lr` is finetuning's.

    A field of no named stage is the pretraining's.
    """
    fields: dict[str, dict[str, Any]] = {"pretrain": {}, "finetune": {}, "inference": {}}
    for path, value in point.items():
        stage, _, rest = path.partition(".")
        fields.get(stage, fields["pretrain"])[rest if stage in fields else path] = value
    return fields


def build_chain(config: SweepConfig) -> Chain:
    """Build the chain of a configuration.

    Raises:
        UserError: two data sets have the same name, one has no labelled cases to score, or those of the pretraining do
            not fit together.
    """
    folder = run_folder(config.runs, config.name, "sweep", config.space, plain(config))
    pretraining = tuple(one.root for one in open_joined(folders_of(config.pretrain_data)).roots)
    config = replace(
        config,
        pretrain_data=pretraining if len(pretraining) > 1 else pretraining[0],
        finetune_data=tuple(PreparedDataset.open(data).path for data in config.finetune_data),
    )
    names = [file_name(folder_name(data)) for data in config.finetune_data]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--finetune-data: two folders are named {name}; rename one, since tables name both so")
    read = (config.pretrain_data, *config.finetune_data)
    digests = {data: data_digest(*folders_of(data), splits=True) for data in read}
    splits = {data: scored_split(data, config.split) for data in config.finetune_data}
    channels = {data: len(PreparedDataset.open(data).channel_names) for data in config.finetune_data}
    return Chain(folder, config, splits, digests, channels)


def folders_of(data: str | tuple[str, ...]) -> tuple[Storage, ...]:
    """List the prepared folders of a stage, one or several."""
    return tuple(map(Storage, (data,) if isinstance(data, str) else data))


def scored_split(data: str, split: str) -> str:
    """Return the split that is scored; `auto` is val where it has labelled cases, else test.

    Raises:
        UserError: there are no labelled cases in it.
    """
    dataset = PreparedDataset.open(data)
    for name in ("val", "test") if split == "auto" else (split,):
        if any(dataset.records[case].labelled for case in dataset.splits.get(name, ())):
            return name
    raise UserError(f"--split {split}: {dataset.shown} has no labelled cases to score trials on; choose another split")
