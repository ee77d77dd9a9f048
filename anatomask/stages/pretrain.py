"""Self-supervised pretraining by AnatoMask: `anatomask pretrain`, or this file under `ray submit`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from anatomask.config import PretrainConfig
from anatomask.data.addresses import public_address
from anatomask.data.index import data_digest
from anatomask.data.samples import SampleSequence, random_origin, worker_share
from anatomask.data.shards import LOCATED_CASES, PreparedDataset
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.nested import plain
from anatomask.runs.folder import run_folder
from anatomask.stages.jobs import refuse_wrong_gradients_here, require_memory_here, run_job
from anatomask.stages.remarks import large_crops, tell, watched_test_cases
from anatomask.training.estimate import Reading, cost_rows, device_of, reading_rows
from anatomask.training.fixed_scans import choose_fixed_cases
from anatomask.training.job import TrainingJob
from anatomask.training.tasks import pretraining_task
from anatomask.weights.files import describe_architecture


def build_job(config: PretrainConfig) -> TrainingJob:
    """The training job of a configuration.

    Raises:
        UserError: the data set is missing, has no such split or no cases in it, or other channels than the network.
    """
    dataset = PreparedDataset.open(Storage(config.data, config.cluster.max_outage))
    cases = select_cases(dataset, config.splits)
    check_channels(dataset, config.network.in_channels)
    config = replace(config, method=config.method.resolved())
    method = config.method
    method.check_data(dataset)
    fixed = choose_fixed_cases(dataset, cases)
    header = {
        "format": 1,
        "kind": "pretraining",
        "architecture": describe_architecture(config.network),
        "method": {**plain(method), "label": method.label()},
        "encoder": method.encoder,
        "stages": method.stages(config.network),
        "patch_size": list(config.loader.patch_size),
        "spacing": list(dataset.spacing),
        "fingerprint": dataset.fingerprint.to_dict(),
        "dataset": dataset.name,
        "data": public_address(dataset.path),
    }
    inputs = {"data": data_digest(dataset.storage, splits=True)}
    return TrainingJob(
        run=run_folder(config.runs, config.name, "pretrain", config.data, plain(config), inputs),
        data=dataset.storage,
        sequence=SampleSequence(cases, config.seed),
        draw=method.draw(config.loader),
        build_task=partial(
            pretraining_task, method, config.network, config.loader, header, dataset.path, fixed, config.seed
        ),
        loader=config.loader,
        training=config.training,
        optimiser=config.optimiser,
        seed=config.seed,
        settings=plain(config),
        inputs=inputs,
        largest_stride=max(config.network.strides[: method.stages(config.network)]),
    )


def select_cases(dataset: PreparedDataset, splits: Sequence[str]) -> tuple[str, ...]:
    """The cases of the named splits, sorted. Raises UserError when there is no such split, or no case in it."""
    for split in splits:
        if split not in dataset.splits:
            raise UserError(f"{dataset.shown} has no split {split}; there are {', '.join(dataset.splits)}")
    cases = tuple(sorted(case for split in splits for case in dataset.splits[split]))
    if not cases:
        sizes = ", ".join(f"{name} ({len(members)} cases)" for name, members in dataset.splits.items())
        raise UserError(
            f"{dataset.shown} has no cases in {', '.join(splits)}; choose other --splits: there are {sizes}"
        )
    return cases


def check_channels(dataset: PreparedDataset, in_channels: int) -> None:
    """Raise UserError unless the network takes as many channels as the data set has."""
    if len(dataset.channel_names) != in_channels:
        raise UserError(
            f"{dataset.shown} has {len(dataset.channel_names)} channels ({', '.join(dataset.channel_names)}); "
            f"set --network.in-channels {len(dataset.channel_names)}"
        )


def stage(config: PretrainConfig, *, overwrite: bool) -> int:
    """Pretrain, or go on with it."""
    job = build_job(config)
    tell(remarks_on(config))
    require_memory_here(config)
    run_job(job, config.cluster, "pretrain", overwrite=overwrite)
    print(
        f"Pretrained weights: {job.run}\n"
        f"Look at the training: tensorboard --logdir {job.run.parent}\n"
        f"Next: anatomask finetune --init {job.run} --data FOLDER (prepared, with labels)"
    )
    return 0


def remarks_on(config: PretrainConfig) -> list[str]:
    """List what is allowed and may surprise."""
    dataset = PreparedDataset.open(Storage(config.data, config.cluster.max_outage))
    cases = select_cases(dataset, config.splits)
    fixed = choose_fixed_cases(dataset, cases)
    return [*large_crops(dataset, cases, config.loader.patch_size), *watched_test_cases(dataset, fixed)]


def plan(config: PretrainConfig) -> list[tuple[str, str]]:
    """What would be done, for `--dry-run`."""
    from anatomask.stages import costs
    from anatomask.training.cost import less_memory

    job = build_job(config)
    if config.plan.tflops is None:  # else it is for other devices than this machine's
        refuse_wrong_gradients_here(job, config.cluster)
    workers = config.cluster.workers
    method, loss = costs.pretraining_update(config)
    cost = costs.worker_cost(config, method, loss)
    options = less_memory(method, loss, config.training, workers, config.optimiser.moments)
    parameters = sum(parameter.numel() for parameter in method.trainable().parameters())
    encoder = sum(p.numel() for name, p in method.named_parameters() if name.startswith(config.method.encoder))
    dataset = PreparedDataset.open(config.data)
    given = job.sequence.cases
    cases = config.plan.cases or len(given)
    per_epoch = config.training.updates_per_epoch(cases)
    steps = config.training.epochs * per_epoch
    sizes = dataset.shard_sizes()
    stored = cases / len(given) * sum(sizes.get(case, 0) for case in given)
    voxels = math.prod(config.loader.patch_size)
    crop_bytes = 2 * config.network.in_channels * voxels  # int16 or float16
    device = device_of(config.plan)
    return [
        ("run", str(job.run)),
        *(("note", text) for text in remarks_on(config)),
        ("cases", f"{len(job.sequence.cases)} ({', '.join(config.splits)}) of {public_address(config.data)}"),
        ("planned for", f"{cases} cases like these {len(given)}" if config.plan.cases else f"these {cases} cases"),
        ("shards", f"{cases} files, {stored / 1e9:,.2f} GB"),
        ("updates", f"{steps} = {config.training.epochs} epochs x {per_epoch}"),
        (
            "crops",
            f"{steps * config.training.batch_size} of {'x'.join(map(str, config.loader.patch_size))} voxels",
        ),
        *config.method.resolved().plan(config.loader, dataset.spacing),
        (
            "parameters",
            f"{parameters / 1e6:.2f} M, in the encoder {encoder / 1e6:.2f} M "
            f"({config.method.stages(config.network)} of its {len(config.network.strides)} stages are trained)",
        ),
        *cost_rows(cost, options, steps, workers, config.training.precision, device),
        *reading_rows(
            read_some(job, dataset, cases, config.plan.samples),
            crop_bytes,
            len(worker_share(config.training.batch_size, workers - 1, workers)),
            cost,
            workers,
            device,
        ),
    ]


def read_some(job: TrainingJob, dataset: PreparedDataset, cases: int, count: int) -> Reading:
    """Draw the first samples of a run as its readers will with so many cases, and see what that takes."""
    size = job.loader.patch_size
    seconds, taken = 0.0, 0
    for k in range(count):
        case = job.sequence.case(k)
        origin = random_origin(dataset.records[case].shape, size, job.sequence.rng(k))  # the first that is drawn
        taken += dataset.bytes_touched(case, origin, size, label=False)
        if cases > LOCATED_CASES:  # by its next turn, a reader has forgotten where the bricks of a case lie
            dataset = PreparedDataset(
                dataset.storage, dataset.info, dataset.records, dataset.splits, dataset.fingerprint
            )
            taken += dataset.footer_bytes(case)
        start = time.process_time()
        job.draw(dataset, case, job.sequence.rng(k))
        seconds += time.process_time() - start
    return Reading(count, taken / count, seconds / count)
