from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from anatomask.data.storage import Storage
from anatomask.errors import UserError


def test_writes_reads_and_lists(tmp_path: Path) -> None:
    storage = pickle.loads(pickle.dumps(Storage(tmp_path / "new")))
    storage.write("a/x.txt", b"1")
    storage.write("a/x.txt", b"22")
    storage.write("a/y.gz", b"not compressed")
    storage.write_json("z.json", {"k": [1, None]})
    assert storage.read("a/x.txt") == b"22"
    assert storage.read("a/y.gz") == b"not compressed"
    assert storage.read_json("z.json") == {"k": [1, None]}
    assert storage.names("a", ".txt") == ["x"]
    assert storage.names("nowhere", ".txt") == []
    assert storage.exists("a/x.txt")
    storage.clear("a")
    storage.clear("a")
    assert not storage.exists("a/x.txt")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path)
    storage.write("a.txt", b"old")

    class Full:
        def __getattr__(self, name: str) -> object:
            return getattr(pafs.LocalFileSystem(), name)

        def move(self, source: str, target: str) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "filesystem", Full())
    with pytest.raises(OSError, match="No space") as caught:
        storage.write("a.txt", b"new")
    assert caught.value.filename == str(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"cut')
    with pytest.raises(UserError, match=r"a\.json is damaged.*; do this$"):
        Storage(tmp_path).read_json("a.json", "do this")
