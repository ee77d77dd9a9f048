"""Bricks of a case's file: a byte that changed in any of them is noticed when it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anatomask.data import shards
from anatomask.data.bricks import BRICKS_KEY, LENGTHS_KEY, brick_digests, locations
from anatomask.data.settings import Codec
from anatomask.data.shards import METADATA_KEY, PreparedDataset, read_record
from anatomask.data.storage import Storage
from anatomask.errors import UserError

Make = Callable[..., PreparedDataset]
RNG = np.random.default_rng(0)
SHAPE = (37, 20, 33)
IMAGE = RNG.integers(-1000, 1000, SHAPE).astype(np.int16)
LABEL = (RNG.integers(0, 4, SHAPE) * (RNG.random(SHAPE) > 0.9)).astype(np.uint8)


def shard(dataset: PreparedDataset) -> Path:
    return Path(dataset.path) / "cases" / "one.parquet"


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), codec=st.sampled_from(["none", "lz4", "zstd"]), column=st.sampled_from(["image_0", "label"]))
def test_a_flipped_bit_of_a_brick_is_named(prepared: Make, data: Any, codec: Codec, column: str) -> None:
    dataset = prepared(IMAGE, label=LABEL, codec=codec, root=codec)
    where = locations(pq.read_metadata(shard(dataset)))[column]
    brick = data.draw(st.integers(0, len(where) - 1))
    start, length = where[brick].tolist()
    flip(shard(dataset), start + data.draw(st.integers(4, length - 1)), data.draw(st.integers(0, 7)))
    expected = rf"cases/one\.parquet is damaged: brick {brick} of {column} does not match its checksum; delete it and"
    with pytest.raises(UserError, match=expected):
        dataset.read_volume("one", label=True)
    if column == "label":  # pretraining reads no labels, and so none that is damaged
        np.testing.assert_array_equal(dataset.read_volume("one", label=False)[0][0], IMAGE)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_changes_no_voxel_and_no_record(prepared: Make, place: int, bit: int) -> None:
    dataset = prepared(IMAGE, label=LABEL, root="anywhere")
    record = dataset.records["one"]
    flip(shard(dataset), place % shard(dataset).stat().st_size, bit)
    try:
        image, label = dataset.read_volume("one", label=True)
    except UserError as error:
        assert "one.parquet is damaged" in str(error)
    else:
        np.testing.assert_array_equal(image[0], IMAGE)
        np.testing.assert_array_equal(label, LABEL)
    try:
        assert read_record(dataset.path, "one") == record
    except UserError as error:
        assert "one.parquet is damaged" in str(error)


def test_a_local_brick_is_checked_once_and_a_remote_one_at_every_reading(
    prepared: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = prepared(IMAGE, label=LABEL)
    summed: list[int] = []
    monkeypatch.setattr(shards, "LOCATED_CASES", 1)  # forgetting where the bricks lie forgets no check
    real = shards.xxh3_64_intdigest

    def sum_up(value: bytes) -> int:
        summed.append(len(value))
        return real(value)

    monkeypatch.setattr(shards, "xxh3_64_intdigest", sum_up)
    dataset.read_crop("one", (0, 0, 0), (20, 16, 16), label=False)  # 2 of 3 x 2 x 3 bricks
    assert len(summed) == 2
    dataset.read_crop("one", (0, 0, 0), (20, 20, 16), label=False)
    assert len(summed) == 4
    dataset._where.clear()
    dataset.read_volume("one", label=True)
    assert len(summed) == 18 + 18
    dataset.read_volume("one", label=True)
    assert len(summed) == 36
    monkeypatch.setattr(Storage, "local", property(lambda self: False))
    for reading in (1, 2):
        PreparedDataset.open(dataset.path).read_volume("one", label=False)
        assert len(summed) == 36 + 18 * reading


def test_a_file_of_an_older_version_is_read_unchecked(prepared: Make) -> None:
    dataset = prepared(IMAGE, label=LABEL)
    record = dataset.records["one"]
    table = pq.read_table(shard(dataset))
    lengths = json.loads(table.schema.metadata[BRICKS_KEY])["lengths"]
    table = table.replace_schema_metadata(
        {METADATA_KEY: record.to_json().encode(), LENGTHS_KEY: json.dumps(lengths).encode()}
    )
    pq.write_table(
        table, shard(dataset), row_group_size=1, compression="none", use_dictionary=False, write_statistics=False
    )
    assert brick_digests(pq.read_metadata(shard(dataset))) is None
    image, label = dataset.read_volume("one", label=True)
    np.testing.assert_array_equal(image[0], IMAGE)
    np.testing.assert_array_equal(label, LABEL)
    assert read_record(dataset.path, "one") == record
