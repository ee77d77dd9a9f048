"""Mapped files show what is on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from anatomask.data import mapping
from anatomask.data.mapping import MappedFiles


def test_a_file_is_mapped_once_and_anew_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"first")
    files = MappedFiles()
    first = files.read(str(path))
    assert bytes(first) == b"first"
    assert files.read(str(path)) is first
    new = tmp_path / "new"
    new.write_bytes(b"other")
    new.replace(path)
    assert bytes(files.read(str(path))) == b"other"
    assert bytes(first) == b"first"
    path.write_bytes(b"longer than before")
    assert bytes(files.read(str(path))) == b"longer than before"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        files.read(str(path))


def test_few_files_stay_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "MAPPED_FILES", 2)
    files, paths = MappedFiles(), [tmp_path / str(k) for k in range(3)]
    for path in paths:
        path.write_bytes(path.name.encode())
        assert bytes(files.read(str(path))) == path.name.encode()
    mapped = Path("/proc/self/maps").read_text()
    assert [str(path) in mapped for path in paths] == [False, True, True]
    opened = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert not {str(path) for path in paths} & set(opened)
