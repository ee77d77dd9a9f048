"""Texts are written and read as UTF-8, and printed in whatever the terminal has, whatever the locale says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anatomask.files import write_text
from anatomask.terminal.printing import LONGEST, message_text
from anatomask.training.journal import note

ROOT = Path(__file__).parents[1]
FOLDERS = ("anatomask", "pipelines", "tune_spaces")
POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}


def without_encoding(source: str) -> Iterator[int]:
    """Lines that read or write a text in the encoding of the locale."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        text = [mode for mode in modes if re.fullmatch("[rwax][+t]*", mode)]
        if (
            name == "read_text"
            or (name == "write_text" and isinstance(node.func, ast.Attribute))
            or (name == "open" and (text or not (node.args or node.keywords)))
        ):
            yield node.lineno


def test_every_text_is_read_and_written_in_an_encoding_of_our_own() -> None:
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 50
    found = {str(path.relative_to(ROOT)): list(without_encoding(path.read_text(encoding="utf-8"))) for path in sources}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_one_that_forgets_it_would_be_found() -> None:
    for source in ("path.read_text()", "path.write_text(x)", "path.open('w')", "path.open()", "open(path, 'a')"):
        assert len(list(without_encoding(source))) == 1
    for source in ("path.open('rb')", "write_text(path, x)", "archive.open(name)", "path.open('w', encoding='utf-8')"):
        assert not list(without_encoding(source))


def test_help_and_messages_in_ascii(tmp_path: Path) -> None:
    """Under the POSIX locale, …, ± and umlauts are escapes; the files hold them as they are."""
    command = [sys.executable, "-m", "anatomask"]
    shown = subprocess.run([*command, "--help"], env=os.environ | POSIX, capture_output=True, cwd=tmp_path)
    assert shown.returncode == 0 and b"--field VALUE \\u2026" in shown.stdout
    script = (
        "from types import SimpleNamespace\nfrom pathlib import Path\n"
        "from anatomask.cli import program\nfrom anatomask.errors import UserError\n"
        "from anatomask.files import write_text\n"
        "def stage(config, overwrite):\n"
        "    write_text(Path('a.txt'), '\\u00b1\\udcff')\n"
        "    raise UserError('Gr\\u00f6\\u00dfe \\u00b1 \\udcff')\n"
        "raise SystemExit(program.run('phantom', lambda: SimpleNamespace(stage=stage), ['--out', 'x']))\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], env=os.environ | POSIX, capture_output=True, cwd=tmp_path)
    assert shown.returncode == 1, shown.stderr.decode()
    assert b"Gr\\xf6\\xdfe \\xb1 \\xff" in shown.stderr
    assert (tmp_path / "a.txt").read_bytes() == "±".encode() + b"\\udcff"


def test_names_that_are_not_utf_8_are_written_down_all_the_same(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "scan\udcff.nii")
    note(tmp_path, "scan\udcff.nii")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "scan\\udcff.nii"
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").endswith(" scan\\udcff.nii\n")


@pytest.mark.parametrize(
    ("message", "shown"),
    [("a\x1b[2J\r", "a\\x1b[2J\\r"), ("two\nlines", "two\nlines"), ("ä ±", "ä ±"), ("\udcff", "\\xff")],
)
def test_a_message_cannot_command_the_terminal(message: str, shown: str) -> None:
    assert message_text(message) == shown


def test_a_message_is_bounded() -> None:
    assert len(message_text("x" * 10**6)) == LONGEST + 2
