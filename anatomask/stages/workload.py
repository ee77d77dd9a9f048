"""Workload of many trainings: operations, time and disk space, by counting and by what finished ones have reached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from anatomask.config import FinetuneConfig, PretrainConfig
from anatomask.nested import plain
from anatomask.parsing import from_yaml
from anatomask.runs.belongings import CONFIG
from anatomask.runs.store import Store
from anatomask.terminal.progress import duration, last_row
from anatomask.training.estimate import device_of
from anatomask.training.journal import METRICS

if TYPE_CHECKING:
    from anatomask.training.cost import StepCost

RATE = "train/samples_per_second"
BYTES = 4
"""Bytes of a number in a checkpoint."""


@dataclass(frozen=True)
class Remaining:
    """Training, and what is left of it."""

    config: PretrainConfig | FinetuneConfig
    updates: int
    """Number of updates that are left."""


@dataclass(frozen=True)
class Load:
    """Cost of one kind of training."""

    cost: StepCost
    """Cost of an update of one worker."""
    checkpoint_bytes: int
    """Bytes of a checkpoint: weights, untrained networks and moments."""


def workload_rows(left: Sequence[Remaining], times: int, store: Store) -> list[tuple[str, str]]:
    """Make rows of a dry run: operations, time and disk space of trainings, all of them `times` times.

    The time is that of devices which never wait for data. Where a finished training of each kind is in the store, the
    speed that it reached gives the time on this cluster, too, without validation and starts.
    """
    if not left:
        return [("left to train", "nothing")]
    loads = {kind: load_of(one.config) for kind, one in {kind_of(one.config): one for one in left}.items()}
    trainings = [(loads[kind_of(one.config)], one.updates, one.config.cluster.workers) for one in left]
    flops = times * sum(updates * workers * load.cost.flops for load, updates, workers in trainings)
    kept = times * sum(
        (1 + isinstance(one.config, FinetuneConfig)) * loads[kind_of(one.config)].checkpoint_bytes for one in left
    )
    device = device_of(left[0].config.plan)
    taken = times * sum(
        updates * workers * device.step(load.cost, workers).seconds for load, updates, workers in trainings
    )
    rows = [
        ("operations", f"{flops / 1e15:.3g} PFLOP in {times * len(left)} trainings"),
        ("time", f"about {duration(taken)} of one device, {device.description}"),
    ]
    rates = reached_rates(store)
    if all(kind_of(one.config) in rates for one in left):
        seconds = times * sum(one.updates * one.config.training.batch_size / rates[kind_of(one.config)] for one in left)
        rows.append(
            (
                "time here",
                f"about {duration(seconds)} one after another, at the samples/s that the store's runs reached",
            )
        )
    return [*rows, ("disk", f"about {kept / 1e9:.3g} GB of checkpoints, the best beside the last")]


def load_of(config: PretrainConfig | FinetuneConfig) -> Load:
    """Count what an update of a training takes, and what a checkpoint holds."""
    from anatomask.stages import costs

    network: nn.Module
    if isinstance(config, PretrainConfig):
        network, loss = costs.pretraining_update(config)
    else:
        network, loss = costs.finetuning_update(config)
    cost = costs.worker_cost(config, network, loss)
    numbers = sum(
        one.numel() * (1 + config.optimiser.moments * one.requires_grad)
        for one in (*network.parameters(), *network.buffers())
    )
    return Load(cost, BYTES * numbers)


def kind_of(config: PretrainConfig | FinetuneConfig) -> str:
    """Return a key that trainings share which take as long per sample."""
    return kind_of_settings(plain(config))


def kind_of_settings(settings: Mapping[str, Any]) -> str:
    """Return the same key of the settings that a run has written down."""
    method = settings.get("method") or {}
    training = settings.get("training") or {}
    kind = {
        "network": settings.get("network"),
        "method": {name: method.get(name) for name in ("name", "masking", "decoder", "mask_ratio", "patch")},
        "crop": (settings.get("loader") or {}).get("patch_size"),
        "data": settings.get("data") if not method else None,  # the number of classes
        "training": {name: training.get(name) for name in ("batch_size", "precision", "compile", "accumulate")},
    }
    return json.dumps(kind, sort_keys=True)


def reached_rates(store: Store) -> dict[str, float]:
    """Return the samples per second that the store's trainings have reached, by their kind."""
    found = {}
    for metrics in sorted(store.path("").glob(f"*/{METRICS}")):
        row = last_row(metrics)
        settings = settings_of(metrics.parent)
        if row is not None and row.get(RATE) and settings is not None:
            found[kind_of_settings(settings)] = float(row[RATE])
    return found


def settings_of(run: Path) -> Mapping[str, Any] | None:
    """Read the settings of a run; None where they are missing or damaged."""
    try:
        settings = from_yaml((run / CONFIG).read_bytes())
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, Mapping) else None
