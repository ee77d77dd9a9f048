"""Extensions from outside: Python files of the user's own, loaded by path, and packages with an entry point.

An extension is a module that assigns some of these, each a mapping by name: `METHODS` and `BACKBONES`, the settings of
methods and networks; `READERS`, readers of raw data; `RECIPES`, complete configurations. A package names
its module under the entry point group `anatomask`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.abc import ExecutionLoader
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from anatomask.errors import UserError

GROUP = "anatomask"
"""Entry point group of packages that extend this one."""
PREFIX = "anatomask_plugin_"
"""Beginning of the names of modules that `--plugin` loaded by their paths."""


def with_extensions(registry: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return `own`, a registry of this package, merged with what extensions assign to the name `registry`.

    Raises:
        UserError: an extension cannot be imported, assigns no mapping, or uses a name that is taken.
    """
    found = dict(own)
    for where, module in _extensions():
        added = getattr(module, registry, {})
        if not isinstance(added, Mapping):
            raise UserError(f"{where}: {registry} must be a mapping of names, not {type(added).__name__}")
        for name, value in added.items():
            if name in found:
                raise UserError(f"{where}: {registry} has {name}, which there is already; choose another name")
            found[name] = value
    return found


def find_class(kind: str, name: str, registry: str, own: Mapping[str, str], base: type) -> Any:
    """Find the settings class of an extension point by its name, and import its file.

    Args:
        kind: what a message calls it: method, network.
        name: the name that is looked for.
        registry: name of the registry, which extensions assign.
        own: that of this package: the dotted path of each class.
        base: class of which it has to be a subclass, with `name` as its attribute of that name.

    Raises:
        UserError: there is none of that name, or the registry names something else.
    """
    known = with_extensions(registry, own)
    if name not in known:
        raise UserError(f"{kind} {name}: no such {kind}; there are {', '.join(known)}, and --plugin FILE.py adds more")
    found = known[name]
    if isinstance(found, str):
        module, _, attribute = found.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, base) and getattr(found, "name", None) == name):
        raise UserError(f"{kind} {name}: {registry} must name a subclass of {base.__name__} whose name is {name}")
    return found


def plugin_files() -> list[Path]:
    """List the files of the user's own that were loaded, in order, by their absolute paths."""
    return [text.path for text in _texts()]


def plugin_flags() -> str:
    """Return the flags that load the same files, each after a space, for a command that is suggested."""
    return "".join(f" --plugin {path}" for path in plugin_files())


def plugin_digests() -> dict[str, str]:
    """Return a digest of the texts of these files, by `plugin`: other code is another run, whatever its file's name.

    The texts are those that were loaded: the files may have changed since, or lie on another machine.
    """
    digests = sorted(hashlib.sha256(text.source.encode()).hexdigest() for text in _texts())
    return {"plugin": hashlib.sha256("".join(digests).encode()).hexdigest()} if digests else {}


def worker_setup() -> Callable[[], None] | None:
    """Return a function that loads the same files in a worker process, on any machine; None where there are none."""
    files = [(text.path, text.source) for text in _texts()]

    def load_plugins() -> None:
        for path, source in files:
            _load(path, source)

    return load_plugins if files else None


def load_module(path: Path, flag: str) -> ModuleType:
    """Run the Python file at `path`, which `flag` names on the command line, and return its module.

    A file that was loaded before is not run again.

    Raises:
        UserError: there is no such file, or it cannot be run; the message names the line.
    """
    if not path.is_file():
        raise UserError(f"{flag} {path}: there is no such file")
    try:
        return _load(path, path.read_text(encoding="utf-8"), f"anatomask_{flag.strip('-')}_")
    except Exception as error:
        raise UserError(f"{flag} {path}, line {_line(error, path)}: {type(error).__name__}: {error}") from error


class _Text(ExecutionLoader):
    """Importer of a text as if it lay in a file, which does not exist on another machine."""

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_source(self, fullname: str) -> str:
        return self.source


def _texts() -> list[_Text]:
    modules = _plugins()
    return [module.__loader__ for module in modules if isinstance(module.__loader__, _Text)]


def _load(path: Path, source: str, prefix: str = PREFIX) -> ModuleType:
    path = path.absolute()
    name = f"{prefix}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_loader(name, _Text(path, source))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _plugins() -> list[ModuleType]:
    """List the modules of the plugin files that are loaded, while other threads may import further modules."""
    return [module for name, module in sys.modules.copy().items() if name.startswith(PREFIX)]


def _extensions() -> list[tuple[str, ModuleType]]:
    """List the module of each extension, with its source as messages name it."""
    files = [(f"--plugin {module.__file__}", module) for module in _plugins()]
    packages = []
    for point in entry_points(group=GROUP):
        try:
            packages.append((f"entry point {point.name} ({point.value})", point.load()))
        except Exception as error:
            raise UserError(
                f"entry point {point.name} ({point.value}) cannot be imported: {type(error).__name__}: {error}; "
                "mend or uninstall the package"
            ) from error
    return [*files, *packages]


def _line(error: Exception, path: Path) -> int | None:
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return frames[-1].lineno if frames else None
