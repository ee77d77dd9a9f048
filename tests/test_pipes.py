from __future__ import annotations

import os
from pathlib import Path

import pytest

from anatomask.cli.arguments import read_yaml
from anatomask.errors import UserError
from anatomask.files import refuse_pipe


def test_a_named_pipe_is_refused_and_what_a_shell_pipes_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"^--config .*/pipe is a named pipe; put a file there$"):
        read_yaml(str(tmp_path / "pipe"))
    refuse_pipe(tmp_path / "nothing")
    reading, writing = os.pipe()
    os.write(writing, b"seed: 3")
    os.close(writing)
    assert read_yaml(f"/dev/fd/{reading}") == {"seed": 3}
    os.close(reading)
