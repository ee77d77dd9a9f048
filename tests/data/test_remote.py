"""Shards on object storage: a real S3 protocol server on loopback."""

from __future__ import annotations

import dataclasses
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs as pafs

from anatomask.data.datasets import read_dataset
from anatomask.data.preparation import (
    claim,
    complete,
    dataset_info,
    fingerprint_cases,
    finished_cases,
    histograms_of,
    prepare_and_write,
    records_of,
    settings_of,
    unfinished_dataset,
)
from anatomask.data.settings import Codec
from anatomask.data.shards import PreparedDataset
from anatomask.data.splits import SplitConfig, dataset_splits, keep
from anatomask.data.storage import Storage
from anatomask.errors import UserError


def objects(address: str) -> dict[str, bytes]:
    """All objects below an address, by the path below it."""
    filesystem, base = pafs.FileSystem.from_uri(address)
    found = filesystem.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
    files = [info.path for info in found if info.type is pafs.FileType.File]
    return {path.removeprefix(f"{base}/"): filesystem.open_input_file(path).read() for path in files}


def test_writes_reads_lists_and_clears(s3: Any) -> None:
    storage = pickle.loads(pickle.dumps(Storage(s3.address("folder"))))
    assert storage.names("a", ".txt") == [] and not storage.exists("a")
    storage.write("a/x.txt", b"1")
    storage.write("a/x.txt", b"22")
    storage.write("a/y.gz", b"not compressed")
    storage.write_json("z.json", {"k": [1, None]})
    assert objects(s3.address("folder")) == {
        "a/x.txt": b"22", "a/y.gz": b"not compressed", "z.json": b'{\n "k": [\n  1,\n  null\n ]\n}\n'
    }  # fmt: skip
    assert storage.read("a/x.txt") == b"22"
    assert storage.read_json("z.json") == {"k": [1, None]}
    assert storage.sizes("a", ".txt") == {"x": 2}
    storage.clear_unfinished((".", "a", "nowhere"))
    storage.clear("a")
    storage.clear("a")
    assert not storage.exists("a/x.txt")
    with pytest.raises(FileNotFoundError):
        storage.read("a/x.txt")


def test_an_upload_that_is_killed_leaves_nothing(s3: Any) -> None:
    address = s3.address("folder")
    program = f"""
import os, signal
from anatomask.data.storage import Storage
storage = Storage({address!r})
class Cut:
    def __getattr__(self, name):
        return getattr(storage_filesystem, name)
    def open_output_stream(self, *args, **options):
        stream = storage_filesystem.open_output_stream(*args, **options)
        class Stream:
            def __enter__(self): return self
            def __exit__(self, *error): os.kill(os.getpid(), signal.SIGKILL)
            def write(self, data): stream.write(data)
        return Stream()
storage_filesystem, storage.filesystem = storage.filesystem, Cut()
storage.write("cases/a.parquet", bytes(30_000_000))
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert any("?uploads" in line for line in s3.requests)  # it was under way
    assert finished_cases(address) == set()
    assert objects(address) == {}
    Storage(address).write("cases/a.parquet", b"whole")
    assert objects(address) == {"cases/a.parquet": b"whole"}


def test_faults_are_messages_without_credentials(s3: Any) -> None:
    for act in (
        lambda: Storage(s3.address("folder", "nowhere")).write("a.txt", b"1"),
        lambda: Storage(s3.address("folder").replace(s3.endpoint, "127.0.0.1:1")).names("a", ".txt"),
    ):
        with pytest.raises(UserError, match=r"s3://(nowhere|bucket)/folder/a.*Check the address") as caught:
            act()
        assert "hush" not in str(caught.value) and "AKIA" not in str(caught.value)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_real_scans_are_the_same_there_as_in_a_folder(codec: Codec, s3: Any, real_data: Path, tmp_path: Path) -> None:
    raw = read_dataset(real_data / "openkbp")
    raw = dataclasses.replace(raw, cases=(raw.cases[0], raw.cases[-1]), splits=None)
    info = dataset_info(raw, "openkbp", (3.0, 3.0, 3.0), 32, codec)
    splits = dataset_splits(raw, SplitConfig())
    datasets = []
    for root in (str(tmp_path / "local"), s3.address("remote")):
        claim(root, settings_of("source", raw, info, SplitConfig()), overwrite=False)
        outcomes = [prepare_and_write(root, info, case) for case in raw.cases]
        assert [outcome.reason for outcome in outcomes] == ["", ""]
        records = records_of(root, raw)
        bare = unfinished_dataset(root, info, records, splits)
        histograms = [histograms_of(bare, case) for case in fingerprint_cases(bare)]
        complete(root, info, list(records.values()), keep(splits, set(records)), histograms, outcomes)
        datasets.append(PreparedDataset.open(root))
    local, remote = datasets
    written = {str(path.relative_to(local.path)): path.read_bytes() for path in Path(local.path).rglob("*.*")}
    assert objects(s3.address("remote")) == written

    assert remote.records == local.records and remote.shard_sizes() == local.shard_sizes()
    assert remote.shown == "s3://bucket/remote"
    case = raw.cases[0].case
    crop = case, (5, -9, 11), (64, 64, 64)
    s3.requests.clear()
    for here, there in zip(local.read_crop(*crop, label=True), remote.read_crop(*crop, label=True), strict=True):
        np.testing.assert_array_equal(here, there)
    reads = [line for line in s3.requests if "GET" in line]
    assert len(reads) < 8, reads  # the bricks of a crop are asked for together
    rngs = [np.random.default_rng(0) for _ in datasets]
    assert local.foreground_voxel(case, rngs[0]) == remote.foreground_voxel(case, rngs[1])
    assert (
        np.asanyarray(remote.original_label(case).dataobj) == np.asanyarray(local.original_label(case).dataobj)
    ).all()

    claim(remote.path, settings_of("source", raw, info, SplitConfig()), overwrite=True)
    assert set(objects(s3.address("remote"))) == {"prepare.json"}
    with pytest.raises(UserError, match=r"s3://bucket/remote/dataset\.json is missing.*--out s3://bucket/remote`"):
        PreparedDataset.open(remote.path)
