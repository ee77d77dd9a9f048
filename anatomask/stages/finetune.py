"""Supervised finetuning from pretrained weights or from scratch: `anatomask finetune`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch

from anatomask.config import SCRATCH, FinetuneConfig
from anatomask.data.addresses import public_address
from anatomask.data.folds import cases_digest, fold_cases, fold_numbers
from anatomask.data.index import data_digest
from anatomask.data.samples import FinetuningDraw, mirrored_axes
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.validation import Validation
from anatomask.nested import plain
from anatomask.nn.backbones.base import Segmenter
from anatomask.plugins import plugin_flags
from anatomask.runs.identity import run_key
from anatomask.runs.remote import run_copy
from anatomask.runs.siblings import of_any_fold
from anatomask.stages.jobs import refuse_wrong_gradients_here, require_memory_here, run_job
from anatomask.stages.remarks import labels_besides, other_data, sides_unknown, unused_folds
from anatomask.stages.training import describe_weights, open_data, training_job
from anatomask.training.job import TrainingJob
from anatomask.training.tasks import finetuning_task
from anatomask.weights.files import (
    Transfer,
    find_weights,
    initialise,
    method_label,
    read_header,
    read_weights,
    require_same_size,
    split_init,
    weights_digest,
)
from anatomask.weights.header import require_fields
from anatomask.weights.matching import count_loaded


def build_job(config: FinetuneConfig) -> TrainingJob:
    """Return the training job of a configuration.

    Raises:
        UserError: the data set is missing, has no labelled training cases, or other channels than the network; or the
            initial weights are missing, or are those of another architecture.
    """
    dataset = open_data(config)
    train_cases, val_cases = select_labelled(dataset, config)
    transfer, initial = split_init(config.init)
    initial_run = run_copy(initial, config.cluster.max_outage)
    source = None if config.init == SCRATCH else find_weights(initial_run.found())
    inputs = {"data": data_digest(dataset.storage, splits=True)}
    if source is not None:
        inputs["init"] = weights_digest(source) if transfer == "whole" else f"{transfer} {weights_digest(source)}"
    header = {
        **describe_weights(config, dataset, len(dataset.class_names)),
        "kind": "segmentation",
        "mirror_axes": list(mirrored_axes(config.loader, dataset.class_names.values())),
        "class_names": {str(number): name for number, name in dataset.class_names.items()},
        "train_fraction": config.train_fraction,
        "train_cases": len(train_cases),
        "initialisation": initialisation(config, source),
    }
    if config.fold is not None:
        header["fold"] = describe_fold(config, dataset, inputs)
    start = partial(start_from, source=source, transfer=transfer, seed=config.seed)
    header["loaded"] = loaded = count(config, header, start if source else None)
    task = partial(
        finetuning_task,
        config.network,
        header,
        start,
        Validation(dataset.storage, val_cases, config.loader.patch_size, config.inference),
        config.seed,
        frozen=config.optimiser.freeze == config.training.epochs,
    )
    draw = FinetuningDraw(config.loader, tuple(header["mirror_axes"]))
    origin = loaded_in_words(loaded, public_address(config.init))
    remarks = labels_besides(train_cases, val_cases, config.train_fraction) + unused_folds(dataset, config.fold)
    remarks += sides_unknown(dataset.class_names.values(), header["mirror_axes"])
    if source is not None:
        remarks += other_data(read_header(source), dataset)
    job = training_job(config, "finetune", dataset, train_cases, draw, task, inputs, origin=origin, remarks=remarks)
    return replace(job, needs=(initial_run,))


def initialisation(config: FinetuneConfig, source: Path | None) -> dict[str, Any]:
    """Describe what the network starts from, for its header and the tables.

    A network that was finetuned from a pretraining on other data, as in the paper, hands on the method of that; `via`
    names the data.

    Raises:
        UserError: the weights are of another architecture, or their header lacks a field.
    """
    if source is None:
        return {"method": SCRATCH, "run": None}
    header = read_header(source)
    require_same_size(header, config.network)
    require_fields(header, source, "kind", "dataset", *(("method",) if header.get("kind") == "pretraining" else ()))
    own = (header.get("initialisation") or {}).get("method", SCRATCH)
    if pretraining := header["kind"] == "pretraining":
        method = method_label(header)
    else:
        method = f"finetuned on {header['dataset']}" if own == SCRATCH else own
    transfer, run = split_init(public_address(config.init))
    described = {"whole": method, "encoder": f"{method}, encoder", "permuted": f"{method}, permuted"}[transfer]
    via = {} if pretraining else {"via": header["dataset"]}
    return {"method": described, "run": run, "dataset": header["dataset"], **via}


def start_from(network: Segmenter, *, source: Path | None, transfer: Transfer, seed: int) -> Sequence[str]:
    """Put initial weights into `network`; return the names of the tensors that were not transferred."""
    return [] if source is None else initialise(network, read_weights(source), transfer, seed)


def count(
    config: FinetuneConfig, header: Mapping[str, Any], start: Callable[[Segmenter], Sequence[str]] | None
) -> dict[str, int]:
    """Count how much of the network `start` will load (None: nothing), on a network without values.

    Raises:
        UserError: what `start` finds wrong with the weights, before any worker does.
    """
    with torch.device("meta"):
        network = config.network.segmenter(header["architecture"]["classes"])
    return count_loaded(network, list(network.state_dict()) if start is None else start(network))


def loaded_in_words(loaded: Mapping[str, int], source: str) -> str:
    """Format what `count` found as a sentence."""
    if not loaded["tensors"]:
        return "starts from random weights"
    part, whole = loaded["parameters"], loaded["of_parameters"]
    return (
        f"loaded {loaded['tensors']} of {loaded['of_tensors']} tensors, {part / 1e6:.3g} of {whole / 1e6:.3g} M "
        f"parameters ({100 * part / whole:.0f} %) from {source}"
    )


def select_labelled(dataset: PreparedDataset, config: FinetuneConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Choose labelled cases for training, of which a seeded share is taken, and for validation.

    The cases of `config.fold` are left out, and with it those that are watched. Smaller shares are contained in larger
    ones. Where no validation case is labelled, a seeded share of the training cases is held out first, the same for
    every share.

    Raises:
        UserError: no labelled training case remains, or none whose label holds a class; or there is no such fold.
    """
    watched = dataset.splits.get(config.val_split)
    away = set() if config.fold is None else {*fold_cases(dataset.splits, config.fold, dataset.shown), *(watched or ())}
    train = sorted(case for case in dataset.splits["train"] if dataset.records[case].labelled and case not in away)
    if watched is None and config.val_split != "val":
        raise UserError(f"{dataset.shown} has no split {config.val_split}; there are {', '.join(dataset.splits)}")
    val = sorted(case for case in watched or () if dataset.records[case].labelled)
    order = [train[index] for index in np.random.default_rng([config.seed, 2]).permutation(len(train))]
    if not val and len(order) > 1:
        held_out = max(1, round(config.val_fraction * len(order)))
        val, order = sorted(order[:held_out]), order[held_out:]
    chosen = tuple(sorted(order[: max(1, round(config.train_fraction * len(order)))]))
    if not chosen:
        raise UserError(f"{dataset.shown} has no labelled training cases; prepare a data set with labels")
    if not any(dataset.records[case].class_bricks for case in chosen):
        raise UserError(
            f"{dataset.shown}: the labels of its {len(chosen)} training cases, such as {chosen[0]}, hold no class; "
            "get the labels again, or set --train-fraction 1"
        )
    return chosen, tuple(val)


def describe_fold(config: FinetuneConfig, dataset: PreparedDataset, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Describe, for the header, the fold that a run leaves out.

    Returns:
        Its number; how many folds there are; a digest of its cases; and the key that the runs of all folds share.
    """
    assert config.fold is not None
    return {
        "number": config.fold,
        "of": len(fold_numbers(dataset.splits)),
        "cases": cases_digest(fold_cases(dataset.splits, config.fold, dataset.shown)),
        "others": run_key("finetune", of_any_fold(plain(config)), inputs),
    }


def stage(config: FinetuneConfig, *, overwrite: bool) -> int:
    """Finetune, or continue where an earlier call ended."""
    job = build_job(config)
    require_memory_here(config)
    run_job(job, config.cluster, "finetune", overwrite=overwrite)
    run = job.copy.shown
    print(f"Finetuned weights: {run}\nNext: anatomask evaluate --run {quote(run)}{plugin_flags()}")
    return 0


def plan(config: FinetuneConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run."""
    from anatomask.stages import costs

    job = build_job(config)
    if config.plan.tflops is None:  # else it is for other devices than this machine's
        refuse_wrong_gradients_here(job, config.cluster)
    dataset = PreparedDataset.open(config.data)
    train_cases, val_cases = select_labelled(dataset, config)
    network, loss = costs.finetuning_update(config)
    _, rows_of_cost = costs.planned(config, network, loss, job.total_steps)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return [
        ("run", job.copy.shown),
        ("placed", config.cluster.places()),
        *(("note", text) for text in job.remarks),
        ("from", job.origin),
        (
            "cases",
            f"{len(train_cases)} to train, {len(val_cases)} to choose the checkpoint, of {public_address(config.data)}",
        ),
        *([("fold", f"{config.fold}, of {len(fold_numbers(dataset.splits))}")] if config.fold is not None else []),
        ("classes", ", ".join(dataset.class_names.values())),
        ("updates", f"{job.total_steps} = {config.training.epochs} epochs x {job.steps_per_epoch}"),
        ("parameters", f"{parameters / 1e6:.2f} M"),
        *rows_of_cost,
    ]
