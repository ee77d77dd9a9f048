from __future__ import annotations

from pathlib import Path

import pytest

from anatomask.errors import UserError
from anatomask.plugins import load_module


def test_a_file_is_run_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("calls = []\ncalls.append(1)\n")
    module = load_module(path, "--plugin")
    assert module.calls == [1] and load_module(path, "--plugin") is module


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"folder = {folder!r}\n")
    assert [load_module(tmp_path / folder / "mine.py", "--plugin").folder for folder in ("a", "b")] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nx = (\n", "line 2: SyntaxError"),
        ("\n\nraise ValueError('no')\n", "line 3: ValueError: no"),
        ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_by_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(UserError, match=message) as error:
            load_module(path, "--plugin")
    assert str(error.value).startswith(f"--plugin {path}, ")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        load_module(tmp_path / "mine.py", "--space")
