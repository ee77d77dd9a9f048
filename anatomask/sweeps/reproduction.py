"""Reproduction of the paper's tables: the sweeps that make their rows, which share stages through the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from anatomask.config import SCRATCH, FinetuneConfig, PretrainConfig
from anatomask.errors import UserError
from anatomask.recipes import RECIPES
from anatomask.recipes.paper import RECIPE_OF, VARIANTS, small_recipe
from anatomask.recipes.parts import TARGETS
from anatomask.reports.paper import ABLATIONS, COMPARISONS, published
from anatomask.sweeps.chain import PRETRAINED
from anatomask.sweeps.settings import ReproduceConfig, SweepConfig
from anatomask.sweeps.space import Table, paper_spaces

T = TypeVar("T", PretrainConfig, FinetuneConfig)

FIRST = "totalsegmentator"
"""Data set that the paper pretrains on, varies AnatoMask on, and finetunes on first."""
PROOF_UPDATES = 2
"""Updates of each training at scale phantom."""


@dataclass(frozen=True)
class Part:
    """Sweep that makes some rows."""

    tables: tuple[str, ...]
    """Numbers of the tables that its rows belong to."""
    config: SweepConfig
    space: Table


@dataclass(frozen=True)
class Reproduction:
    """Everything that is to be made."""

    parts: Sequence[Part]
    missing: Sequence[str]
    """Sentences on what is left out."""


def plan_reproduction(config: ReproduceConfig) -> Reproduction:
    """Return the sweeps that make the tables, as far as there is data for them.

    Raises:
        UserError: a data set is none of the paper's, or there is data for no table.
    """
    data = dict(one.split("=", 1) for one in config.data)
    if config.scale == "paper" and (unknown := [name for name in data if name not in TARGETS]):
        raise UserError(f"--data {unknown[0]}=…: the paper has no such data set; there are {', '.join(TARGETS)}")
    parts, missing = list[Part](), list[str]()
    for table in (one for one in ABLATIONS if one in config.tables):
        first = data.get(FIRST) if config.scale == "paper" else next(iter(data.values()))
        if first is None:
            missing.append(f"Table {table} is left out: it needs --data {FIRST}=FOLDER")
            continue
        name, space = next((name, space) for name, space in paper_spaces().items() if space.paper == table)
        settings = sweep_settings(config, VARIANTS, {FIRST: first})
        assert settings is not None
        parts.append(Part((table,), replace(settings, space=name, name=f"{config.name}-table{table}"), space))
    for (method, network), recipe in RECIPE_OF.items():
        tables, wanted = tables_of(config, data, method, network)
        if not tables:
            continue
        settings = sweep_settings(config, recipe, wanted)
        if settings is None:
            missing.append(f"{method} on {network} is left out: at scale {config.scale} there is one size of a network")
            continue
        rows = {method: {"finetune.init": PRETRAINED}, SCRATCH: {"finetune.init": SCRATCH}}
        label = f"rows of {' and '.join(f'Table {table}' for table in tables)}"
        parts.append(Part(tables, replace(settings, space=label, name=f"{config.name}-{recipe}"), Table(rows)))
    if config.scale == "paper":
        missing += [
            f"Table {table} is left out for {name}: it needs --data {name}=FOLDER"
            for table in COMPARISONS
            if table in config.tables
            for name in datasets_of(table)
            if name not in data
        ]
    if not parts:
        raise UserError(f"there is no data for any of these tables. {'. '.join(missing)}")
    return Reproduction(parts, missing)


def tables_of(
    config: ReproduceConfig, data: Mapping[str, str], method: str, network: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the tables that a method's row is made for, and the data sets on which.

    At the paper's scale each table has its own, after TotalSegmentator; elsewhere every table has all that are given.
    """
    asked = [table for table in COMPARISONS if table in config.tables]
    if config.scale != "paper":
        return tuple(asked), dict(data)
    tables, wanted = [], dict[str, str]()
    for table in asked:
        rows = {(score.method, score.network) for score in published((table,))}
        found = [name for name in datasets_of(table) if name in data]
        if (method, network) in rows and found:
            tables.append(table)
            wanted |= {name: data[name] for name in (FIRST, *found) if name in data}
    return tuple(tables), wanted


def sweep_settings(config: ReproduceConfig, recipe: str, data: Mapping[str, str]) -> SweepConfig | None:
    """Return the settings of the sweep that makes rows by a recipe; None where the scale has no such network."""
    chosen = recipe if config.scale == "paper" else small_recipe(recipe)
    if chosen is None:
        return None
    settings: SweepConfig = RECIPES[chosen].settings("sweep")
    if config.scale == "phantom":
        settings = replace(settings, pretrain=shortened(settings.pretrain), finetune=shortened(settings.finetune))
    folders = tuple(data.values())
    return replace(
        settings,
        pretrain_data=config.pretrain_data or first_data(config),
        finetune_data=folders,
        runs=config.runs,
        seeds=config.seeds,
        split=config.split,
        concurrent=config.concurrent,
        start_from="first" if next(iter(data)) == FIRST and len(folders) > 1 else "pretrained",
        cluster=config.cluster,
    )


def first_data(config: ReproduceConfig) -> str:
    """Return the prepared folder that is pretrained on: TotalSegmentator's at the paper's scale, else the first."""
    data = dict(one.split("=", 1) for one in config.data)
    return data.get(FIRST if config.scale == "paper" else "", next(iter(data.values())))


def shortened(stage: T) -> T:
    """Return the settings of a training with a few updates at its full learning rate."""
    training = replace(stage.training, epochs=1, steps_per_epoch=PROOF_UPDATES)
    optimiser = replace(stage.optimiser, warmup_epochs=0, warmup_updates=None, decoder_first=(0, 0))
    return replace(stage, training=training, optimiser=optimiser)


def datasets_of(table: str) -> list[str]:
    """List the data sets of one of the paper's tables as `--data` names them."""
    titles = dict.fromkeys(score.dataset for score in published((table,)))
    return [name for title in titles for name, target in TARGETS.items() if target.title == title]
