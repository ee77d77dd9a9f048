"""Recipes in words: the list in `--help`, the table of `anatomask recipes`, and that of docs/recipes.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anatomask.recipes.recipe import Cost, Recipe
from anatomask.training.settings import OptimiserConfig, TrainingConfig

COLUMNS = ("Recipe", "Network", "Method", "mm", "Crop", "GiB")
WIDTHS = (17, 17, 10, 7, 12, 9)
SCRATCH = "scratch"
PLANNED = "planned"
STAGES = ("pretrain", "finetune")
"""Verbs that train."""


def listed(recipes: Mapping[str, Recipe]) -> str:
    """List the recipes, a line each, for `--help`."""
    return "\n".join(["Recipes:", *(f"  {name:<16}  {recipe.about}" for name, recipe in recipes.items())])


def terminal_table(recipes: Mapping[str, Recipe]) -> str:
    """Make the table of `anatomask recipes`, within 80 columns: facts in one line of each recipe, words in the next."""
    lines = [_line(COLUMNS)]
    for name, recipe in recipes.items():
        memory = "/".join(f"{cost.gib:.1f}" for cost in recipe.costs.values())
        lines += [_line([name, recipe.network, *_facts(recipe), memory]), f"  {recipe.about}"]
    return "\n".join(lines)


def markdown_tables(recipes: Mapping[str, Recipe]) -> str:
    """Make the two tables of docs/recipes.md: what each recipe is, and what it costs and reached."""
    parts: list[tuple[str, ...]] = [("recipe", "what it is", "network", "method", "mm", "crop")]
    costs: list[tuple[str, ...]] = [
        ("recipe", "pretraining: TFLOP, GiB", "time", "finetuning: TFLOP, GiB", "time", "reached")
    ]
    for name, recipe in recipes.items():
        parts.append((f"`{name}`", recipe.about, recipe.backbone().label(), *_facts(recipe)))
        cells = [cell for verb in STAGES for cell in _cost_cells(recipe.costs.get(verb))]
        costs.append((f"`{name}`", *cells, recipe.reached))
    return f"{_markdown(parts)}\n\n{_markdown(costs)}"


def description(name: str, recipe: Recipe) -> list[tuple[str, str]]:
    """Describe one recipe in rows of a label and a text."""
    _, spacing, crop = _facts(recipe)
    network = recipe.backbone()
    size = "a planned voxel size" if spacing == PLANNED else f"{spacing} mm"
    rows = [
        ("", recipe.about),
        ("network", f"{network.label()} (--network {network.name})"),
        ("scans", f"{size}, unless the data set has a voxel size of its own; crops of {crop} voxels"),
    ]
    if recipe.method is None:
        rows.append(("pretraining", "none: trained from scratch alone"))
    else:
        method, config = recipe.pretraining(), recipe.settings("pretrain")
        rows += [
            ("method", f"{method.label()} (--method {method.name})"),
            *([("", recipe.target.why)] if hasattr(method, "patch") else []),
            ("pretraining", _training(config.training, config.optimiser)),
            ("", _cost(recipe.costs.get("pretrain"))),
        ]
    config = recipe.settings("finetune")
    return [
        *rows,
        ("finetuning", _training(config.training, config.optimiser)),
        ("", _cost(recipe.costs.get("finetune"), f", {recipe.target.classes} structures")),
        ("reached", recipe.reached),
        ("begin with", f"anatomask prepare --recipe {name} --source SCANS --out SHARDS"),
    ]


def _facts(recipe: Recipe) -> tuple[str, str, str]:
    """Return the method, the voxel size in mm (one number where all edges are alike), and the crop in voxels."""
    edges = [f"{edge:g}" for edge in recipe.target.spacing or ()]
    spacing = "x".join(edges if len(set(edges)) > 1 else edges[:1]) or PLANNED
    crop = recipe.settings("finetune").loader.patch_size
    return recipe.method or SCRATCH, spacing, "x".join(map(str, crop))


def _line(cells: Sequence[str]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *others])


def _cost_cells(cost: Cost | None) -> tuple[str, str]:
    return ("–", "–") if cost is None else (f"{cost.tflop:.3g}, {cost.gib:.3g}", cost.measured)


def _cost(cost: Cost | None, of: str = "") -> str:
    if cost is None:
        return "not computed"
    return f"per update {cost.tflop:.3g} TFLOP and {cost.gib:.3g} GiB (computed{of}); time: {cost.measured}"


def _training(training: TrainingConfig, optimiser: OptimiserConfig) -> str:
    updates = f" of {training.steps_per_epoch} updates" if training.steps_per_epoch else ""
    return (
        f"{training.epochs} epochs{updates}, batch {training.batch_size}, {training.precision}, "
        f"{optimiser.name}, lr {optimiser.lr:g}"
    )
