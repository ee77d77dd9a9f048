"""Recipes: the table of all, or the description of one."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from anatomask.config import RecipesConfig
from anatomask.plugins import with_extensions
from anatomask.recipes import RECIPES, find_recipe
from anatomask.recipes.tables import description, markdown_tables, terminal_table


def stage(config: RecipesConfig, *, overwrite: bool = False) -> int:
    """Print the table of all recipes, or the description of one."""
    recipes = with_extensions("RECIPES", RECIPES)
    if config.recipe:
        table = Table(title=f"Recipe {config.recipe}", title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for row in description(config.recipe, find_recipe(config.recipe, recipes)):
            table.add_row(*row)
        Console().print(table)
    elif config.markdown:
        print(markdown_tables(recipes))
    else:
        print(terminal_table(recipes))
        print(
            "\nGiB: memory of an update in pretraining/finetuning, computed as by --dry-run.\n"
            "`anatomask recipes RECIPE` describes one. --network and --method replace a part."
        )
    return 0
