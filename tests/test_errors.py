from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anatomask.cli import program
from anatomask.errors import MORE_MEMORY, UserError, in_words, is_out_of_memory, reason, unexpected


def impossible() -> list[BaseException]:
    """What the libraries raise when they are asked for half an exbibyte, and Python."""
    found: list[BaseException] = [MemoryError()]
    for ask in (lambda: np.empty(2**56), lambda: torch.empty(2**56)):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            ask()
        found.append(caught.value)
    return found


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    assert all(map(is_out_of_memory, impossible()))
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError())


def test_an_error_is_never_its_name_alone_where_memory_ran_out() -> None:
    for error in impossible():
        assert isinstance(error, Exception)
        assert reason(error).startswith("it needs more memory than there is")
        assert unexpected("a.nii", error).startswith("a.nii: it needs more memory than there is")
        assert "leave it out, or prepare it on a machine with more" in unexpected("a.nii", error)


class TaskFailed(RuntimeError):
    """An error as Ray's, which keeps what a task failed by."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("the task's traceback")
        self.cause = cause


def test_what_a_user_can_mend_has_words_also_where_a_task_failed_by_it() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/runs/x")
    for error, words in (
        (UserError("a.nii is damaged; get it again"), "a.nii is damaged; get it again"),
        (full, "/runs/x: no space is left on the device; free some or choose another folder"),
        (MemoryError(), f"memory ran out; {MORE_MEMORY}"),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried much"),
            f"memory ran out (CUDA out of memory.); {MORE_MEMORY}",
        ),
    ):
        assert in_words(error) == words
        assert in_words(TaskFailed(error)) == words
    assert in_words(RuntimeError("a defect")) is None


def test_a_reason_is_one_line_without_the_path() -> None:
    assert reason(OSError(errno.EACCES, os.strerror(errno.EACCES), "/secret")) == "Permission denied"
    assert reason(ValueError("two\nlines")) == "two lines"
    assert reason(KeyError()) == "KeyError"


def test_the_front_door_says_what_helps_and_lets_other_errors_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    def run(error: BaseException) -> int:
        def stage(config: object, overwrite: bool) -> int:
            raise error

        return program.run("phantom", lambda: SimpleNamespace(stage=stage), ["--out", "x"])

    for error in impossible():
        assert run(error) == 1
        shown = capsys.readouterr().err
        assert "anatomask phantom: memory ran out" in shown and "close other programs" in shown
    with pytest.raises(RuntimeError, match="a defect"):
        run(RuntimeError("a defect"))
