"""What an update of each recipe costs, by the arithmetic of `--dry-run`: `python benchmarks/recipe_costs.py [--quick]`.

Nothing is measured: the updates run on tensors that have shapes and no numbers. The memory is that of weights,
gradients, moments and activations; a GPU's allocator and libraries take more. The last line is JSON.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass

from measure import machine, report
from torch import nn

from anatomask.recipes import RECIPES, Recipe
from anatomask.stages.costs import finetuning_update, pretraining_update, worker_cost
from anatomask.training.cost import StepCost


@dataclass(frozen=True)
class Arithmetic:
    """Cost of an update of one training."""

    million_parameters: float
    """Number of trained parameters, in millions."""
    tflop: float
    """Floating-point operations in 10^12."""
    gib: float
    """Memory in GiB."""

    @classmethod
    def of(cls, cost: StepCost, trained: nn.Module) -> Arithmetic:
        """Convert the units, and count the parameters."""
        parameters = sum(parameter.numel() for parameter in trained.parameters())
        return cls(parameters / 1e6, cost.flops / 1e12, cost.memory_bytes / 2**30)


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--quick", action="store_true", help="the smallest recipe alone")
    arguments = parser.parse_args()
    names = ["tiny"] if arguments.quick else arguments.recipes
    found = {name: arithmetic(RECIPES[name]) for name in names}
    report(
        "Cost of an update, computed and not measured",
        ["", "M parameters", "TFLOP", "GiB"],
        [
            [f"{name}, {verb}", f"{cost.million_parameters:.3g}", f"{cost.tflop:.3g}", f"{cost.gib:.3g}"]
            for name, costs in found.items()
            for verb, cost in costs.items()
        ],
        {
            "costs": {name: {verb: asdict(cost) for verb, cost in costs.items()} for name, costs in found.items()},
            "arguments": vars(arguments),
            "machine": machine("cpu"),
        },
    )


def arithmetic(recipe: Recipe) -> dict[str, Arithmetic]:
    """Compute the cost of an update of each training of a recipe, by verb."""
    costs = {}
    if recipe.method is not None:
        config = recipe.settings("pretrain")
        method, loss = pretraining_update(config)
        costs["pretrain"] = Arithmetic.of(worker_cost(config, method, loss), method.trainable())
    config = recipe.settings("finetune")
    network, loss = finetuning_update(config, recipe.target.classes)
    return {**costs, "finetune": Arithmetic.of(worker_cost(config, network, loss), network)}


if __name__ == "__main__":
    main()
