"""Self-supervised pretraining: `anatomask pretrain`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from anatomask.config import PretrainConfig
from anatomask.data.addresses import public_address
from anatomask.data.index import data_digest
from anatomask.data.samples import random_origin, worker_share
from anatomask.data.shards import LOCATED_CASES, PreparedDataset
from anatomask.errors import UserError
from anatomask.nested import plain
from anatomask.stages.jobs import refuse_wrong_gradients_here, require_memory_here, run_job
from anatomask.stages.remarks import watched_test_cases
from anatomask.stages.suggestions import after_pretraining
from anatomask.stages.training import describe_weights, folders, open_data, training_job
from anatomask.training.estimate import Reading, device_of, reading_rows
from anatomask.training.fixed_scans import choose_fixed_cases
from anatomask.training.job import TrainingJob
from anatomask.training.tasks import pretraining_task


def build_job(config: PretrainConfig) -> TrainingJob:
    """Return the training job of a configuration.

    Raises:
        UserError: a data set is missing, has no such split or no cases in it, or other channels than the network, or
            the data sets do not fit together.
    """
    dataset = open_data(config)
    cases = select_cases(dataset, config.splits)
    config = replace(config, method=config.method.resolved())
    method = config.method
    method.check_data(dataset)
    stages = method.stages(config.network)
    header = {
        **describe_weights(config, dataset),
        "kind": "pretraining",
        "method": {**plain(method), "label": method.label()},
        "encoder": method.encoder,
        "stages": stages,
        **({"whole": method.whole} if method.whole else {}),
    }
    fixed = choose_fixed_cases(dataset, cases)
    task = partial(pretraining_task, method, config.network, config.loader, header, dataset.roots, fixed, config.seed)
    inputs = {"data": data_digest(*dataset.roots, splits=True)}
    remarks = watched_test_cases(dataset, fixed)
    draw = method.draw(config.loader)
    return training_job(config, "pretrain", dataset, cases, draw, task, inputs, stages, remarks=remarks)


def select_cases(dataset: PreparedDataset, splits: Sequence[str]) -> tuple[str, ...]:
    """Return the cases of the named splits, sorted.

    Raises:
        UserError: there is no such split, or no case in it.
    """
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


def stage(config: PretrainConfig, *, overwrite: bool) -> int:
    """Pretrain, or continue where an earlier call ended."""
    job = build_job(config)
    require_memory_here(config)
    run_job(job, config.cluster, "pretrain", overwrite=overwrite)
    labelled = any(record.labelled for record in open_data(config).records.values())
    print(
        f"Pretrained weights: {job.copy.shown}\n"
        f"Look at the training: tensorboard --logdir {job.run.parent}\n"
        f"{after_pretraining(job.copy.shown, folders(config), labelled, config.loader.patch_size, config.network.name)}"
    )
    return 0


def plan(config: PretrainConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run."""
    from anatomask.stages import costs

    job = build_job(config)
    if config.plan.tflops is None:  # else it is for other devices than this machine's
        refuse_wrong_gradients_here(job, config.cluster)
    workers = config.cluster.workers
    method, loss = costs.pretraining_update(config)
    parameters = sum(parameter.numel() for parameter in method.trainable().parameters())
    encoder = sum(p.numel() for name, p in method.named_parameters() if name.startswith(config.method.encoder))
    dataset = open_data(config)
    given = job.sequence.cases
    cases = config.plan.cases or len(given)
    per_epoch = config.training.updates_per_epoch(cases)
    steps = config.training.epochs * per_epoch
    sizes = dataset.shard_sizes()
    stored = cases / len(given) * sum(sizes.get(case, 0) for case in given)
    voxels = math.prod(config.loader.patch_size)
    crop_bytes = 2 * config.network.in_channels * voxels  # int16 or float16
    cost, rows_of_cost = costs.planned(config, method, loss, steps)
    return [
        ("run", job.copy.shown),
        ("placed", config.cluster.places()),
        *(("note", text) for text in job.remarks),
        ("cases", f"{len(job.sequence.cases)} ({', '.join(config.splits)})"),
        ("of", ", ".join(map(public_address, folders(config)))),
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
        *rows_of_cost,
        *reading_rows(
            read_some(job, dataset, cases, config.plan.samples),
            crop_bytes,
            len(worker_share(config.training.batch_size, workers - 1, workers)),
            cost,
            workers,
            device_of(config.plan),
        ),
    ]


def read_some(job: TrainingJob, dataset: PreparedDataset, cases: int, count: int) -> Reading:
    """Draw the first `count` samples of a run as its readers will with `cases` cases; return what that takes."""
    size = job.loader.patch_size
    seconds, taken = 0.0, 0
    for k in range(count):
        case = job.sequence.case(k)
        origin = random_origin(dataset.records[case].shape, size, job.sequence.rng(k))  # the first that is drawn
        taken += dataset.bytes_touched(case, origin, size, label=False)
        if cases > LOCATED_CASES:  # by its next turn, a reader has forgotten where the bricks of a case lie
            dataset = dataset.uncached()
            taken += dataset.footer_bytes(case)
        start = time.process_time()
        job.draw(dataset, case, job.sequence.rng(k))
        seconds += time.process_time() - start
    return Reading(count, taken / count, seconds / count)
