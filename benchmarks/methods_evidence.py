"""Every pretraining method on OpenKBP: `python benchmarks/methods_evidence.py --out FOLDER --scans OPENKBP`.

Each method's small recipe pretrains for the same time on all scans that are not validation cases: as many updates as
take `--minutes` of the whole machine, by the speed of a few updates that are measured first, or `--updates` for all.
From it, and from scratch with the same network, networks are finetuned with the same few labels and seeds, and scored
on the validation cases. Networks, crops, methods, optimisers and learning rates are those of the recipes; cases,
finetuning schedule, commands and records those of `evidence.py`. After a kill, the same command resumes.
`methods_report.py` writes the page.

`--quick` pretrains two methods with a few updates, to show that it runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from evidence_design import Finetuning, Scale
from evidence_runs import Experiment, shared_ray
from evidence_steps import FULL, QUICK

from anatomask.errors import UserError
from anatomask.files import write_text
from anatomask.recipes import RECIPES, SMALL
from anatomask.training.journal import METRICS

METHODS = [name for name, recipe in RECIPES.items() if recipe.method is not None and recipe.scale is SMALL]
"""Recipes that pretrain."""
MEASURED_UPDATES = 40
"""Number of updates by which the speed of a pretraining is measured."""
QUICK_METHODS, QUICK_UPDATES = ["moco-small", "mae-small"], 4


@dataclass(frozen=True)
class RecipePretraining:
    """Pretraining of a recipe, in the largest number of epochs up to the recipe's that divides the updates."""

    recipe: str
    seed: int
    updates: int

    @property
    def name(self) -> str:
        """Return the name of the run."""
        return f"{self.recipe}-u{self.updates}-p{self.seed}"

    def settings(self) -> list[str]:
        """Return the flags of `pretrain`."""
        config = RECIPES[self.recipe].settings("pretrain")
        most = min(config.training.epochs, self.updates)
        epochs = next(number for number in range(most, 0, -1) if self.updates % number == 0)
        warmup = config.optimiser.warmup_updates
        return [
            *("--seed", str(self.seed), "--splits", "train", "budget", "unlabeled"),
            *("--training.epochs", str(epochs), "--training.steps-per-epoch", str(self.updates // epochs)),
            *("--optimiser.warmup-epochs", str(min(config.optimiser.warmup_epochs, epochs // 2))),
            *(() if warmup is None else ("--optimiser.warmup-updates", str(min(warmup, self.updates // 2)))),
        ]


@dataclass(frozen=True)
class RecipeFinetuning(Finetuning):
    """Finetuning of the network of a small recipe, on that recipe's crops."""

    network: str = SMALL.sizes["stunet"]
    """Name of the network in recipes."""

    @property
    def name(self) -> str:
        """Return the name without the split."""
        return f"{self.network}-{super().name}"

    @property
    def recipe(self) -> str:
        """Return a recipe of that network; in finetuning, all of a network are alike."""
        return next(
            name for name, recipe in RECIPES.items() if recipe.scale is SMALL and recipe.network == self.network
        )

    @property
    def crop(self) -> Sequence[str]:
        """Leave the crop to the recipe: some networks have positions for it."""
        return ()


class Methods(Experiment):
    """The experiment with pretrainings of any recipe."""

    def pretrain_recipes(self, runs: Sequence[RecipePretraining]) -> None:
        """Run the pretrainings of which nothing is kept yet."""
        self._parallel(self._pretrain_recipe, [run for run in runs if not self._encoder(run.name).exists()])

    def speeds(self, recipes: Sequence[str]) -> dict[str, float]:
        """Measure the seconds per update of the recipes' pretrainings, once, with as many at once as later."""
        files = {recipe: self.out / "speeds" / f"{recipe}.json" for recipe in recipes}
        self._parallel(self._measure, [recipe for recipe, file in files.items() if not file.exists()])
        return {recipe: json.loads(file.read_text())["seconds_per_update"] for recipe, file in files.items()}

    def _pretrain_recipe(self, run: RecipePretraining) -> None:
        self._keep(run.name, run.recipe, run.settings(), asdict(run))

    def _measure(self, recipe: str) -> None:
        run, name = RecipePretraining(recipe, 0, MEASURED_UPDATES), f"{recipe}-speed"
        self._command("pretrain", name, [*self._data(), *run.settings()], recipe)
        rows = [json.loads(line) for line in (self.out / "runs" / name / METRICS).read_text().splitlines()]
        batch = RECIPES[recipe].settings("pretrain").training.batch_size
        file = self.out / "speeds" / f"{recipe}.json"
        file.parent.mkdir(exist_ok=True)
        write_text(file, json.dumps({"seconds_per_update": seconds_per_update(rows, batch), "commit": self.commit}))


def seconds_per_update(rows: Sequence[Mapping[str, Any]], batch: int) -> float:
    """Compute the median over the second half of the updates, where readers and caches are warm."""
    speeds = [row["train/samples_per_second"] for row in rows if "train/samples_per_second" in row]
    return batch / float(np.median(speeds[len(speeds) // 2 :]))


def updates_in(recipe: str, seconds: float, per_update: float) -> int:
    """Return the number of updates of a pretraining of so many seconds, in whole epochs of the recipe's number."""
    epochs = RECIPES[recipe].settings("pretrain").training.epochs
    return epochs * max(1, int(seconds / per_update / epochs))


def run_methods(experiment: Methods, recipes: Sequence[str], minutes: float, updates: int | None) -> None:
    """Pretrain by every recipe, then finetune from each and from scratch, seed by seed.

    With `jobs` trainings at once, each has a share of the cores, and `jobs` times the minutes.
    """
    scale = experiment.scale
    experiment.prepare()
    if updates is None:
        speeds = experiment.speeds(recipes)
        lengths = {name: updates_in(name, 60 * minutes * experiment.jobs, speeds[name]) for name in recipes}
    else:
        lengths = dict.fromkeys(recipes, updates)
    sources = [RecipePretraining(name, 0, length) for name, length in lengths.items()]
    experiment.pretrain_recipes(sources)
    networks = dict.fromkeys(RECIPES[name].network for name in recipes)
    starts = [("scratch", network) for network in networks]
    starts += [(source.name, RECIPES[source.recipe].network) for source in sources]
    experiment.scores(
        [finetuning(scale, init, network, seed) for seed in range(scale.pairs) for init, network in starts]
    )


def finetuning(scale: Scale, init: str, network: str, seed: int) -> RecipeFinetuning:
    """Describe a network that is scored on the validation cases, with the learning rate of its recipe."""
    run = RecipeFinetuning(init, scale.few_labels[0], scale.budgets[0], 0.0, seed, "val", network)
    return replace(run, rate=RECIPES[run.recipe].settings("finetune").optimiser.lr)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the experiment")
    parser.add_argument("--scans", type=Path, required=True, help="OpenKBP, laid out as an nnU-Net raw folder")
    parser.add_argument("--recipes", nargs="+", choices=METHODS, help="default: all small ones that pretrain")
    parser.add_argument("--minutes", type=float, default=30, help="minutes of the whole machine per pretraining")
    parser.add_argument("--updates", type=int, help="updates of every pretraining, in place of --minutes")
    parser.add_argument("--finetuning", type=int, default=FULL.budgets[0], help="updates of a finetuning")
    parser.add_argument("--labels", type=int, default=FULL.few_labels[0], help="labelled cases of a finetuning")
    parser.add_argument("--seeds", type=int, default=3, help="networks from each start")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, each with its share of the cores")
    parser.add_argument("--quick", action="store_true", help="a few updates per training, two recipes, one seed")
    given = parser.parse_args()
    scale = replace(FULL, budgets=(given.finetuning,), few_labels=(given.labels,), pairs=given.seeds)
    recipes, updates = given.recipes or METHODS, given.updates
    if given.quick:
        scale, recipes, updates = replace(QUICK, pairs=1), QUICK_METHODS, QUICK_UPDATES
    experiment = Methods(given.out.absolute(), given.scans.absolute(), scale, given.jobs)
    try:
        with shared_ray(given.jobs) as address, experiment.claimed():
            run_methods(replace(experiment, address=address), recipes, given.minutes, updates)
    except UserError as error:
        raise SystemExit(str(error)) from error
    records = len(experiment.records())
    print(json.dumps({"records": records, "commit": experiment.commit, "hours": experiment.hours()}))


if __name__ == "__main__":
    main()
