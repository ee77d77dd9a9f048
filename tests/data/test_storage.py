from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import fs as pafs

from anatomask.data.addresses import address_below, folder_name, public_address
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
@example([(0, 0), (1, 0)])
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


def test_what_a_killed_write_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write("cases/a.parquet", b"1")
    for name in (".a.parquet.0123abcd.tmp", ".mine.tmp", "b.0123abcd.tmp"):
        (tmp_path / "cases" / name).write_text("x")
    storage.clear_unfinished((".", "cases", "nowhere"))
    assert {path.name for path in (tmp_path / "cases").iterdir()} == {"a.parquet", ".mine.tmp", "b.0123abcd.tmp"}


def test_own_files_are_cleared_and_others_are_told(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for name in ("cases/a.parquet", "cases/.b.parquet.0123abcd.tmp", "cases/mine.txt", "cases/deep/c.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert storage.folders("cases") == ["deep"]
    assert storage.foreign("cases", r".+\.parquet") == ["cases/deep", "cases/mine.txt"]
    assert storage.clear_files("cases", r".+\.parquet") == ["cases/deep", "cases/mine.txt"]
    assert {path.name for path in (tmp_path / "cases").rglob("*")} == {"deep", "c.parquet", "mine.txt"}
    (tmp_path / "cases" / "mine.txt").unlink()
    assert storage.clear_files("cases/deep", r".+\.parquet") == []
    assert not (tmp_path / "cases" / "deep").exists()
    assert storage.clear_files("nowhere", ".+") == storage.folders("nowhere") == []


def test_a_folder_is_found_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "Größe").mkdir()
    script = (
        "from anatomask.data.storage import Storage; Storage('x').write('a', b'1'); print(Storage('.').exists('x/a'))"
    )
    environment = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path / "Größe", env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert (tmp_path / "Größe" / "x" / "a").read_bytes() == b"1"


def test_a_folder_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not UTF-8: rename it"):
        Storage(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))


@pytest.mark.parametrize("path", ["../x", "cases/../../x", "/etc/passwd", ".."])
def test_no_path_leads_out_of_the_folder(path: str, tmp_path: Path) -> None:
    storage = Storage(tmp_path / "in")
    for use in (storage.read, storage.exists, storage.clear, lambda path: storage.write(path, b"x")):
        with pytest.raises(UserError, match="leads out of this folder"):
            use(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("shards/a@b", "shards/a@b"),
        ("/data/key:secret@x", "/data/key:secret@x"),
        ("file:///data/a@b", "file:///data/a@b"),
        ("s3://bucket/a@b/c?region=eu-west-1", "s3://bucket/a@b/c?region=eu-west-1"),
        (
            "s3://AKIA:se%2Fcret@bucket/ts?scheme=http&endpoint_override=127.0.0.1:9000",
            "s3://bucket/ts?scheme=http&endpoint_override=127.0.0.1:9000",
        ),
        ("s3://bucket/ts?secret_key=hush&region=x&session_token=hush", "s3://bucket/ts?region=x"),
        ("abfs://box:hush@account.dfs.core.windows.net/ts?client_secret=hush",
         "abfs://box@account.dfs.core.windows.net/ts"),
        ("s3://k:[hush@bucket/ts", "s3://***"),
        ("encoder:s3://AKIA:hush@bucket/runs/x?region=x", "encoder:s3://bucket/runs/x?region=x"),
    ],
)  # fmt: skip
def test_credentials_are_left_out_of_what_is_shown(address: str, shown: str) -> None:
    assert public_address(address) == shown
    assert public_address(shown) == shown


def test_the_name_of_a_folder_or_an_address() -> None:
    assert address_below("s3://k:s@bucket/runs/?region=x", "a") == "s3://k:s@bucket/runs/a?region=x"
    assert folder_name("/data/shards/") == folder_name("s3://k:s@bucket/shards?scheme=http") == "shards"


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIA:hush/hush@bucket/ts",  # the slash is not encoded
        "s3://AKIA:hush@bucket/ts?scheme=http&nonsense=1",
        "s3://AKIA:[hush@bucket/ts",
        "ftp://AKIA:hush@host/ts",
    ],
)
def test_an_address_that_cannot_be_opened_is_refused_without_its_credentials(address: str) -> None:
    with pytest.raises(UserError, match="cannot be opened") as caught:
        Storage(address)
    assert "hush" not in str(caught.value) and "AKIA" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_an_option_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match=r"s3://bucket/ts\?nonsense=1 cannot be opened .*nonsense"):
        Storage("s3://bucket/ts?nonsense=1")
