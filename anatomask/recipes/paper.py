"""Recipes of the paper's tables: which one makes each row that compares methods, at full size and small."""

from __future__ import annotations

from collections.abc import Mapping

RECIPE_OF: Mapping[tuple[str, str], str] = {
    ("Swin UNETR SSL", "Swin UNETR"): "swin-ssl",
    ("SelfMedMAE", "UNETR"): "selfmedmae",
    ("UniMiSS", "MiT"): "unimiss",
    ("MoCo v2", "STU-Net-B"): "moco",
    ("BYOL", "STU-Net-B"): "byol",
    ("SparK", "STU-Net-B"): "spark",
    ("AnatoMask", "STU-Net-B"): "paper-b",
    ("AnatoMask", "STU-Net-L"): "paper-l",
    ("AnatoMask", "STU-Net-H"): "paper-h",
}
"""Recipe of each method and network of the tables that compare methods, by their names in our tables."""

VARIANTS = "paper-b"
"""Recipe of the tables of AnatoMask's variants."""


def small_recipe(recipe: str) -> str | None:
    """Return the small counterpart of one of the paper's recipes; larger networks of the same method have none."""
    if recipe == VARIANTS:
        return "small"
    return None if recipe.startswith("paper-") else f"{recipe}-small"
