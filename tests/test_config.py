from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from anatomask.cli.arguments import parse
from anatomask.cli.main import main
from anatomask.config import FinetuneConfig, PretrainConfig
from anatomask.data.samples import LoaderConfig
from anatomask.errors import Note, UserError
from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.methods.base import MethodConfig
from anatomask.methods.byol import BYOLConfig
from anatomask.methods.moco import MoCoConfig
from anatomask.nested import plain
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.nn.backbones.swin_unetr import SwinUNETRConfig
from anatomask.recipes import RECIPES
from anatomask.recipes.parts import NETWORKS
from anatomask.training.schedule import SCHEDULES
from anatomask.training.settings import TrainingConfig
from anatomask.weights.files import describe_architecture, write_weights


def settings(*argv: str, verb: str = "pretrain") -> Any:
    return parse(verb, argv, RECIPES).config


def test_flags_override_yaml_and_yaml_overrides_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("method: {mask_ratio: 0.8, r0: 0.1}\ndata: shards\n")
    config = settings("--recipe", "tiny", "--config", str(file), "--method.mask-ratio", "0.9")
    assert (config.method.mask_ratio, config.method.r0, config.data) == (0.9, 0.1, "shards")
    assert config.network.base == RECIPES["tiny"].settings("pretrain").network.base


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_made_for_the_epochs_whichever_way_they_came(schedule: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("training: {epochs: 150}\ndata: shards\n")
    start = ("--schedule", schedule, "--recipe", "small")
    found = {
        20: settings(*start, "--data", "shards", verb="finetune"),
        150: settings(*start, "--config", str(file), verb="finetune"),
        1000: settings(*start, "--config", str(file), "--training.epochs", "1000", verb="finetune"),
        40: settings(*start, "--data", "shards", "--training.epochs=40", verb="finetune"),
    }
    for epochs, config in found.items():
        assert (config.training.epochs, config.optimiser) == (epochs, SCHEDULES[schedule](epochs))
        assert config.loader == RECIPES["small"].settings("finetune").loader


@pytest.mark.parametrize("runs", [["--run", "a", "b"], ["--run", "a", "--run", "b"], ["--run=a", "--run=b"]])
def test_runs_are_named_by_one_flag_or_by_several(runs: list[str]) -> None:
    assert settings("--source", "x", *runs, "--out", "y", verb="predict").run == ("a", "b")


def test_yaml_and_flags_override_a_schedule(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("optimiser: {lr: 0.5, decoder_first: [3, 4]}\ndata: shards\n")
    more = ("--config", str(file), "--optimiser.warmup-epochs", "7", "--optimiser.momentum", "0.9")
    config = settings("--schedule", "sawtooth", *more, verb="finetune").optimiser
    assert config == replace(SCHEDULES["sawtooth"](1000), lr=0.5, decoder_first=(3, 4), warmup_epochs=7, momentum=0.9)


def test_a_sweep_finetunes_by_a_schedule() -> None:
    given = ("--recipe", "small", "--space", "search", "--pretrain-data", "a", "--finetune-data", "b")
    plainly = settings(*given, verb="sweep")
    config = settings(*given, "--schedule", "sawtooth", "--finetune.training.epochs", "50", verb="sweep")
    assert config.finetune.optimiser == SCHEDULES["sawtooth"](50)
    assert config.finetune.training.epochs == 50
    assert config.pretrain == plainly.pretrain


@pytest.mark.parametrize("recipe", [name for name, recipe in RECIPES.items() if recipe.method is not None])
@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_written_configuration_reads_back_the_same(recipe: str, verb: str, tmp_path: Path) -> None:
    config = settings("--recipe", recipe, "--data", "shards", verb=verb)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(plain(config)))
    assert settings("--recipe", "tiny", "--config", str(file), verb=verb) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("metod: {}", "metod: no such field"),
        ("method: {mask_rato: 0.5}", "method.mask_rato: no such field"),
        ("method: {mask_ratio: 1.5}", "method.mask_ratio must lie"),
        ("method: {mask_ratio: half}", "method.mask_ratio"),
        ("loader: {patch_size: [10, 16, 16]}", "loader.patch_size must be three multiples of 16 from 32 on"),
        ("loader: 3", "loader must be a mapping"),
        ("- 1", "must hold a mapping"),
        ("a: [", "is not YAML"),
        ("seed: 1\nname: a\nseed: 2", "is not YAML: seed stands in it twice, in line 1 and in line 3"),
        ("seed: true", "seed must be a number, not true"),
    ],
)
def test_yaml_is_refused_by_name(text: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=named):
        settings("--config", str(file), "--data", "x")


@pytest.mark.parametrize(
    ("argv", "code", "named"),
    [
        (["pretrain", "--data", "x", "--method.mask-rato", "0.8"], 2, "mask-rato"),
        (["pretrain", "--data", "x", "--method.mask-ratio", "1.8"], 2, "mask_ratio must lie"),
        (["pretrain", "--data", "x", "--method.mask-ratio", "much"], 2, "method.mask-ratio"),
        (["pretrain", "--data", "x", "--training.epochs", "0"], 2, "epochs must be at least 1"),
        (["pretrain"], 2, "--data"),
        (["pretrain", "--recipe", "huge", "--data", "x"], 1, "no such recipe"),
        (["pretrain", "--config", "missing.yaml"], 1, "missing.yaml"),
        (["finetune", "--data", "x", "--train-fraction", "0"], 2, "train_fraction"),
        (["finetune", "--data", "x", "--schedule", "slow"], 1, "there are published, warmup, sawtooth, nnunet"),
        (
            ["finetune", "--data", "x", "--schedule", "sawtooth", "--training.epochs", "3"],
            1,
            "fewer than training.epochs",
        ),
        (["finetune", "--data", "x", "--schedule", "nnunet", "--training.epochs", "many"], 2, "many"),
        (["pretrain", "--data", "x", "--schedule", "nnunet"], 2, "--schedule"),
        (["pretrain", "--data", "x", "--optimiser.layer-decay", "0.9"], 2, "layer_decay is for finetuning alone"),
        (["finetune", "--data", "x", "--optimiser.freeze", "1001"], 2, "freeze 1001 must be at most"),
        (["walk"], 2, "walk is not a verb"),
    ],
)
def test_the_command_refuses_by_name_with_an_exit_code(
    argv: list[str], code: int, named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        result = main(argv)
    except SystemExit as exit_:
        result = int(str(exit_.code))
    assert result == code
    shown = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert named in shown


def test_a_method_is_chosen_by_its_name_and_has_settings_of_its_own(tmp_path: Path) -> None:
    config = settings("--method", "byol", "--method.hidden", "64", "--data", "shards")
    assert config.method == BYOLConfig(hidden=64)
    written = plain(config)
    assert written["method"] == {"name": "byol", **dataclasses.asdict(config.method)}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(written))
    assert settings("--recipe", "tiny", "--config", str(file)) == config
    tiny = RECIPES["tiny"].settings("pretrain").method
    assert settings("--recipe", "tiny", "--config", str(file), "--method", "anatomask").method == tiny
    sweep = settings(
        *("--pretrain.method", "byol", "--pretrain.method.projection", "8", "--space", "x"),
        *("--pretrain-data", "a", "--finetune-data", "b"),
        verb="sweep",
    )
    assert sweep.pretrain.method == BYOLConfig(projection=8)


def test_the_method_that_a_recipe_has_keeps_its_settings() -> None:
    assert settings("--recipe", "small", "--method", "anatomask", "--data", "x").method.patch == 8


def test_the_network_that_a_recipe_has_keeps_its_size(tmp_path: Path) -> None:
    config = settings("--recipe", "tiny", "--network", "stunet", "--data", "x")
    assert config.network.base == 8 and plain(config)["network"]["name"] == "stunet"
    file = tmp_path / "config.yaml"
    for network in ("{base: 4}", "{name: stunet, base: 4}"):  # older versions wrote no name
        file.write_text(f"network: {network}")
        assert settings("--recipe", "tiny", "--config", str(file), "--data", "x").network == STUNetConfig(base=4)


def test_a_network_is_chosen_by_its_name_with_a_crop_that_it_takes(tmp_path: Path) -> None:
    small = ("--network.widths", "4", "8", "8", "--network.blocks", "1", "1", "2")
    config = settings("--network", "resenc", *small, "--data", "x", verb="finetune")
    assert config.network == ResEncConfig(widths=(4, 8, 8), blocks=(1, 1, 2))
    assert config.loader.patch_size == (128, 128, 128)  # of the paper's 112 x 112 x 128
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(plain(config)))
    assert settings("--recipe", "tiny", "--config", str(file), verb="finetune") == config
    sweep = settings(
        *("--network", "resenc", "--recipe", "tiny", "--space", "x", "--pretrain-data", "a", "--finetune-data", "b"),
        verb="sweep",
    )
    for stage in (sweep.pretrain, sweep.finetune):
        assert stage.network == NETWORKS["resenc-small"] and stage.loader.patch_size == (64, 64, 64)


def test_resume_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match="the same command goes on"):
        settings("--data", "x", "--resume")


@pytest.mark.parametrize("part", ["", "encoder:", "permuted:"])
def test_a_finetuning_has_the_network_of_its_weights_unless_another_is_named(part: str, tmp_path: Path) -> None:
    network = ResEncConfig(2, (4, 8, 8), (1, 1, 2))
    write_weights(tmp_path / "weights", {}, {"architecture": describe_architecture(network)})
    argv = ("--recipe", "tiny", "--data", "x", "--init", f"{part}{tmp_path / 'weights'}")
    with pytest.warns(Note, match="--recipe tiny is for stunet; the initial weights' resenc is trained"):
        assert settings(*argv, verb="finetune").network == network
    assert settings(*argv, "--network.in-channels", "1", verb="finetune").network == replace(network, in_channels=1)
    assert settings(*argv, "--network", "stunet", verb="finetune").network == STUNetConfig(base=8)
    file = tmp_path / "config.yaml"
    file.write_text(f"init: {part}{tmp_path / 'weights'}\nnetwork: {{in_channels: 3}}")
    config = settings("--recipe", "tiny", "--data", "x", "--config", str(file), verb="finetune")
    assert config.network == replace(network, in_channels=3) and config.loader.patch_size == (32, 32, 32)


def test_weights_that_are_not_there_are_refused_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is neither a run with checkpoints nor a folder"):
        settings("--data", "x", "--init", str(tmp_path / "nowhere"), verb="finetune")


@pytest.mark.parametrize("name", ["resenc", "swin_unetr"])
def test_a_crop_that_the_network_does_not_take_is_refused(name: str) -> None:
    argv = ("--network", name, "--data", "x", "--loader.patch-size", "48", "48", "48")
    with pytest.raises(SystemExit):
        settings(*argv, verb="finetune")
    with pytest.raises(ValueError, match=r"three multiples of 32, .* the network resenc: choose \(64, 64, 64\)"):
        FinetuneConfig(data="x", network=ResEncConfig(), loader=LoaderConfig(patch_size=(48, 48, 48)))
    # five stages, whose strides end at 16, are pretrained when patches of 16 voxels are hidden
    PretrainConfig(data="x", network=ResEncConfig(), loader=LoaderConfig(patch_size=(48, 48, 48)))


@pytest.mark.parametrize("method", [AnatoMaskConfig(), AnatoMaskConfig(masking="random"), BYOLConfig(), MoCoConfig()])
def test_methods_refuse_a_network_that_is_no_chain_of_convolutions(method: MethodConfig) -> None:
    with pytest.raises(ValueError, match=f"network swin_unetr cannot be pretrained by {method.label()}"):
        PretrainConfig(data="x", method=method, network=SwinUNETRConfig(), loader=LoaderConfig((64, 64, 64)))
    with pytest.raises(
        UserError, match=r"network swin_unetr cannot be pretrained by AnatoMask.*choose another --network"
    ):
        settings("--network", "swin_unetr", "--data", "x")


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_network_that_is_not_there_is_refused_by_name(verb: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("network: {name: unet}")
    for argv in (["--network", "unet"], ["--config", str(tmp_path / "c.yaml")]):
        with pytest.raises(UserError, match="network unet: no such network; there are stunet"):
            settings(*argv, "--data", "x", verb=verb)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--method", "moko"], "method moko: no such method; there are anatomask, byol"),
        (["--config", "method: {name: moko}"], "method moko: no such method"),
        (["--config", "method: {name: byol, mask_ratio: 0.5}"], "method.mask_ratio: no such field; there are hidden"),
    ],
)
def test_a_method_that_is_not_there_is_refused_by_name(argv: list[str], named: str, tmp_path: Path) -> None:
    if argv[0] == "--config":
        (tmp_path / "c.yaml").write_text(argv[1])
        argv = ["--config", str(tmp_path / "c.yaml")]
    with pytest.raises(UserError, match=re.escape(named)):
        settings(*argv, "--data", "x")


@pytest.mark.parametrize(
    ("method", "fields", "named"),
    [
        (AnatoMaskConfig(patch=32), {}, "must be three multiples of method.patch 32"),
        (AnatoMaskConfig(mask_ratio=0.999), {}, "hides 392 of the 392 patches"),
        (BYOLConfig(), {"training": TrainingConfig(accumulate=2)}, "training.accumulate must be 1: BYOL needs"),
    ],
)
def test_a_method_refuses_what_does_not_go_with_it(method: Any, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PretrainConfig(data="x", method=method, **fields)
