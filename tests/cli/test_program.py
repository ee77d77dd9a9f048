"""Whatever is wrong with an argument, a file or the system is one message at the program."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from anatomask.cli import program
from anatomask.cli.main import main
from anatomask.errors import Note
from tests.test_parsing import alias_bomb


def complain(argv: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The message of a command that fails, on one line."""
    try:
        code = main(argv)
    except SystemExit as end:
        code = int(str(end.code))
    shown = capfd.readouterr().err
    assert code in (1, 2), shown
    assert "Traceback" not in shown
    return " ".join(shown.replace("│", " ").split())


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_error_of_the_system_is_one_message(code: int, capfd: pytest.CaptureFixture[str]) -> None:
    def stage(config: object, *, overwrite: bool) -> int:
        raise OSError(code, os.strerror(code), "/some/file")

    assert program.run("phantom", lambda: SimpleNamespace(stage=stage), ["--out", "x"]) == 1
    shown = capfd.readouterr().err
    assert shown.startswith("anatomask phantom: /some/file: ") and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("pyarrow said this"), "pyarrow said this"),
        (OSError(), "OSError"),
        (OSError(errno.EIO, "x", b"/bytes\xff"), "/bytes\\xff: Input/output error"),
        (OSError(errno.EIO, "x", 3), "output: Input/output error"),
    ],
)
def test_what_an_error_lacks_is_not_missed(error: OSError, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    def stage(config: object, *, overwrite: bool) -> int:
        raise error

    assert program.run("phantom", lambda: SimpleNamespace(stage=stage), ["--out", "x"]) == 1
    assert capfd.readouterr().err == f"anatomask phantom: {message}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["phantom", "--cases", "1", "--out", "/proc/x"], "/proc/x"),
        (["phantom", "--cases", "1", "--out", "x" * 300], "the name is too long"),
        (["pretrain", "--data", "x" * 300], "the name is too long"),
        (["finetune", "--data", "x", "--init", "y" * 300], "the name is too long; choose a shorter one"),
        (["evaluate", "--run", "x" * 300], "the name is too long"),
        (["report", "--runs", "x" * 300], "the name is too long"),
        (["prepare", "--source", "x" * 300, "--out", "y"], "xxx"),
        (["survey", "x" * 300], "xxx"),
        (["export-weights", "x" * 300, "--format", "monai"], "the name is too long"),
        (["import-weights", "x" * 300, "--output", "y"], "xxx"),
        (["pretrain", "--config", "x" * 300], "name is too long"),
        (["pretrain", "--config", "."], "Is a directory"),
        (["pretrain", "--data", "s3://"], "names no folder"),
        (["prepare", "--source", ".", "--out", "s3://"], ""),
        (["pretrain", "--data", "://"], "cannot be opened"),
        (["pretrain", "--data", "a\0b"], "data holds characters that are not text"),
        (["pretrain", "--data", "a\udcff"], "data holds characters that are not text"),
        (
            ["prepare", "--source", "x", "--out", "y", "--preprocess.spacing", "nan", "1", "1"],
            "spacing must be a finite number",
        ),
        (["phantom", "--out", "x", "--spacing", "nan"], "spacing must be"),
        (["phantom", "--out", "x", "--spacing", "inf"], "spacing must be a finite number, not inf"),
        (["pretrain", "--data", "x", "--optimiser.lr", "nan"], "lr must be a finite number"),
        (
            ["pretrain", "--data", "x", "--cluster.address", "!!!"],
            "address must be local, auto or HOST:PORT, not '!!!'",
        ),
    ],
)
def test_arguments_that_no_one_can_use(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in complain(argv, capfd)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"splits: &x\n{alias_bomb(8)}", "is not YAML: it holds, or its aliases"),
        (alias_bomb(8), "is not YAML: it holds, or its aliases"),
        ("method: " + "[" * 100_000, "is not YAML: it is nested too deeply"),
        ("splits: {" + ", ".join(f"k{i}: {'v' * 50}" for i in range(5_000)) + "}", "splits: input should be"),
        ("name: " + "x" * 10**6, "name must be at most 128"),
        ("? [1, 2]\n: 3", "is not YAML: found unhashable key"),
        ("1: 2", "1: no such field"),
        ('data: "a\\0b"', "data holds characters that are not text"),
        ("data: x\noptimiser: {lr: .nan}", "optimiser.lr must be"),
        ("\0", "is not YAML"),
    ],
)
def test_yaml_that_no_one_can_use_is_a_short_message(
    text: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    data = [] if "data" in text else ["--data", "x"]
    shown = complain(["pretrain", "--config", str(file), *data], capfd)
    assert message in shown
    assert len(shown) < 1_000


def test_a_note_is_one_line_and_shown_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(RuntimeWarning, match="not ours"), program.notes_shown(Console(stderr=True), "pretrain"):
        for _ in range(3):
            warnings.warn(Note("old [folder] has no checksums"), stacklevel=1)
        warnings.warn("not ours", RuntimeWarning, stacklevel=1)
    assert capfd.readouterr().err == "anatomask pretrain: old [folder] has no checksums\n"
