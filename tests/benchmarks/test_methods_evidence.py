"""What the experiment on all methods trains, keeps and tabulates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evidence_design import Finetuning, Record
from evidence_steps import FULL
from methods_evidence import (
    MEASURED_UPDATES,
    METHODS,
    Methods,
    RecipeFinetuning,
    RecipePretraining,
    finetuning,
    run_methods,
    seconds_per_update,
    updates_in,
)
from methods_report import page, recipe_of

from anatomask.cli.arguments import parse
from anatomask.recipes import RECIPES, SMALL
from anatomask.weights.files import describe_architecture, find_weights, read_weights, write_weights
from tests.benchmarks.test_evidence import record

THREE = replace(FULL, pairs=3)


class Imagined(Methods):
    """An experiment that trains nothing; MoCo gains 10 DSC, and its updates take a second, all others half of one."""

    def __init__(self, out: Path) -> None:
        super().__init__(out, out, THREE, jobs=2)
        self.asked: list[Finetuning] = []
        self.pretrained: list[RecipePretraining] = []

    def prepare(self) -> None:
        pass

    def speeds(self, recipes: Sequence[str]) -> dict[str, float]:
        return {recipe: 1.0 if recipe == "moco-small" else 0.5 for recipe in recipes}

    def pretrain_recipes(self, runs: Sequence[RecipePretraining]) -> None:
        self.pretrained += runs

    def scores(self, runs: Sequence[Finetuning]) -> list[Record]:
        self.asked += runs
        return [record(run, *[0.5 + 0.1 * run.init.startswith("moco") + 0.01 * run.seed] * 3) for run in runs]


def test_every_method_and_the_twin_of_every_network_have_the_same_seeds(tmp_path: Path) -> None:
    experiment = Imagined(tmp_path)
    run_methods(experiment, METHODS, minutes=30, updates=None)
    lengths = {run.recipe: run.updates for run in experiment.pretrained}
    assert lengths.keys() == set(METHODS) and len(METHODS) == 9
    assert lengths["moco-small"] == 3600  # 30 minutes of the machine are an hour of a training that shares it
    assert all(0.97 < length / 7200 <= 1 for name, length in lengths.items() if name != "moco-small")
    seeds = {run.name.rpartition("-s")[0]: set[int]() for run in experiment.asked}
    for run in experiment.asked:
        seeds[run.name.rpartition("-s")[0]].add(run.seed)
        assert (run.labels, run.updates, run.split) == (10, 1000, "val")
    assert len(seeds) == len(METHODS) + 5 and set(map(frozenset, seeds.values())) == {frozenset({0, 1, 2})}


def test_the_page_compares_each_method_with_the_network_from_scratch(tmp_path: Path) -> None:
    experiment = Imagined(tmp_path)
    run_methods(experiment, ["moco-small", "mae-small", "spark-small"], minutes=30, updates=40)
    records = experiment.scores([*experiment.asked])
    longer = [replace(run, init="moco-small-u1000-p0") for run in experiment.asked if run.init == "moco-small-u40-p0"]
    text = page([*records, *experiment.scores([*dict.fromkeys(longer)])])
    assert "| MoCo v2 | STU-Net (base 8, depth 1) | `moco-small` | 40 | 3 | 51.0 | +10.0 [" in text
    assert "18 networks, finetuned with 10 labels for 1,000 updates, at commit abc." in text
    assert text.count("\n## ") == 2 and "| MAE, 40 updates – scratch |" in text
    assert "| MoCo v2, 1,000 updates – scratch | 3 | +10.0 [" in text
    assert recipe_of("swin-ssl-small-u1200-p0") == ("swin-ssl-small", 1200)
    with pytest.raises(SystemExit, match="no pretraining of a recipe of this version"):
        recipe_of("gone-small-u10-p0")


@pytest.mark.parametrize("name", METHODS)
def test_the_flags_are_those_of_the_programs(name: str) -> None:
    """Any number of updates is trained in full, in the recipe's epochs where they fit, with a warm-up that fits."""
    most = RECIPES[name].settings("pretrain").training.epochs
    for updates in (4, MEASURED_UPDATES, 500, 20 * most):
        flags = [*("--recipe", name, "--data", "x"), *RecipePretraining(name, 1, updates).settings()]
        config = parse("pretrain", flags, RECIPES).config
        epochs = config.training.epochs
        assert (config.seed, epochs * config.training.steps_per_epoch) == (1, updates)
        assert epochs <= most and (updates % most or epochs == most)
        assert (config.optimiser.warmup_updates or 0) < updates  # else the training is refused
    run = finetuning(THREE, "scratch", RECIPES[name].network, 2)
    config = parse("finetune", ["--recipe", run.recipe, "--data", "x", *run.settings(89)], RECIPES).config
    own = RECIPES[name].settings("finetune")
    assert (config.network, config.loader.patch_size, config.optimiser.lr, config.training.epochs) == (
        own.network, own.loader.patch_size, own.optimiser.lr, 20
    )  # fmt: skip


def test_networks_of_one_kind_are_finetuned_alike_whatever_pretrained_them() -> None:
    for recipe in RECIPES.values():
        if recipe.scale is SMALL:
            run = RecipeFinetuning("scratch", 10, 1000, 1e-3, 0, "val", recipe.network)
            assert RECIPES[run.recipe].settings("finetune") == recipe.settings("finetune")


def test_the_speed_is_that_of_the_later_updates_and_epochs_are_whole() -> None:
    rows = [{"train/samples_per_second": speed} for speed in (1, 1, 4, 4)]
    assert seconds_per_update([{"val/loss": 1.0}, *rows], batch=8) == 2
    assert updates_in("small", seconds=1000, per_update=2) == 490  # 35 times its 14 epochs
    assert updates_in("small", seconds=1, per_update=2) == 14


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ({"encoder": "network.encoder.", "whole": "network."}, {"network.encoder.a", "network.decoder.b"}),
        ({"encoder": "query.encoder."}, {"query.encoder.a"}),
        ({}, {"student.encoder.a"}),
    ],
)
def test_what_a_finetuning_takes_over_is_kept(header: dict[str, str], kept: set[str], tmp_path: Path) -> None:
    class Pretrained(Methods):
        def _command(self, verb: str, name: str, flags: Sequence[str], recipe: str = "") -> float:
            assert (verb, recipe) == ("pretrain", "mae-small")
            names = [*kept, "teacher.encoder.a", "queue"]
            network = {"kind": "pretraining", "architecture": describe_architecture(RECIPES["mae-small"].backbone())}
            write_weights(self.out / "runs" / name, {n: torch.zeros(1) for n in names}, {**network, **header})
            return 1.0

    experiment, run = Pretrained(tmp_path, tmp_path, THREE, jobs=1), RecipePretraining("mae-small", 0, 40)
    experiment.pretrain_recipes([run])
    assert read_weights(find_weights(tmp_path / "encoders" / run.name)).tensors.keys() == kept
    experiment.pretrain_recipes([replace(run)])  # once
