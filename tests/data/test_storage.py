from __future__ import annotations

import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 70_000)), max_size=12))
def test_ranges_come_in_the_order_asked_for_mapped_or_not(ranges: list[tuple[int, int]]) -> None:
    content = np.random.default_rng(0).bytes(400_000)
    with TemporaryDirectory() as folder:
        local = Storage(folder)
        local.write("file", content)
        remote = Storage(folder)
        remote.filesystem = pafs.SubTreeFileSystem("/", pafs.LocalFileSystem())  # read as object storage is
        for storage in (local, remote):
            found = storage.read_ranges("file", ranges)
            assert [bytes(part) for part in found] == [content[start : start + n] for start, n in ranges]


@pytest.mark.parametrize("mapped", [True, False])
def test_a_range_beyond_the_end_is_named(tmp_path: Path, mapped: bool) -> None:
    storage = Storage(tmp_path)
    storage.write("file", b"short")
    if not mapped:
        storage.filesystem = pafs.SubTreeFileSystem("/", pafs.LocalFileSystem())
    with pytest.raises(OSError, match=r"file.*cut off|out of|bounds|File"):
        storage.read_ranges("file", [(3, 10)])
