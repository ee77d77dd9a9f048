from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import cloudpickle

from anatomask.errors import UserError
from anatomask.plugins import load_module, plugin_digests, plugin_flags, with_extensions, worker_setup

pytestmark = pytest.mark.usefixtures("forget_plugins")


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


def test_the_digest_is_of_all_texts_whatever_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths that differ by a separator alone, a file that has changed since, and another working folder."""
    (tmp_path / "my").mkdir()
    texts = {"my/plug.py": "x = 1\n", "my_plug.py": "x = 2\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    assert [load_module(Path(name), "--plugin").x for name in texts] == [1, 2]
    assert plugin_flags() == f" --plugin {tmp_path / 'my/plug.py'} --plugin {tmp_path / 'my_plug.py'}"
    both = plugin_digests()
    monkeypatch.chdir(tmp_path / "my")
    (tmp_path / "my_plug.py").unlink()
    assert plugin_digests() == both
    (tmp_path / "other.py").write_text("x = 3\n")
    load_module(tmp_path / "other.py", "--plugin")
    assert plugin_digests() != both


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


def test_extensions_add_to_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(f"READERS = {{'{name}': 1}}\n")
        load_module(tmp_path / f"{name}.py", "--plugin")
    package = tmp_path / "package"
    (package / "of_others-1.dist-info").mkdir(parents=True)
    (package / "of_others.py").write_text("METHODS = {'three': 3}\nREADERS = {'three': 3}\n")
    (package / "of_others-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: of_others\nVersion: 1\n")
    (package / "of_others-1.dist-info/entry_points.txt").write_text("[anatomask]\nothers = of_others\n")
    monkeypatch.syspath_prepend(package)
    assert with_extensions("READERS", {"own": 0}) == {"own": 0, "one": 1, "two": 1, "three": 3}
    assert with_extensions("METHODS", {}) == {"three": 3}
    with pytest.raises(UserError, match="READERS has two, which there is already"):
        with_extensions("READERS", {"two": 0})
    (package / "of_others.py").write_text("import nothing_of_that_name\n")
    del sys.modules["of_others"]
    with pytest.raises(UserError, match=r"entry point others \(of_others\) cannot be imported: ModuleNotFoundError"):
        with_extensions("READERS", {})


def test_workers_load_what_this_process_has_loaded(tmp_path: Path) -> None:
    """Without the file, which another machine does not have."""
    path = tmp_path / "mine.py"
    path.write_text("class Thing:\n    pass\n")
    assert worker_setup() is None and plugin_digests() == {}
    thing = load_module(path, "--plugin").Thing()
    setup = cloudpickle.dumps(worker_setup())
    digests = plugin_digests()
    assert digests.keys() == {"plugin"}
    pickled = cloudpickle.dumps(thing)
    path.unlink()
    assert plugin_digests() == digests
    script = "import pickle, sys; setup, thing = sys.stdin.buffer.read().split(b'||||'); pickle.loads(setup)(); "
    script += "print(type(pickle.loads(thing)).__name__)"
    done = subprocess.run([sys.executable, "-c", script], input=setup + b"||||" + pickled, capture_output=True)
    assert done.stdout == b"Thing\n", done.stderr.decode()


def test_a_registry_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("METHODS = 5\n")
    load_module(path, "--plugin")
    with pytest.raises(UserError, match="METHODS must be a mapping of names, not int"):
        with_extensions("METHODS", {})


def test_plugins_are_found_while_another_thread_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Growing(dict[str, object]):
        """Modules to which one is added whenever one is looked at."""

        def items(self) -> Iterator[tuple[str, object]]:  # type: ignore[override]
            for item in super().items():
                self[f"imported{len(self)}"] = object()
                yield item

    (tmp_path / "mine.py").write_text("x = 1\n")
    load_module(tmp_path / "mine.py", "--plugin")
    digests = plugin_digests()
    monkeypatch.setattr("anatomask.plugins.sys", SimpleNamespace(modules=Growing(sys.modules)))
    assert plugin_digests() == digests and len(digests) == 1
    assert with_extensions("BACKBONES", {}) == {}
