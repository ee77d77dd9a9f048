"""Common parts of the two training stages: the data, the header of the weights, and the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from anatomask.config import FinetuneConfig, PretrainConfig
from anatomask.data.addresses import address_below, folder_name, is_address, public_address
from anatomask.data.joined import JoinedDataset, open_joined
from anatomask.data.samples import Draw, SampleSequence
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.nested import plain
from anatomask.runs.folder import run_folder
from anatomask.runs.remote import working_folder
from anatomask.stages.remarks import large_crops
from anatomask.training.job import TrainingJob
from anatomask.weights.files import describe_architecture
from anatomask.weights.tensor_files import HEADER_FORMAT

if TYPE_CHECKING:  # the driver needs no network
    from anatomask.training.task import Task

Config = PretrainConfig | FinetuneConfig


def folders(config: Config) -> tuple[str, ...]:
    """List the prepared folders of a training."""
    return (config.data,) if isinstance(config.data, str) else config.data


def open_data(config: Config) -> PreparedDataset:
    """Open the data set of a training, or several as one.

    Raises:
        UserError: a data set is missing, or has other channels than the network, or the data sets do not fit together.
    """
    dataset = open_joined(tuple(Storage(folder, config.cluster.max_outage) for folder in folders(config)))
    channels = dataset.channel_names
    if len(channels) != config.network.in_channels:
        raise UserError(
            f"{dataset.shown} has {len(channels)} channels ({', '.join(channels)}); "
            f"set --network.in-channels {len(channels)}"
        )
    return dataset


def describe_weights(config: Config, dataset: PreparedDataset, classes: int | None = None) -> dict[str, Any]:
    """Return the fields that the headers of pretrained and finetuned weights share; `classes` is for the latter."""
    joined = dataset.members if isinstance(dataset, JoinedDataset) else ()
    return {
        "format": HEADER_FORMAT,
        "architecture": describe_architecture(config.network, classes),
        "patch_size": list(config.loader.patch_size),
        "spacing": list(dataset.spacing),
        "fingerprint": dataset.fingerprint.to_dict(),
        "dataset": dataset.name,
        "data": [public_address(one.path) for one in joined] or public_address(dataset.path),
        **({"normalised_by": joined[0].name} if joined else {}),
    }


def training_job(
    config: Config,
    verb: str,
    dataset: PreparedDataset,
    cases: tuple[str, ...],
    draw: Draw,
    build_task: Callable[[torch.device], Task],
    inputs: Mapping[str, str],
    stages: int | None = None,
    origin: str = "",
    remarks: Sequence[str] = (),
) -> TrainingJob:
    """Compose the job of a training.

    Args:
        config: settings of the run.
        verb: name of the stage, with which the name of the run's folder begins.
        dataset: prepared data set.
        cases: cases from which samples are drawn.
        draw: how a sample of a case is drawn.
        build_task: function that builds what a worker trains.
        inputs: digest of each input, by the field of the settings that names it.
        stages: number of encoder stages that are trained. Default: all.
        origin: sentence on what the training starts from, for the run's journal.
        remarks: sentences for it on what may surprise the user, beside those on the crops.

    Raises:
        UserError: the training ends before its learning rate has warmed up.
    """
    updates = config.training.epochs * config.training.updates_per_epoch(len(cases))
    if (config.optimiser.warmup_updates or 0) >= updates:
        raise UserError(
            f"optimiser.warmup_updates {config.optimiser.warmup_updates} must be fewer than the {updates} updates of "
            "this training: lower it, or train for more --training.epochs"
        )
    data = "+".join(map(folder_name, folders(config)))
    run = run_folder(str(working_folder(config.runs)), config.name, verb, data, plain(config), inputs)
    remote = address_below(config.runs, run.name) if is_address(config.runs) else None
    return TrainingJob(
        run=run,
        storage=None if remote is None else Storage(remote, config.cluster.max_outage),
        data=dataset.roots,
        sequence=SampleSequence(cases, config.seed),
        draw=draw,
        build_task=build_task,
        loader=config.loader,
        training=config.training,
        optimiser=config.optimiser,
        seed=config.seed,
        settings=plain(config),
        origin=origin,
        remarks=(*remarks, *large_crops(dataset, cases, config.loader.patch_size)),
        inputs=inputs,
        largest_stride=max(config.network.strides[:stages]),
    )
