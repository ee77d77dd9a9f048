"""What holds for every field of every section of the settings, those that will be added included."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from anatomask.cli.arguments import parse
from anatomask.errors import UserError
from anatomask.nested import overlay
from anatomask.recipes import RECIPES
from anatomask.recipes.recipe import VERBS
from anatomask.settings import Settings

PREPARE = ["prepare", "--source", "x", "--out", "y"]
SWEEP = ["sweep", "--space", "x", "--pretrain-data", "x", "--finetune-data", "x"]
UNBOUNDED = {"seed"}
"""Whole numbers that no memory, process or file is made of."""


def sections(config: Any, path: str) -> Iterator[tuple[str, Any]]:
    """A configuration and the sections in it."""
    yield path, config
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            yield from sections(value, f"{path}.{field.name}")


ALL = {path: section for verb in VERBS for path, section in sections(RECIPES["tiny"].settings(verb), verb)}
FIELDS = [(path, field.name) for path, section in ALL.items() for field in dataclasses.fields(section)]


def parts(hint: Any) -> list[Any]:
    """The alternatives of a union, else the type itself."""
    return list(get_args(hint)) if type(None) in get_args(hint) else [hint]


def with_numbers(path: str, name: str, number: Any) -> list[Any]:
    """Values of a field that hold `number` where one may stand: itself, or a tuple in which all the others are fit."""
    hint = get_type_hints(type(ALL[path]))[name]
    values: list[Any] = []
    for part in parts(hint):
        if part in (int, float):
            values.append(number)
        elif get_origin(part) is tuple and get_args(part)[0] in (int, float):
            length = len(get_args(part)) if Ellipsis not in get_args(part) else 1
            values.append((*(16,) * (length - 1), number))
    return values


def test_every_section_is_of_the_common_base() -> None:
    assert [path for path, section in ALL.items() if not isinstance(section, Settings)] == []


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, True, 2**80])
def test_no_number_may_be_nan_infinite_true_or_beyond_64_bits(number: Any) -> None:
    tried = 0
    for path, name in FIELDS:
        for value in with_numbers(path, name, number):
            if number is True and bool in parts(get_type_hints(type(ALL[path]))[name]):
                continue
            if number == 2**80 and float in parts(get_type_hints(type(ALL[path]))[name]):
                continue
            tried += 1
            with pytest.raises(ValueError, match=name):
                dataclasses.replace(ALL[path], **{name: value})
    assert tried > 80


def test_no_whole_number_may_be_absurd() -> None:
    for path, name in FIELDS:
        hint = get_type_hints(type(ALL[path]))[name]
        if name in UNBOUNDED or float in parts(hint):
            continue
        for number in (-(10**10), 10**10):
            for value in with_numbers(path, name, number):
                with pytest.raises(ValueError, match=name):
                    dataclasses.replace(ALL[path], **{name: value})


@pytest.mark.parametrize("text", ["caf\udce9", "a\x00b", "a\nb", "\x1b[31m"])
def test_no_text_may_hold_what_is_no_text(text: str) -> None:
    tried = 0
    for path, name in FIELDS:
        for part in parts(get_type_hints(type(ALL[path]))[name]):
            value = text if part is str else (text,) if part == tuple[str, ...] else None
            if value is not None:
                tried += 1
                with pytest.raises(ValueError, match=name):
                    dataclasses.replace(ALL[path], **{name: value})
    assert tried > 20


def test_what_has_a_default_may_not_be_emptied() -> None:
    named = [
        (path, field.name)
        for path, section in ALL.items()
        for field in dataclasses.fields(section)
        if field.default and isinstance(field.default, str)
    ]
    assert len(named) > 10
    for path, name in named:
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(ALL[path], **{name: ""})


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (["phantom", "--out", ""], "--out"),
        (["prepare", "--source", "", "--out", "x"], "--source"),
        (["survey", ""], "--source"),
        (["pretrain", "--data", ""], "--data"),
        (["evaluate", "--run", ""], "--run"),
        (["export-weights", "", "--format", "monai"], "--run"),
        (["import-weights", "x", "--output", ""], "--output"),
    ],
)
def test_what_must_be_given_may_not_be_empty(argv: list[str], flag: str) -> None:
    with pytest.raises(UserError, match=f"{flag} is empty"):
        parse(argv[0], argv[1:], RECIPES)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*PREPARE, "--split.fractions", "0.5", "0.9", "nan"], "fractions must be a finite"),
        (["pretrain", "--data", "x", "--splits", "train", "train"], "splits names train twice"),
        (["pretrain", "--data", "x", "--splits"], "splits must name at least one split"),
        (["pretrain", "--data", "x", "--cluster.max-failures", "-1"], "max_failures must be at least 0"),
        (["pretrain", "--data", "x", "--cluster.threads", "1000000"], "threads must be at most 10,000"),
        (["pretrain", "--data", "x", "--cluster.gpu-type", "H 100"], "gpu_type must be a type as H100"),
        (["pretrain", "--data", "x", "--cluster.gpu-type", "L4", "--cluster.gpu", "False"], "gpu_type L4 needs GPUs"),
        (["pretrain", "--data", "x", "--training.checkpoint-minutes", "0"], "checkpoint_minutes must be at least 0.01"),
        ([*SWEEP, "--runs", "s3://KEY:SECRET@b/r"], "runs must be a folder, on storage that all machines share"),
        (["export-weights", "s3://b/r", "--format", "monai"], "output must name a file or a folder on this machine"),
        (["evaluate", "--run", "x", "--out", "s3://b/r"], "out must be a folder"),
        ([*PREPARE, "--preprocess.brick", "1000000000"], "brick must be at most 512"),
        ([*PREPARE, "--preprocess.spacing", "1", "1", "nan"], "spacing must be a finite"),
        (["report", "--runs"], "runs must name at least one"),
        (["report", "--runs", "a", "a"], "runs names a twice"),
        (["phantom", "--out", "x", "--spacing", "nan"], "spacing must be a finite"),
    ],
)  # fmt: skip
def test_flags_are_refused_by_name(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(argv[0], argv[1:], RECIPES)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": True}, "file: seed must be a number, not true"),
        ({"loader": {"patch_size": [True, 48, 48]}}, "file: loader.patch_size must be a number, not true"),
        ({"optimiser": {"lr": float("nan")}}, "file: optimiser.lr must be a finite number, not nan"),
        ({"optimiser": {"lr": "nan"}}, "file: optimiser.lr must be a finite number, not nan"),
        ({"seed": 10**5000}, "file: seed must be at most"),
        ({"name": "a\0b"}, "file: name holds characters that are not text"),
    ],
)
def test_what_a_file_says_is_refused_before_it_is_converted(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        overlay(ALL["pretrain"], changes, "file")


def test_true_is_kept_where_it_is_meant() -> None:
    changes = {"training": {"compile": True}, "cluster": {"gpu": True}}
    config = overlay(ALL["pretrain"], changes, "file")
    assert config.training.compile is True and config.cluster.gpu is True
