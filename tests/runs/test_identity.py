from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tyro import MISSING

from anatomask.config import EvaluateConfig
from anatomask.evaluation.settings import ScoringConfig
from anatomask.nested import plain
from anatomask.recipes import RECIPES
from anatomask.runs.identity import ELSEWHERE, _results, identity, run_key

SETTINGS = {
    "data": "shards",
    "init": "runs/a",
    "seed": 0,
    "name": "a",
    "runs": "r",
    "cluster": {"workers": 1},
    "loader": {"read_ahead": 2, "patch_size": [64, 64, 64]},
}
INPUTS = {"data": "d1", "init": "w1"}


def test_paths_names_and_machines_are_no_part_of_it() -> None:
    key = run_key("finetune", SETTINGS, INPUTS)
    elsewhere = {"data": "/abs/shards", "init": "x", "name": "b", "runs": "q", "cluster": {"workers": 8}}
    watched = {"loader": {"read_ahead": 9, "patch_size": [64, 64, 64]}}
    assert run_key("finetune", SETTINGS | elsewhere | watched, INPUTS) == key
    assert run_key("finetune", SETTINGS, dict(reversed(INPUTS.items()))) == key


def test_a_field_that_older_versions_had_not_changes_no_key_until_it_is_set() -> None:
    key = run_key("finetune", SETTINGS, INPUTS)
    assert run_key("finetune", SETTINGS | {"fold": None}, INPUTS) == key
    assert run_key("finetune", SETTINGS | {"fold": 0}, INPUTS) != key
    usual, other = plain(EvaluateConfig(run="r")), plain(EvaluateConfig(run="r", scoring=ScoringConfig(("nsd",))))
    without = {name: value for name, value in usual.items() if name != "scoring"}
    assert run_key("evaluate", usual, {}) == run_key("evaluate", without, {}) != run_key("evaluate", other, {})
    before = run_key("finetune", SETTINGS | {"optimiser": {"lr": 1}}, INPUTS)
    for updates, same in ((None, True), (5, False)):
        later = run_key("finetune", SETTINGS | {"optimiser": {"lr": 1, "warmup_updates": updates}}, INPUTS)
        assert (later == before) == same
    assert (
        run_key("finetune", SETTINGS | {"optimiser": {"lr": 1, "decayed": "all", "rate_every": "epoch"}}, INPUTS)
        == before
    )
    assert run_key("finetune", SETTINGS | {"optimiser": {"lr": 1, "decayed": "matrices"}}, INPUTS) != before


def test_a_number_of_results_may_be_one_methods_own() -> None:
    def key(verb: str, method: str) -> str:
        return run_key(verb, SETTINGS | {"method": {"name": method}}, INPUTS)

    assert [_results("pretrain", {"method": {"name": name}}) for name in ("byol", "spark")] == [2, 1]
    assert (_results("finetune", SETTINGS), _results("new", {})) == (2, 1)
    assert key("pretrain", "byol") != key("pretrain", "spark")


def test_the_same_of_a_network() -> None:
    networks = [{"name": "stunet", "base": 8}, {"base": 8, "pooling": None}, {"base": 8, "pooling": [[2, 2, 2]]}]
    for sweep in (False, True):
        settings = [{"pretrain": {"network": one}} if sweep else {"network": one} for one in networks]
        keys = [run_key("sweep", SETTINGS | one, INPUTS) for one in settings]
        assert keys[0] == keys[1] != keys[2]


def test_whatever_changes_results_is() -> None:
    others = [
        run_key("pretrain", SETTINGS, INPUTS),
        run_key("finetune", SETTINGS | {"seed": 1}, INPUTS),
        run_key("finetune", SETTINGS | {"loader": {"patch_size": [32, 64, 64]}}, INPUTS),
        run_key("finetune", SETTINGS, INPUTS | {"data": "d2"}),
        run_key("finetune", SETTINGS, {"data": "d1"}),  # the path of the weights, then
    ]
    assert len({run_key("finetune", SETTINGS, INPUTS), *others}) == 1 + len(others)


@given(st.dictionaries(st.sampled_from(["seed", "method", *ELSEWHERE]), st.integers()))
def test_nothing_but_fields_that_say_where_is_left_out(settings: dict[str, int]) -> None:
    assert identity(settings) == {name: settings[name] for name in settings if name in ("seed", "method")}


def test_trackers_of_a_sweeps_stages_are_not_in_its_key() -> None:
    """So that older sweeps go on, and a command may add them."""
    settings: dict[str, Any] = {"space": "x", "pretrain": {"training": {"epochs": 1}, "cluster": {"workers": 1}}}
    key = run_key("sweep", settings, {})
    more = {"training": {"epochs": 1, "trackers": ["wandb"]}, "cluster": {"workers": 1, "wait_minutes": 0}}
    assert run_key("sweep", {**settings, "pretrain": more, "seeds": [], "storage": ""}, {}) == key
    assert run_key("sweep", {**settings, "pretrain": {**more, "training": {"epochs": 2}}}, {}) != key


def test_a_whole_sweep_has_the_key_that_it_had_before_its_newer_fields() -> None:
    def without(settings: dict[str, Any]) -> dict[str, Any]:
        """Leave out what came later."""
        newer = ("checkpoint_minutes", "gpu_type", "links", "finetune_gpu_type")
        return {
            name: without(value) if isinstance(value, dict) else value
            for name, value in settings.items()
            if name not in newer
        }

    settings = plain(RECIPES["tiny"].settings("sweep"))
    settings = {name: value for name, value in settings.items() if value is not MISSING}
    assert settings["pretrain"]["plan"]["links"] and without(settings) != settings
    assert run_key("sweep", settings, {}) == run_key("sweep", without(settings), {})
