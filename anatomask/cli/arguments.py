"""The command line: a recipe, a schedule, a YAML file and flags become the settings of a verb."""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from anatomask.config import SCRATCH, FinetuneConfig
from anatomask.data.samples import SMALLEST_CROP
from anatomask.data.settings import PreprocessConfig
from anatomask.errors import Note, UserError
from anatomask.files import refuse_pipe
from anatomask.methods import method_names
from anatomask.nested import overlay
from anatomask.nn.backbones import backbone_names
from anatomask.parsing import from_yaml
from anatomask.plugins import load_module, with_extensions
from anatomask.recipes import TARGETS, Recipe, find_recipe, with_method, with_network
from anatomask.recipes.tables import listed
from anatomask.settings import required_fields
from anatomask.sweeps.settings import SweepConfig
from anatomask.training.schedule import SCHEDULES

DEFAULT_RECIPE = "paper-b"
EPOCHS = {"finetune": "--training.epochs", "sweep": "--finetune.training.epochs"}
"""Verbs that accept `--schedule` -> the flag for the epochs of what they finetune."""
METHOD_FLAG = {"pretrain": "--method", "sweep": "--pretrain.method"}
"""Verbs that pretrain -> the flag that chooses the method."""
NETWORK_FLAG = "--network"
TRAINING_VERBS = ("pretrain", "finetune", "sweep")
"""Verbs that know this flag, which chooses the backbone."""
TARGET_FLAG = "--target"
TARGET_VERBS = ("prepare", *TRAINING_VERBS)
"""Verbs that know this flag, which chooses the data set that the recipe is for."""
REPEATED = {"predict": "--run", "report": "--runs"}
"""Verbs -> the flag of theirs that takes several values, and may be given several times."""

T = TypeVar("T")


@dataclass(frozen=True)
class Invocation:
    """One call of the command line: the configuration, and the options `--dry-run` and `--overwrite`."""

    config: Any
    dry_run: bool
    overwrite: bool


def parse(verb: str, argv: Sequence[str], recipes: Mapping[str, Recipe]) -> Invocation:
    """Build the settings of `verb` from a recipe, a schedule, a YAML file, then dotted flags: the later override.

    The network of a finetuning is that of its initial weights, where nothing else chooses one.

    Raises:
        UserError: a recipe, method or schedule is unknown or does not fit the epochs, or a YAML file has a field that
            does not exist or a value out of range.
        SystemExit: a flag has such a fault (exit code 2; the message names the field).
    """
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=f"anatomask {verb}")
    flags.add_argument("--plugin", action="append", default=[])
    flags.set_defaults(recipe=None, network=None, method=None, target=None)
    flags.set_defaults(config=None, dry_run=False, overwrite=False)
    if verb != "recipes":
        flags.add_argument("--recipe")
        flags.add_argument("--config")
        flags.add_argument("--dry-run", action="store_true")
        flags.add_argument("--overwrite", action="store_true")
    if verb in EPOCHS:
        flags.add_argument("--schedule")
    if verb in METHOD_FLAG:
        flags.add_argument(METHOD_FLAG[verb], dest="method")
    if verb in TRAINING_VERBS:
        flags.add_argument(NETWORK_FLAG, dest="network")
    if verb in TARGET_VERBS:
        flags.add_argument(TARGET_FLAG, dest="target")
    own, rest = flags.parse_known_args(argv)
    if "--resume" in rest:
        raise UserError("there is no --resume: the same command goes on where it was stopped; leave --resume out")
    rest = gathered(rest, REPEATED[verb]) if verb in REPEATED else rest
    for path in own.plugin:
        load_module(Path(path), "--plugin")
    recipes = with_extensions("RECIPES", recipes)
    recipe = find_recipe(own.recipe or DEFAULT_RECIPE, recipes)
    if verb in TARGET_VERBS:
        recipe = recipe.composed(own.network, own.method, own.target)
    default = recipe.settings(verb)
    if verb == "prepare" and own.recipe is None and own.target is None:  # whose voxel size is meant for nobody's scans
        default = dataclasses.replace(default, preprocess=PreprocessConfig())
    from_file = {} if own.config is None else read_yaml(own.config)
    if verb == "finetune":
        named = default.network
        default = with_weights(default, initial_weights(from_file, rest))
        if own.recipe is not None and own.network is None and default.network.name != named.name:
            text = f"--recipe {own.recipe} is for {named.name}; the initial weights' {default.network.name} is trained"
            warnings.warn(Note(text), stacklevel=2)
    if verb in EPOCHS and own.schedule is not None:
        default = scheduled(default, own.schedule, epochs_of(verb, overlay(default, from_file, own.config), rest))
    default = overlay(default, from_file, own.config)
    if verb in METHOD_FLAG and own.method is not None:  # a file may have named another
        default = with_method(default, recipe.pretraining())
    if verb in TRAINING_VERBS and own.network is not None:
        default = with_network(default, recipe.backbone())
    description = f"{type(default).__doc__}\n\n{help_before(verb, recipes)}"
    config = tyro.cli(
        type(default), default=default, args=list(rest), prog=f"anatomask {verb}", description=description
    )
    for name, value in vars(config).items():
        if value == "" and name in required_fields(config):
            raise UserError(f"--{name.replace('_', '-')} is empty; name a folder or file, as --help says")
    return Invocation(config, own.dry_run, own.overwrite)


@dataclass(frozen=True)
class StatusQuestion:
    """Question of `anatomask sweep --status NAME`: how far is a sweep that runs here or elsewhere?"""

    runs: str
    """Folder of all runs."""
    name: str
    """Name of the sweep."""
    storage: str
    """Storage of its study, as `SweepConfig.storage`."""


def status_question(argv: Sequence[str]) -> StatusQuestion | None:
    """Return what is asked of a sweep by `--status NAME`, if it is; no other flags of a sweep are needed then.

    Raises:
        SystemExit: a flag is beside it that does not belong there.
    """
    if not any(word.partition("=")[0] == "--status" for word in argv):
        return None
    flags = argparse.ArgumentParser(allow_abbrev=False, prog="anatomask sweep")
    flags.add_argument("--status", metavar="NAME", required=True, help="name of the sweep")
    flags.add_argument("--runs", default="runs", help="folder of all runs; default: %(default)s")
    flags.add_argument("--storage", default="", help="storage of its study, if the sweep was given one")
    asked = flags.parse_args(argv)
    return StatusQuestion(asked.runs, asked.status, asked.storage)


def help_before(verb: str, recipes: Mapping[str, Recipe]) -> str:
    """Describe for `--help`, in lines of 80 columns, the flags that come before the fields of a verb."""
    flags = {}
    if verb != "recipes":
        flags = {
            "--recipe NAME": f"see the list below; default: {DEFAULT_RECIPE}",
            "--config FILE.yaml": "fields that override the recipe's",
            "--dry-run": "print the plan",
            "--overwrite": "begin anew",
        }
    if verb in METHOD_FLAG:
        flags[f"{METHOD_FLAG[verb]} NAME"] = ", ".join(method_names())
    if verb in TRAINING_VERBS:
        flags[f"{NETWORK_FLAG} NAME"] = ", ".join(backbone_names())
    if verb in TARGET_VERBS:
        flags[f"{TARGET_FLAG} NAME"] = ", ".join(TARGETS)
    if verb in EPOCHS:
        flags["--schedule NAME"] = f"how to finetune: {', '.join(SCHEDULES)}"
    if verb == "sweep":
        flags["--status NAME"] = "how far a sweep is, here or elsewhere; with --runs alone"
    flags["--plugin FILE.py"] = "methods, networks, readers and recipes of your own"
    width = max(map(len, flags))
    lines = [f"  {flag:<{width}}  {what}" for flag, what in flags.items()]
    return "\n".join(["Before the fields:", *lines, "", listed(recipes)])


def gathered(argv: Sequence[str], flag: str) -> list[str]:
    """Put the values of a repeated flag behind one: `--run A --run B` means `--run A B`."""
    values: list[str] = []
    others: list[str] = []
    current = others
    for argument in argv:
        name, equals, value = argument.partition("=")
        if name == flag:
            current = values
            values += [value] if equals else []
        else:
            current = others if argument.startswith("--") else current
            current.append(argument)
    return [*others, flag, *values] if values else list(argv)


def scheduled(config: T, name: str, epochs: int) -> T:
    """Replace the optimiser of a finetuning, or of a sweep's, by that of schedule `name` for the given epochs.

    Raises:
        UserError: there is no such schedule, or it does not fit the epochs.
    """
    if name not in SCHEDULES:
        raise UserError(f"--schedule {name}: no such schedule; there are {', '.join(SCHEDULES)}")
    if isinstance(config, SweepConfig):
        return dataclasses.replace(config, finetune=scheduled(config.finetune, name, epochs))
    assert isinstance(config, FinetuneConfig)
    try:
        training = dataclasses.replace(config.training, epochs=epochs)
        return dataclasses.replace(config, training=training, optimiser=SCHEDULES[name](epochs))
    except ValueError as error:
        raise UserError(f"--schedule {name}: {error}") from error


def epochs_of(verb: str, default: Any, argv: Sequence[str]) -> int:
    """Return the epochs of the finetuning in `verb`: those of a flag in `argv`, else those of `default`."""
    flag = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=f"anatomask {verb}")
    flag.add_argument(EPOCHS[verb], dest="epochs", type=int)
    given, _ = flag.parse_known_args(argv)
    finetuning = default.finetune if isinstance(default, SweepConfig) else default
    return int(finetuning.training.epochs if given.epochs is None else given.epochs)


def initial_weights(from_file: Mapping[str, Any], argv: Sequence[str]) -> str:
    """Return what a finetuning starts from: the flag `--init` in `argv`, else the file's field, else "scratch"."""
    flag = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="anatomask finetune")
    flag.add_argument("--init", default=from_file.get("init", SCRATCH))
    given, _ = flag.parse_known_args(argv)
    return str(given.init)


def with_weights(config: FinetuneConfig, init: str) -> FinetuneConfig:
    """Give a finetuning the network of its initial weights, and a crop that this network takes.

    Where the finetuning has more image channels, the network keeps these: the weights' are repeated.

    Raises:
        UserError: there are no such weights, or their header describes no network that is known here.
    """
    if not init or init == SCRATCH:
        return config
    from anatomask.weights.files import find_weights, network_of, read_header, split_init  # they need torch's tensors

    network = network_of(read_header(find_weights(split_init(init)[1])))
    network = dataclasses.replace(network, in_channels=max(network.in_channels, config.network.in_channels))
    crop = network.fitting_crop(config.loader.patch_size)
    if min(crop) < SMALLEST_CROP:  # published weights, whose positions are interpolated for a larger one
        first, second, third = (max(edge, SMALLEST_CROP) for edge in crop)
        crop = first, second, third
        network = network.for_crop(crop)
    loader = dataclasses.replace(config.loader, patch_size=crop)
    return dataclasses.replace(config, network=network, loader=loader)


def read_yaml(path: str) -> Mapping[str, Any]:
    """Read the mapping in a YAML file.

    Raises:
        UserError: the file is missing or holds no mapping.
    """
    refuse_pipe(Path(path), "--config")
    try:
        content = from_yaml(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; give a file that can be read") from error
    except ValueError as error:
        raise UserError(f"--config {path} is not YAML: {error}; correct the file") from error
    if not isinstance(content, Mapping):
        raise UserError(f"--config {path} must hold a mapping of fields")
    return content
