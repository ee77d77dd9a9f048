from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from recipe_costs import arithmetic
from torch import nn
from tyro import MISSING

from anatomask.cli.arguments import parse
from anatomask.cli.main import VERBS as commands
from anatomask.cli.main import main
from anatomask.errors import UserError
from anatomask.methods.byol import BYOLConfig
from anatomask.nested import plain
from anatomask.nn.backbones.stunet import SIZES
from anatomask.plugins import load_module
from anatomask.recipes import NOT_RUN, RECIPES, SMALL
from anatomask.recipes.parts import NETWORKS
from anatomask.recipes.recipe import VERBS
from anatomask.recipes.tables import markdown_tables
from anatomask.training.settings import OptimiserConfig

ROOT = Path(__file__).parents[2]
RECORDED: Mapping[str, Mapping[str, Any]] = yaml.safe_load((ROOT / "tests/recipes/recorded.yaml").read_text())
FROM_SCRATCH = [name for name, recipe in RECIPES.items() if recipe.method is None]


def dotted(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The fields of nested settings, by their dotted paths."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from dotted(item, f"{path}.{name}")
    else:
        yield path, "MISSING" if value is MISSING else value


@pytest.mark.parametrize("name", [name for name in RECORDED if name != "every"])
def test_recipes_are_as_they_were_before_they_were_composed(name: str) -> None:
    recorded = {**RECORDED["every"], **RECORDED[name]}
    verbs = {path.split(".")[0] for path in recorded}
    now = dict(field for verb in verbs for field in dotted(plain(RECIPES[name].settings(verb)), verb))
    assert {path: now.get(path, "gone") for path in recorded} == recorded


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_settings_for_every_verb(name: str) -> None:
    """But for a recipe without a method, which says so."""
    for verb, kind in VERBS.items():
        if name in FROM_SCRATCH and verb in ("pretrain", "sweep"):
            with pytest.raises(UserError, match=r"from scratch\. Run `anatomask finetune`"):
                RECIPES[name].settings(verb)
        else:
            assert isinstance(RECIPES[name].settings(verb), kind)


def test_a_method_that_cannot_pretrain_the_network_of_a_recipe_is_refused() -> None:
    with pytest.raises(UserError, match="network swin_unetr cannot be pretrained by BYOL"):
        parse("pretrain", ["--recipe", "swin-unetr", "--method", "byol", "--data", "x"], RECIPES)


def test_the_published_recipe_of_a_method_is_the_paper_s_with_that_method() -> None:
    """As docs/methods.md and docs/backbones.md say."""
    for verb in ("pretrain", "finetune"):
        assert RECIPES["paper-b"].composed(None, "byol").settings(verb) == RECIPES["byol"].settings(verb)
        assert RECIPES["paper-b"].composed("resenc", None).settings(verb) == RECIPES["resenc-l"].settings(verb)
    assert RECIPES["byol"].settings("pretrain").method == BYOLConfig()
    composed = RECIPES["paper-b"].composed("swin_unetr", None)
    assert composed.settings("finetune") == RECIPES["swin-unetr"].settings("finetune")


def test_what_replaces_a_part_has_the_size_of_the_recipe() -> None:
    both = RECIPES["small"].composed("resenc", "byol").settings("pretrain")
    assert both.network == NETWORKS["resenc-small"]
    assert both.method == RECIPES["byol-small"].settings("pretrain").method
    assert both.training == RECIPES["byol-small"].settings("pretrain").training
    back = RECIPES["byol-small"].composed(None, "anatomask").settings("pretrain")
    assert back == RECIPES["small"].settings("pretrain")


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.scale is SMALL])
def test_networks_of_small_recipes_have_at_most_two_million_parameters(name: str) -> None:
    """But for the finetuned STU-Net, the network of the recorded experiments, which has 3.6 M."""
    recipe = RECIPES[name]
    with torch.device("meta"):
        networks: list[nn.Module] = []
        if recipe.method is not None:
            config = recipe.settings("pretrain")
            networks.append(config.method.resolved().build(config.network).trainable())
        if recipe.network != "stunet-small":
            networks.append(recipe.backbone().segmenter(recipe.target.classes))
    for network in networks:
        assert sum(parameter.numel() for parameter in network.parameters()) <= 2_000_000


def test_mae_has_the_optimiser_of_its_authors_at_every_size() -> None:
    published = OptimiserConfig("sgd", lr=1e-2, weight_decay=3e-5, momentum=0.99, warmup_epochs=0, decay="poly")
    for recipe in (RECIPES["mae"], RECIPES["mae-small"], RECIPES["tiny"].composed("resenc", "mae")):
        assert recipe.settings("pretrain").optimiser == published


def test_what_a_recipe_has_stays() -> None:
    for name in ("paper-h", "spark"):
        assert RECIPES[name].composed("stunet", "anatomask") is RECIPES[name]
    assert RECIPES["paper-h"].settings("finetune").network == SIZES["h"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "tiny")) for name in RECIPES])
def test_the_costs_beside_a_recipe_are_those_of_its_updates(name: str) -> None:
    found = arithmetic(RECIPES[name])
    assert found.keys() == RECIPES[name].costs.keys()
    for verb, cost in RECIPES[name].costs.items():
        assert (cost.tflop, cost.gib) == pytest.approx((found[verb].tflop, found[verb].gib), rel=0.005)


def test_what_was_measured_and_reached_names_a_file_that_holds_it() -> None:
    texts = [cost.measured for recipe in RECIPES.values() for cost in recipe.costs.values()]
    figures = [text for text in (*texts, *(recipe.reached for recipe in RECIPES.values())) if text != NOT_RUN]
    assert len(figures) > 3
    for text in figures:
        named = re.search(r"\((benchmarks/results/\S+|docs/results/\S+)\)$", text)
        assert "make demo" in text or (named and (ROOT / named[1]).is_file()), text


def test_the_table_of_the_docs_is_that_of_the_code() -> None:
    """`anatomask recipes --markdown` prints it."""
    assert markdown_tables(RECIPES) in (ROOT / "docs/recipes.md").read_text(encoding="utf-8")


def test_the_table_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name, recipe in RECIPES.items():
        assert any(line.split()[:2] == [name, recipe.network] for line in lines)
        assert f"  {recipe.about}" in lines


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", name]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert RECIPES[name].about in shown and f"--recipe {name} --source" in shown
    assert ("A hidden patch is" in shown) == (RECIPES[name].method in ("anatomask", "spark", "mae"))


def test_help_lists_the_recipes_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("finetune", "sweep"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        lines = capsys.readouterr().out.splitlines()
        for name, recipe in RECIPES.items():
            (line,) = [line for line in lines if line.endswith(recipe.about)]
            assert line.split()[0] == name and len(line) <= 80


@pytest.mark.parametrize("argv", [["small", "--recipe", "tiny"], ["--dry-run"], ["nothing"]])
def test_the_verb_refuses_what_means_nothing_to_it(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["recipes", *argv])
    except SystemExit as end:
        code = int(str(end.code))
    assert code and argv[-2 if len(argv) > 1 else -1] in capfd.readouterr().err


def test_the_example_of_the_docs_is_a_recipe(
    plugin_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = str(plugin_of("recipes.md"))
    config = parse("pretrain", ["--plugin", plugin, "--recipe", "knees", "--data", "x"], RECIPES).config
    small = RECIPES["small"].settings("pretrain")
    assert (config.training, config.network) == (small.training, small.network)
    assert config.loader.patch_size == (96, 96, 96) and config.method == replace(small.method, patch=16, among="all")
    assert main(["recipes", "--plugin", plugin, "knees"]) == 0
    assert "not computed" in capsys.readouterr().out


def test_an_extension_that_registers_no_recipe_is_refused(tmp_path: Path, forget_plugins: Callable[[], None]) -> None:
    (tmp_path / "mine.py").write_text("RECIPES = {'mine': 5}\n")
    load_module(tmp_path / "mine.py", "--plugin")
    with pytest.raises(UserError, match="--recipe mine: RECIPES must name a Recipe, not int"):
        parse("finetune", ["--recipe", "mine", "--data", "x"], RECIPES)


def test_the_command_line_knows_the_same_verbs() -> None:
    assert VERBS.keys() == commands.keys()
