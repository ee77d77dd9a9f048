from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anatomask.data.bricks import locations, slabs, touched, unpack
from anatomask.data.index import write_index
from anatomask.data.records import CaseRecord
from anatomask.data.settings import Codec
from anatomask.data.shards import PreparedDataset, case_path, original_path, read_record
from anatomask.data.storage import Storage
from anatomask.errors import UserError

Make = Callable[..., PreparedDataset]
RNG = np.random.default_rng(0)
SHAPE = (37, 20, 33)
IMAGE = RNG.integers(-1000, 1000, SHAPE).astype(np.int16)
LABEL = (RNG.integers(0, 4, SHAPE) * (RNG.random(SHAPE) > 0.9)).astype(np.uint8)


def expected_crop(volume: np.ndarray, origin: tuple[int, ...], size: tuple[int, ...], fill: float) -> np.ndarray:
    """The crop voxel by voxel, by indexing."""
    index = np.ix_(*(np.arange(o, o + s) for o, s in zip(origin, size, strict=True)))
    inside = np.ones(size, bool)
    for axis, positions in enumerate(index):
        inside &= (positions >= 0) & (positions < volume.shape[axis])
    clipped = tuple(positions.clip(0, n - 1) for positions, n in zip(index, volume.shape, strict=True))
    return np.where(inside, volume[clipped], fill)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(*[st.integers(-45, 45)] * 3), st.tuples(*[st.integers(1, 50)] * 3), st.sampled_from([8, 16, 64]))
def test_a_crop_is_the_volume_there_and_padding_elsewhere(
    prepared: Make, origin: tuple[int, int, int], size: tuple[int, int, int], brick: int
) -> None:
    dataset = prepared(IMAGE, label=LABEL, brick=brick, root=f"bricks{brick}")
    image, label = dataset.read_crop("one", origin, size, label=True)
    assert image.dtype == np.int16
    np.testing.assert_array_equal(image[0], expected_crop(IMAGE, origin, size, IMAGE.min()))
    np.testing.assert_array_equal(label, expected_crop(LABEL, origin, size, 0))
    image, label = dataset.read_crop("one", origin, size, label=True, pad=False)
    np.testing.assert_array_equal(image[0], expected_crop(IMAGE, origin, size, 0))
    np.testing.assert_array_equal(label, expected_crop(LABEL, origin, size, 0))


def test_volumes_of_two_types(prepared: Make) -> None:
    pet = RNG.random(SHAPE).astype(np.float16)
    dataset = prepared(IMAGE, pet)
    image, label = dataset.read_volume("one", label=True)
    assert image.dtype == np.float32
    assert label is None
    np.testing.assert_array_equal(image, np.stack([IMAGE.astype(np.float32), pet.astype(np.float32)]))


def test_only_the_bricks_and_columns_that_are_needed_are_read(prepared: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prepared(IMAGE, label=LABEL)
    where = locations(pq.read_metadata(f"{dataset.path}/cases/one.parquet"))
    read = []
    original = Storage.read_ranges

    def spy(self: Storage, path: str, ranges: list[tuple[int, int]]) -> list[pa.Buffer]:
        read.append([tuple(each) for each in ranges])
        return original(self, path, ranges)

    monkeypatch.setattr(Storage, "read_ranges", spy)
    dataset.read_crop("one", (0, 0, 0), (16, 16, 16), label=False)
    dataset.read_crop("one", (15, 0, 0), (2, 16, 16), label=True)
    dataset.read_crop("one", (100, 0, 0), (2, 16, 16), label=True)
    # 3 x 2 x 3 bricks of 16 voxels, the last axis fastest
    names = [[("image_0", 0)], [("image_0", 0), ("image_0", 6), ("label", 0), ("label", 6)]]
    assert read == [[tuple(where[name][index]) for name, index in each] for each in names]
    assert dataset.bytes_touched("one", (15, 0, 0), (2, 16, 16), label=True) == sum(length for _, length in read[1])


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
def test_every_codec_gives_the_voxels_back_and_any_reader_of_parquet_reads_them(prepared: Make, codec: Codec) -> None:
    dataset = prepared(IMAGE, label=LABEL, codec=codec)
    image, label = dataset.read_volume("one", label=True)
    np.testing.assert_array_equal(image[0], IMAGE)
    np.testing.assert_array_equal(label, LABEL)
    table = pq.read_table(f"{dataset.path}/cases/one.parquet")
    parts = slabs(SHAPE, dataset.info.brick)
    for part, packed in zip(parts, table["image_0"].to_pylist(), strict=True):
        np.testing.assert_array_equal(unpack(packed, codec, "int16", part), IMAGE[part])


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    brick=st.integers(8, 24),
    origin=st.tuples(*[st.integers(-30, 50)] * 3),
    size=st.tuples(*[st.integers(1, 40)] * 3),
)
def test_touched_bricks_are_those_that_overlap(
    shape: tuple[int, int, int], brick: int, origin: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    expected = []
    for index, slab in enumerate(slabs(shape, brick)):
        common = [
            sorted(set(range(p.start, p.stop)) & set(range(o, o + s)))
            for p, o, s in zip(slab, origin, size, strict=True)
        ]
        if all(common):
            here = tuple(slice(axis[0] - o, axis[-1] + 1 - o) for axis, o in zip(common, origin, strict=True))
            there = tuple(
                slice(axis[0] - p.start, axis[-1] + 1 - p.start) for axis, p in zip(common, slab, strict=True)
            )
            expected.append((index, slab, here, there))
    assert touched(shape, brick, origin, size) == expected


def test_a_row_group_is_a_brick(prepared: Make) -> None:
    dataset = prepared(IMAGE, label=LABEL)
    assert pq.ParquetFile(f"{dataset.path}/cases/one.parquet").metadata.num_row_groups == 3 * 2 * 3


def test_foreground_voxels_are_uniform_over_classes_then_voxels(prepared: Make) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[0, 0, :2] = 7  # two voxels against the ten of class 9, some in another brick
    label[30, 10:20, 30] = 9
    dataset = prepared(IMAGE, label=label)
    rng = np.random.default_rng(1)
    drawn = Counter(dataset.foreground_voxel("one", rng) for _ in range(600))
    assert set(drawn) == set(map(tuple, np.argwhere(label).tolist()))
    classes = Counter(int(label[voxel]) for voxel in drawn.elements())
    assert classes[7] == pytest.approx(300, abs=70)
    assert max(count for voxel, count in drawn.items() if label[voxel] == 9) < 60


def test_nothing_labelled_has_no_foreground(prepared: Make) -> None:
    rng = np.random.default_rng(0)
    assert prepared(IMAGE).foreground_voxel("one", rng) is None
    assert prepared(IMAGE, label=np.zeros(SHAPE, np.uint8), root="empty").foreground_voxel("one", rng) is None


def test_normalisation_of_ct_and_of_anything_else(prepared: Make) -> None:
    pet = np.where(RNG.random(SHAPE) > 0.5, RNG.random(SHAPE), 0).astype(np.float16)
    dataset = prepared(IMAGE, pet, label=LABEL)
    ct, other = dataset.normalisation("one")
    foreground = IMAGE[LABEL > 0]
    expected = [np.percentile(foreground, 0.5), np.percentile(foreground, 99.5), foreground.mean(), foreground.std()]
    np.testing.assert_allclose(ct, expected, rtol=1e-5)
    inside = pet[pet != 0].astype(np.float64)
    np.testing.assert_allclose(other, [-np.inf, np.inf, inside.mean(), inside.std()], rtol=1e-5)


def test_a_constant_image_is_not_divided_by_zero(prepared: Make) -> None:
    dataset = prepared(np.ones((4, 4, 4), np.float16))
    assert dataset.normalisation("one")[0, 3] > 0


def test_records_round_trip_and_the_data_set_pickles(prepared: Make) -> None:
    dataset = prepared(IMAGE, label=LABEL)
    record = dataset.records["one"]
    assert CaseRecord.from_json(record.to_json()) == record == read_record(dataset.path, "one")
    counts = {c: sum(bricks.values()) for c, bricks in record.class_bricks.items()}
    assert counts == {c: np.count_nonzero(c == LABEL) for c in (1, 2, 3)}
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again.read_volume("one", label=False)[0][0], IMAGE)
    assert again.class_names == {1: "class1", 2: "class2", 3: "class3"}
    assert again.nsd_tolerance == {1: 3.0, 2: 3.0, 3: 3.0}
    assert again.splits == {"train": ("one",)}


def test_the_label_on_the_source_grid(prepared: Make) -> None:
    label = prepared(IMAGE, label=LABEL).original_label("one")
    np.testing.assert_array_equal(np.asanyarray(label.dataobj), LABEL)
    np.testing.assert_array_equal(label.affine, np.diag([2.0, 2.0, 3.0, 1.0]))
    with pytest.raises(UserError, match="no label"):
        prepared(IMAGE, root="bare").original_label("one")


def test_what_is_missing_or_damaged_is_named(prepared: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/dataset\.json is missing.*anatomask prepare"):
        PreparedDataset.open(str(tmp_path / "nowhere"))
    dataset = prepared(IMAGE)
    with pytest.raises(UserError, match="no case 'two'"):
        dataset.read_volume("two", label=False)
    (tmp_path / "prepared" / "cases" / "one.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match=r"one\.parquet is damaged"):
        read_record(dataset.path, "one")
    (tmp_path / "prepared" / "dataset.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="another format"):
        PreparedDataset.open(dataset.path)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("dataset.json", '"spacing"', '"spicing"'),
        ("dataset.json", '"class_names": {', '"class_names": [], "x": {'),
        ("dataset.json", "2.0", '"wide"'),
        ("cases.jsonl", '"shape"', '"form"'),
        ("cases.jsonl", '"class_bricks":{', '"class_bricks":7,"x":{'),
        ("cases.jsonl", '{"case"', '["case"'),
        ("fingerprint.json", '"channels"', '"chunnels"'),
        ("fingerprint.json", '"mean"', '"median"'),
        ("splits.json", '"one"', '"two"'),
        ("splits.json", '"one"', "1, 2"),
        ("splits.json", "{", "[]"),
    ],
)
def test_a_damaged_index_is_named(prepared: Make, name: str, old: str, new: str) -> None:
    path = Path(prepared(IMAGE, label=LABEL).path) / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"{name} is damaged .*anatomask prepare --overwrite"):
        PreparedDataset.open(str(path.parent))


@pytest.mark.parametrize("name", ["../../evil", "..", "", "a/b", "/etc/passwd", "a\n"])
def test_a_case_cannot_lead_out_of_the_folder(name: str, prepared: Make) -> None:
    path = Path(prepared(IMAGE, label=LABEL).path)
    for file in ("cases.jsonl", "splits.json"):
        (path / file).write_text((path / file).read_text().replace('"one"', json.dumps(name)))
    with pytest.raises(UserError, match=r"cases\.jsonl is damaged .*is not the name of a file"):
        PreparedDataset.open(str(path))
    for make in (case_path, original_path):
        with pytest.raises(ValueError, match="is not the name of a file"):
            make(name)


@pytest.mark.parametrize("name", ["dataset.json", "cases.jsonl", "fingerprint.json", "splits.json"])
def test_an_index_that_is_nested_too_deeply_is_named(name: str, prepared: Make) -> None:
    path = Path(prepared(IMAGE).path)
    (path / name).write_text("[" * 100_000)
    with pytest.raises(UserError, match=f"{name} is damaged .*nested too deeply"):
        PreparedDataset.open(str(path))


def test_bytes_that_are_no_text_are_named(prepared: Make) -> None:
    path = Path(prepared(IMAGE).path)
    for name in ("dataset.json", "cases.jsonl", "fingerprint.json", "splits.json"):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(b"\xff\xfe\x00" + whole)
        with pytest.raises(UserError, match=f"{name} is damaged"):
            PreparedDataset.open(str(path))
        (path / name).write_bytes(whole)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _scramble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [Path.unlink, _cut, _scramble])
def test_a_shard_that_is_missing_or_damaged_is_named(prepared: Make, spoil: Callable[[Path], None]) -> None:
    dataset = prepared(IMAGE, label=LABEL)
    spoil(Path(dataset.path) / "cases" / "one.parquet")
    with pytest.raises(UserError, match=r"cases/one\.parquet is damaged.*anatomask prepare"):
        dataset.read_volume("one", label=True)


@pytest.mark.parametrize("spoil", [Path.unlink, _cut, _scramble, lambda path: path.write_bytes(b"no gzip")])
def test_an_original_that_is_missing_or_damaged_is_named(prepared: Make, spoil: Callable[[Path], None]) -> None:
    dataset = prepared(IMAGE, label=LABEL)
    spoil(Path(dataset.path) / "originals" / "one.nii.gz")
    with pytest.raises(UserError, match=r"originals/one\.nii\.gz, the ground truth of case one, cannot be read"):
        dataset.original_label("one")


def test_normalisation_by_unit_and_none_at_all(prepared: Make) -> None:
    suv = np.linspace(0, 20, 512).reshape(8, 8, 8).astype(np.float16)
    dataset = prepared(suv, suv, schemes=("quantitative", "none"))
    unit, none = dataset.normalisation("one")
    body = suv[suv != 0].astype(np.float64)
    assert unit == pytest.approx([*np.percentile(body, [0.5, 99.5]), body.mean(), body.std()], rel=1e-3)
    assert none.tolist() == [-np.inf, np.inf, 0.0, 1.0]


def test_an_index_is_the_old_one_none_or_the_new_one(prepared: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prepared(np.arange(27, dtype=np.int16).reshape(3, 3, 3))
    splits = {"train": [], "test": ["one"]}

    def write(fails_at: int) -> None:
        left = iter(range(fails_at))
        whole = Storage.write

        def cut(self: Storage, path: str, data: bytes) -> None:
            if next(left, None) is None:
                raise OSError(5, "cut off")
            whole(self, path, data)

        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write", cut)
            write_index(dataset.path, dataset.info, dataset.records.values(), splits, dataset.fingerprint)

    for fails_at in range(5):
        with pytest.raises(OSError, match="cut off"):
            write(fails_at)
        with pytest.raises(UserError, match=r"dataset\.json is missing"):
            PreparedDataset.open(dataset.path)
    write(5)
    assert PreparedDataset.open(dataset.path).splits == {"train": (), "test": ("one",)}
    write(0)  # nothing has changed, so nothing is written
    assert PreparedDataset.open(dataset.path).splits == {"train": (), "test": ("one",)}
