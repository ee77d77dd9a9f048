from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from anatomask.data.datasets import read_dataset
from anatomask.data.datasets.base import RawDataset
from anatomask.data.index import FORMAT, FORMAT_WITHOUT_DIGESTS
from anatomask.data.normalisation import normalise
from anatomask.data.preparation import (
    UNRECORDED,
    Outcome,
    choose_schemes,
    claim,
    complete,
    dataset_info,
    fingerprint_cases,
    finished_cases,
    histograms_of,
    kept_splits,
    prepare_and_write,
    records_of,
    settings_of,
    unfinished_dataset,
)
from anatomask.data.records import DatasetInfo
from anatomask.data.resampling import resample_label
from anatomask.data.shards import PreparedDataset
from anatomask.data.splits import SplitConfig, dataset_splits, keep
from anatomask.data.storage import Storage
from anatomask.errors import Note, UserError


def prepare(root: Path, raw: RawDataset, info: DatasetInfo) -> tuple[PreparedDataset, list[Outcome]]:
    """What the pipeline does, one case after the other."""
    out = str(root)
    claim(out, settings_of("source", raw, info, SplitConfig()), overwrite=False)
    outcomes = [prepare_and_write(out, info, case) for case in raw.cases]
    splits = dataset_splits(raw, SplitConfig())
    records = records_of(out, raw)
    bare = unfinished_dataset(out, info, records, splits)
    histograms = [histograms_of(bare, case) for case in fingerprint_cases(bare)]
    complete(out, info, list(records.values()), keep(splits, set(records)), histograms, outcomes)
    return PreparedDataset.open(out), outcomes


def test_a_broken_case_is_listed_and_the_others_go_through(nnunet_source: Path, tmp_path: Path) -> None:
    broken = nnunet_source / "imagesTr" / "b_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:500])
    raw = read_dataset(nnunet_source)
    dataset, outcomes = prepare(tmp_path / "out", raw, dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none"))
    assert {outcome.case: bool(outcome.reason) for outcome in outcomes} == {
        "a": False, "b": True, "c": False, "d": False, "u": False
    }  # fmt: skip
    assert sorted(dataset.records) == ["a", "c", "d", "u"]
    assert sorted(case for cases in dataset.splits.values() for case in cases) == ["a", "c", "d", "u"]
    assert dataset.splits["unlabeled"] == ("u",)
    (skipped,) = Storage(tmp_path / "out").read_json("skipped.json")
    assert skipped["case"] == "b"
    assert "b_0000.nii.gz is damaged" in skipped["reason"]


def test_the_fingerprint_is_of_the_training_foreground(nnunet_source: Path, tmp_path: Path) -> None:
    raw = read_dataset(nnunet_source)
    dataset, _ = prepare(tmp_path / "out", raw, dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none"))
    voxels = []
    for case in dataset.splits["train"]:
        image = nib.Nifti1Image.from_filename(nnunet_source / "imagesTr" / f"{case}_0000.nii.gz").get_fdata()
        label = nib.Nifti1Image.from_filename(nnunet_source / "labelsTr" / f"{case}.nii.gz").get_fdata()
        voxels.append(image[label > 0])
    foreground = np.concatenate(voxels)
    (channel,) = dataset.fingerprint.channels
    assert channel.mean == pytest.approx(foreground.mean())
    assert channel.std == pytest.approx(foreground.std())
    assert channel.percentile_99_5 == pytest.approx(np.percentile(foreground, 99.5))


def test_preparing_twice_gives_the_same_bytes(nnunet_source: Path, tmp_path: Path) -> None:
    raw = read_dataset(nnunet_source)
    info = dataset_info(raw, "boxes", (3.0, 3.0, 3.0), 16, "none")
    for name in ("one", "two"):
        prepare(tmp_path / name, raw, info)
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert len(files) == 1 + 5 + 5 + 4  # settings, index, cases, originals
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_a_folder_that_refuses_the_case_is_told_apart_from_a_broken_case(
    nnunet_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Storage, path: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(Storage, "write", full)
    raw = read_dataset(nnunet_source)
    outcome = prepare_and_write(
        str(tmp_path / "out"), dataset_info(raw, "x", (2.0, 2.0, 3.0), 16, "none"), raw.cases[0]
    )
    assert isinstance(outcome.refused, OSError) and outcome.refused.errno == errno.ENOSPC
    assert not finished_cases(str(tmp_path / "out"))


def test_another_setting_is_refused_by_name(nnunet_source: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "out")
    raw = read_dataset(nnunet_source)
    info = dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none")
    settings = settings_of("source", raw, info, SplitConfig())
    claim(root, settings, overwrite=False)
    claim(root, settings, overwrite=False)
    prepare_and_write(root, info, raw.cases[0])
    assert finished_cases(root) == {"a"}
    other = settings_of("source", raw, dataclasses.replace(info, spacing=(1.0, 1.0, 1.0)), SplitConfig(seed=3))
    with pytest.raises(UserError, match=r"preprocess\.spacing is .* here.*split\.seed is 0 there, 3 here.*--overwrite"):
        claim(root, other, overwrite=False)
    (tmp_path / "out" / "mine.txt").write_text("not ours")
    claim(root, other, overwrite=True)
    assert not finished_cases(root)
    assert (tmp_path / "out" / "mine.txt").exists()


def test_a_file_in_the_way_of_the_folder(nnunet_source: Path, tmp_path: Path) -> None:
    raw = read_dataset(nnunet_source)
    settings = settings_of("source", raw, dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none"), SplitConfig())
    (tmp_path / "file").write_text("x")
    for out in ("file", "file/deeper"):
        with pytest.raises(UserError, match="cannot be made a folder"):
            claim(str(tmp_path / out), settings, overwrite=False)


def test_a_scan_smaller_than_the_patch_is_padded_when_read(nnunet_source: Path, tmp_path: Path) -> None:
    raw = read_dataset(nnunet_source)
    dataset, _ = prepare(tmp_path / "out", raw, dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none"))
    image, label = dataset.read_crop("a", (-8, -8, -8), (32, 32, 32), label=True)
    assert image.shape == (1, 32, 32, 32)
    assert label is not None
    assert (image[0, :8] == -1000).all()
    assert label[8:24, 8:22, 8:20].any()


def test_real_scans(real_data: Path, tmp_path: Path) -> None:
    raw = read_dataset(real_data / "openkbp")
    raw = dataclasses.replace(raw, cases=(raw.cases[0], raw.cases[-1]), splits=None)
    dataset, outcomes = prepare(tmp_path / "kbp", raw, dataset_info(raw, "openkbp", (4.0, 4.0, 3.0), 64, "none"))
    assert [outcome.reason for outcome in outcomes] == ["", ""]
    labelled, unlabelled = (dataset.records[case.case] for case in raw.cases)
    assert labelled.labelled
    assert not unlabelled.labelled
    image, label = dataset.read_volume(labelled.case, label=True)
    assert label is not None
    air = (image[0] < -500).mean()
    assert 0.2 < air < 0.95
    bone = image[0][label == 5]  # mandible
    assert bone.mean() > 200
    source = nib.Nifti1Image.from_filename(raw.cases[0].images[0].path)
    for c in (1, 3, 4, 5):  # the cord, 2, is no thicker than these voxels, and parts of it are lost
        before = np.argwhere(np.asanyarray(dataset.original_label(labelled.case).dataobj) == c)
        after = np.argwhere(label == c)
        centres = [
            nib.affines.apply_affine(affine, voxels).mean(0)
            for affine, voxels in ((source.affine, before), (np.array(labelled.affine), after))
        ]
        assert np.linalg.norm(centres[0] - centres[1]) < 1.0


def test_a_real_case_of_totalsegmentator(real_data: Path, tmp_path: Path) -> None:
    raw = read_dataset(real_data / "totalsegmentator")
    dataset, outcomes = prepare(tmp_path / "ts", raw, dataset_info(raw, "ts", (4.0, 4.0, 4.0), 64, "none"))
    assert outcomes[0].reason == ""
    image, label = dataset.read_volume("s0001", label=True)
    assert label is not None
    original = np.asanyarray(dataset.original_label("s0001").dataobj)
    assert len(np.unique(original)) - 1 > 50
    assert set(np.unique(label)) <= set(np.unique(original))
    np.testing.assert_array_equal(label, resample_label(original, label.shape))  # the source is RAS already
    liver = image[0][label == 5]
    assert 0 < liver.mean() < 200


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["cases/scan.txt", "dataset.json"])
def test_what_no_preparation_wrote_is_never_deleted(
    name: str, overwrite: bool, nnunet_source: Path, tmp_path: Path
) -> None:
    raw = read_dataset(nnunet_source)
    settings = settings_of("source", raw, dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none"), SplitConfig())
    foreign = tmp_path / "out" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    with pytest.raises(UserError, match="no preparation wrote it; choose another --out"):
        claim(str(tmp_path / "out"), settings, overwrite)
    assert foreign.read_text() == "mine"
    assert not (tmp_path / "out" / "prepare.json").exists()


def test_other_scans_are_refused_for_the_split_would_be_drawn_anew(nnunet_source: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "out")

    def settings() -> dict[str, object]:
        raw = read_dataset(nnunet_source)
        return settings_of("source", raw, dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none"), SplitConfig())

    claim(root, settings(), overwrite=False)
    for folder in ("imagesTr", "labelsTr"):
        for path in (nnunet_source / folder).glob("a*"):
            shutil.copy(path, path.with_name(path.name.replace("a", "e", 1)))
    with pytest.raises(UserError, match=r"scans of the source.* changed.*another --out, or --overwrite"):
        claim(root, settings(), overwrite=False)
    claim(root, settings(), overwrite=True)
    claim(root, settings(), overwrite=False)
    (nnunet_source / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    with pytest.raises(UserError, match=r"split that comes with them or by --split\.file, changed"):
        claim(root, settings(), overwrite=False)


def test_settings_of_an_older_version_are_the_same_preparation(nnunet_source: Path, tmp_path: Path) -> None:
    raw = read_dataset(nnunet_source)
    info = dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none")
    settings = settings_of("source", raw, info, SplitConfig())
    assert (settings["split.seed"], settings["split.fractions"], settings["split.folds"]) == (0, (0.7, 0.1, 0.2), None)
    older = {name: value for name, value in settings.items() if name not in UNRECORDED} | {"split.fold": 3}
    Storage(tmp_path).write_json("prepare.json", older)
    claim(str(tmp_path), settings, overwrite=False)
    with pytest.raises(UserError, match=r"split\.folds is None there, 5 here"):
        claim(str(tmp_path), settings_of("source", raw, info, SplitConfig(folds=5, fractions=(0.7, 0.0, 0.3))), False)


def test_a_split_that_was_written_is_kept(nnunet_source: Path, tmp_path: Path) -> None:
    raw = read_dataset(nnunet_source)
    info = dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none")
    planned = {"train": ("a", "b"), "val": ("c",), "test": ("d",), "unlabeled": ("u",)}
    assert kept_splits(str(tmp_path / "out"), planned, set("abcd")) == keep(planned, set("abcd"))
    dataset, _ = prepare(tmp_path / "out", raw, info)
    path = tmp_path / "out" / "splits.json"
    edited = {"train": ["a"], "val": [], "test": ["b"], "mine": ["c"], "unlabeled": ["u"], "unlabeled_test": []}
    path.write_text(json.dumps(edited))  # d is in no split
    kept = kept_splits(dataset.path, planned, set(dataset.records))
    assert {name: list(cases) for name, cases in kept.items()} == edited
    for text in ('{"train": [', '{"train": [1]}', "[]", '{"train": "a"}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"splits\.json is damaged.*delete it to have the split made anew"):
            kept_splits(dataset.path, planned, set(dataset.records))


def test_the_fingerprint_of_a_data_set_without_labels_is_of_the_cases_for_pretraining(
    nnunet_source: Path, tmp_path: Path
) -> None:
    raw = read_dataset(nnunet_source)
    raw = dataclasses.replace(
        raw, cases=tuple(dataclasses.replace(case, label=None) for case in raw.cases), held_back=frozenset("d")
    )
    dataset, _ = prepare(tmp_path / "out", raw, dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none"))
    assert dataset.splits["unlabeled"] == fingerprint_cases(dataset) == ("a", "b", "c", "u")
    assert dataset.splits["unlabeled_test"] == ("d",)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("text", ['{"cut', "[]", '{"oven": 200}', "[" * 100_000])
def test_damaged_or_foreign_settings_are_refused(text: str, overwrite: bool, tmp_path: Path) -> None:
    """Any file named prepare.json let --overwrite delete a folder named cases."""
    (tmp_path / "prepare.json").write_text(text)
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "legal.parquet").write_text("mine")
    with pytest.raises(UserError, match=r"prepare\.json is damaged.*choose another --out"):
        claim(str(tmp_path), {}, overwrite)
    assert (tmp_path / "cases" / "legal.parquet").read_text() == "mine"


def test_overwrite_leaves_the_files_of_others_in_a_prepared_folder(nnunet_source: Path, tmp_path: Path) -> None:
    raw = read_dataset(nnunet_source)
    info = dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none")
    prepare(tmp_path / "out", raw, info)
    settings = settings_of("source", raw, info, SplitConfig())
    (tmp_path / "out" / "prepare.json").write_text(json.dumps(settings))
    (tmp_path / "out" / "cases" / "why.txt").write_text("mine")
    assert claim(str(tmp_path / "out"), settings, overwrite=True) == ["cases/why.txt"]
    left = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert left == {"prepare.json", "cases/why.txt"}
    assert not (tmp_path / "out" / "originals").exists()


@pytest.mark.parametrize(
    ("folder", "dtypes"),
    [
        ("totalsegmentator", ["int16"]),
        ("flare22", ["int16"]),
        ("amos22", ["float16"]),
        ("autopet2", ["int16", "float16"]),
    ],
)
def test_each_real_data_set_is_prepared_and_normalised(
    folder: str, dtypes: list[str], real_data: Path, tmp_path: Path
) -> None:
    raw = read_dataset(real_data / folder)
    dataset, outcomes = prepare(tmp_path / "out", raw, dataset_info(raw, folder, (6.0, 6.0, 6.0), 64, "none"))
    assert [outcome.reason for outcome in outcomes] == [""] * len(raw.cases)
    fitted = dataset.splits["train"] or tuple(dataset.records)
    for case in dataset.records:
        image, label = dataset.read_volume(case, label=True)
        assert [channel.dtype for channel in dataset.records[case].channels] == dtypes
        assert label is not None and label.any()
        normalised = normalise(torch.from_numpy(image)[None], torch.from_numpy(dataset.normalisation(case))[None])[0]
        assert torch.isfinite(normalised).all()
        for channel, scheme in zip(normalised, dataset.info.schemes, strict=True):
            inside = channel.numpy()[label > 0] if scheme != "zscore" else channel.numpy()[image[0] != 0]
            if scheme == "zscore":
                assert abs(inside.mean()) < 0.01 and abs(inside.std() - 1) < 0.01
            elif case in fitted and len(fitted) == 1:
                assert abs(inside.mean()) < 0.1 and 0.5 < inside.std() < 1.1  # clipping takes the tails


def test_schemes_are_chosen_per_channel(real_data: Path) -> None:
    raw = read_dataset(real_data / "autopet2")
    assert choose_schemes(raw, ()) is raw
    assert choose_schemes(raw, ("ct", "zscore")).schemes == ("ct", "zscore")
    with pytest.raises(UserError, match=r"--preprocess\.normalisation names 1 schemes, but autopet2 has 2 channels"):
        choose_schemes(raw, ("ct",))
    with pytest.raises(UserError, match=r"rounds channel SUV of autopet2 to whole HU"):
        choose_schemes(raw, ("ct", "ct"))
    settings = [
        settings_of("source", one, dataset_info(one, "x", (2.0, 2.0, 3.0), 16, "none"), SplitConfig())
        for one in (raw, choose_schemes(raw, ("ct", "zscore")))
    ]
    assert {name for name in settings[0] if settings[0][name] != settings[1][name]} == {"preprocess.normalisation"}


def test_a_folder_that_an_older_version_began_stays_of_that_version(nnunet_source: Path, tmp_path: Path) -> None:
    raw = read_dataset(nnunet_source)
    info = dataset_info(raw, "boxes", (3.0, 3.0, 3.0), 16, "none")
    settings = settings_of("source", raw, info, SplitConfig())
    claim(str(tmp_path / "out"), settings, overwrite=False)
    path = tmp_path / "out" / "prepare.json"
    older = json.loads(path.read_text())
    assert older.pop("format") == FORMAT
    path.write_text(json.dumps(older))
    with pytest.warns(Note, match="older version"):
        prepare(tmp_path / "out", raw, info)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["format"] == FORMAT_WITHOUT_DIGESTS
    claim(str(tmp_path / "out"), settings, overwrite=True)
    assert prepare(tmp_path / "out", raw, info)[0].records
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["format"] == FORMAT
