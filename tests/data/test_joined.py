"""Several prepared data sets as one: cases are named apart, read from their own folders, and normalised alike."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anatomask.config import PretrainConfig
from anatomask.data.index import data_digest
from anatomask.data.joined import JoinedDataset, open_joined
from anatomask.data.samples import LoaderConfig
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.data.stream import SampleReader
from anatomask.errors import UserError
from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.stages.pretrain import build_job, plan
from anatomask.training.settings import OptimiserConfig, TrainingConfig

MakeDataset = Callable[..., PreparedDataset]


@pytest.fixture
def members(prepared: MakeDataset) -> list[PreparedDataset]:
    """Two data sets of a case each, of which the second has a label, and other intensities."""
    rng = np.random.default_rng(0)
    one = prepared(rng.integers(-1000, 300, (36, 34, 40)).astype(np.int16), root="one")
    label = np.zeros((40, 34, 36), np.uint8)
    label[9:20, 9:20, 9:20] = 1
    other = prepared(rng.integers(-500, 900, (40, 34, 36)).astype(np.int16), label=label, root="other")
    return [one, other]


def config(*folders: str, tmp_path: Path, **changes: object) -> PretrainConfig:
    settings = PretrainConfig(
        data=folders[0] if len(folders) == 1 else folders,
        runs=str(tmp_path / "runs"),
        splits=("train",),
        network=STUNetConfig(base=2),
        method=AnatoMaskConfig(decoder_width=16),
        loader=LoaderConfig(patch_size=(32, 32, 32)),
        optimiser=OptimiserConfig(warmup_epochs=0),
        training=TrainingConfig(epochs=1, batch_size=2),
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def test_every_case_is_read_from_its_own_folder(members: list[PreparedDataset]) -> None:
    joined = open_joined(tuple(member.storage for member in members))
    assert isinstance(joined, JoinedDataset)
    assert joined.splits == {"train": ("one/one", "other/one")}
    assert joined.shard_sizes() == {f"{Path(m.path).name}/one": m.shard_sizes()["one"] for m in members}
    for case, member in zip(("one/one", "other/one"), members, strict=True):
        assert joined.records[case] == replace(member.records["one"], case=case)
        box = (3, -2, 5), (16, 16, 16)
        for label in (False, True):
            for ours, theirs in zip(
                joined.read_crop(case, *box, label=label), member.read_crop("one", *box, label=label), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(
            joined.read_volume(case, label=False)[0], member.read_volume("one", label=False)[0]
        )
        assert joined.bytes_touched(case, *box, label=False) == member.bytes_touched("one", *box, label=False)
        assert joined.footer_bytes(case) == member.footer_bytes("one")
        assert joined.otsu_threshold(case, 0) == member.otsu_threshold("one", 0)
        np.testing.assert_array_equal(joined.normalisation(case), members[0].normalisation("one"))  # the first's
    rng = np.random.default_rng
    assert joined.foreground_voxel("other/one", rng(1)) == members[1].foreground_voxel("one", rng(1))
    assert joined.original_label("other/one").shape == (40, 34, 36)
    assert not np.array_equal(members[0].normalisation("one"), members[1].normalisation("one"))
    with pytest.raises(UserError, match=r"one \+ .*other has no case 'one'"):
        joined.read_crop("one", (0, 0, 0), (8, 8, 8), label=False)
    assert pickle.loads(pickle.dumps(joined)).records == joined.uncached().records == joined.records


def test_what_differs_is_named(members: list[PreparedDataset], prepared: MakeDataset) -> None:
    first, _ = members
    voxels = np.random.default_rng(0).integers(0, 100, (16, 16, 16)).astype(np.int16)
    two = prepared(voxels, voxels, root="two")
    plain = prepared(voxels.astype(np.float16), root="plain")
    for other, message in (
        (two, r"two has the channels channel0, channel1, .*one has channel0; prepare both alike"),
        (plain, r"plain has the normalisation zscore, .*one has ct"),
        (PreparedDataset(first.path, first.info, {}, {}, first.fingerprint), "twice; leave one out"),
    ):
        with pytest.raises(UserError, match=message):
            JoinedDataset([first, other])
    two.info = replace(first.info, spacing=(1.0, 2.0, 3.0))
    with pytest.raises(UserError, match=r"two has voxels of 1 x 2 x 3 mm, .*one has 2 x 2 x 3 mm"):
        JoinedDataset([first, two])


def test_folders_of_one_name_are_numbered(prepared: MakeDataset, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 100, (16, 16, 16)).astype(np.int16)
    folders = [prepared(voxels, root=f"{place}/shards") for place in "ab"]
    assert sorted(JoinedDataset(folders).records) == ["shards-2/one", "shards/one"]


def test_a_pretraining_on_several_folders_and_on_one(members: list[PreparedDataset], tmp_path: Path) -> None:
    one, other = (member.path for member in members)
    single = build_job(config(one, tmp_path=tmp_path))
    assert single.inputs == {"data": data_digest(Storage(one), splits=True)} and single.settings["data"] == one
    assert single.run == build_job(config(one, tmp_path=tmp_path, data=(one,))).run
    assert single.run.name.startswith("pretrain-one-") and single.sequence.cases == ("one",)
    both = build_job(config(one, other, tmp_path=tmp_path))
    assert both.run.name.startswith("pretrain-one+other-") and both.sequence.cases == ("one/one", "other/one")
    swapped = build_job(config(other, one, tmp_path=tmp_path))
    assert len({single.inputs["data"], both.inputs["data"], swapped.inputs["data"]}) == 3
    reader = SampleReader(both.data, both.sequence, both.draw)  # as the workers do, from addresses
    batch = reader({"sample": np.arange(4)})
    assert batch["image"].shape == (4, 1, 32, 32, 32)
    assert np.ptp(batch["normalisation"], 0).max() == 0
    header = both.build_task.args[3]  # type: ignore[attr-defined]
    assert (header["data"], header["normalised_by"]) == ([one, other], members[0].name)
    assert header["fingerprint"] == members[0].fingerprint.to_dict()
    assert header["dataset"] == " + ".join(member.name for member in members)
    assert "secret" not in repr(both)
    rows = dict(plan(config(one, other, tmp_path=tmp_path)))
    assert rows["cases"] == "2 (train)" and rows["of"] == f"{one}, {other}"


def test_settings_without_a_folder_or_with_one_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data must name at least one prepared folder"):
        PretrainConfig(data=())
    with pytest.raises(ValueError, match="data names x twice"):
        PretrainConfig(data=("x", "x"))
