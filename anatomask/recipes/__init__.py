"""Recipes: whole configurations, composed of a network, a method, a scale and a target. See docs/recipes.md."""

from anatomask.recipes.catalogue import RECIPES
from anatomask.recipes.parts import HEAD_AND_NECK, PAPER, PHANTOMS, SMALL, TARGETS, TINY, TRUNK, Scale, Target
from anatomask.recipes.recipe import NOT_RUN, Cost, Recipe, find_recipe, with_method, with_network

__all__ = [
    "HEAD_AND_NECK",
    "NOT_RUN",
    "PAPER",
    "PHANTOMS",
    "RECIPES",
    "SMALL",
    "TARGETS",
    "TINY",
    "TRUNK",
    "Cost",
    "Recipe",
    "Scale",
    "Target",
    "find_recipe",
    "with_method",
    "with_network",
]
