"""Python files of the user's own, loaded by their paths: methods, readers, spaces of sweeps."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from anatomask.errors import UserError


def load_module(path: Path, flag: str) -> ModuleType:
    """Run the Python file at `path`, which `flag` names on the command line, and return its module.

    A file that was loaded before is not run again.

    Raises:
        UserError: there is no such file, or it cannot be run; the message names the line.
    """
    if not path.is_file():
        raise UserError(f"{flag} {path}: there is no such file")
    name = module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{flag} {path}, line {_line(error, path)}: {type(error).__name__}: {error}") from error
    return module


def module_name(path: Path) -> str:
    """Return the name under which a file is loaded: its whole path, so that no two files share one."""
    return "anatomask_plugin_" + path.resolve().with_suffix("").as_posix().replace("/", "_").replace(".", "_")


def _line(error: Exception, path: Path) -> int | None:
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return frames[-1].lineno if frames else None
