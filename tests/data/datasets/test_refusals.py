"""One bad entry in a source is refused by name; the good cases beside it are read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.cli.main import main as anatomask
from anatomask.data.datasets import RawDataset, read_dataset
from anatomask.data.preparation import dataset_info, prepare_and_write, settings_of
from anatomask.data.splits import SplitConfig, dataset_splits
from anatomask.data.survey import survey_case
from anatomask.errors import UserError

REPOSITORY = Path(__file__).parents[3]
AS_ANYONE = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable]
    if os.geteuid() == 0
    else [sys.executable]
)
"""Python without root's power to ignore permissions."""


def write_scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).integers(-1000, 1000, (12, 12, 12)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


def outcomes(raw: RawDataset, out: Path) -> dict[str, str]:
    """Why each case is skipped, by its name; empty for those that are written."""
    info = dataset_info(raw, "test", (1.0, 1.0, 1.0), 16, "none")
    settings_of("source", raw, info, SplitConfig())
    dataset_splits(raw, SplitConfig())
    told = {one.case: prepare_and_write(str(out), info, one).reason for one in raw.cases}
    for one in raw.cases:
        facts = survey_case(one, raw.schemes, raw.class_names)
        assert (facts.image_error or facts.label_error) == told[one.case]
    return told


@pytest.mark.parametrize(
    ("name", "shown", "why"),
    [
        (b"caf\xe9", "caf\\xe9", "not UTF-8 text, or holds control characters; rename it"),
        (b"two\nlines", "two\\nlines", "control characters"),
        (b"\x1b[2J", "\\x1b[2J", "control characters"),
        (b"x" * 245, "x" * 245, "245 bytes long, more than 220"),
        ("ö".encode() * 115, "ö" * 115, "230 bytes long, more than 220"),
    ],
)
def test_a_name_that_cannot_be_a_files_is_refused_and_the_others_go_through(
    name: bytes, shown: str, why: str, tmp_path: Path
) -> None:
    good = write_scan(tmp_path / "scans" / "größe 1.nii.gz")
    shutil.copy(os.fsencode(good), os.fsencode(good.parent) + b"/" + name + b".nii.gz")
    told = outcomes(read_dataset(good.parent), tmp_path / "out")
    assert sorted(told) == sorted(["größe 1", shown])
    assert told["größe 1"] == "" and why in told[shown] and str(good.parent) in told[shown]
    assert (tmp_path / "out" / "cases" / "größe 1.parquet").is_file()


def test_a_refused_case_leaves_the_split_that_comes_with_the_data(nnunet_source: Path, tmp_path: Path) -> None:
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (nnunet_source / folder / f"d{ending}").rename(nnunet_source / folder / f"{'d' * 230}{ending}")
    folds = [{"train": ["a", "b"], "val": ["c", "d" * 230]}]
    (nnunet_source / "splits_final.json").write_text(json.dumps(folds))
    raw = read_dataset(nnunet_source)
    assert raw.splits == {"train": ("a", "b"), "val": (), "test": ("c",)}
    told = outcomes(raw, tmp_path / "out")
    assert [case for case, why in told.items() if why] == ["d" * 230]


def test_a_source_whose_path_is_no_text_is_refused(tmp_path: Path) -> None:
    good = write_scan(tmp_path / "scans" / "a.nii.gz")
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    good.parent.rename(source)
    with pytest.raises(UserError, match=r"\\xe9 is not UTF-8 text; rename it"):
        read_dataset(source)


@pytest.mark.parametrize("suffix", [".nii.gz", ".npz", ".b2nd", ".dcm"])
@pytest.mark.timeout(60)
def test_fifos_and_links_to_nothing_are_named_and_nothing_waits_for_them(suffix: str, tmp_path: Path) -> None:
    source = tmp_path / "scans"
    write_scan(source / "good.nii.gz")
    if suffix == ".npz":
        (source / "good.nii.gz").unlink()
        np.savez(source / "good.npz", image=np.random.default_rng(0).normal(size=(12, 12, 12)), spacing=np.ones(3))
    os.mkfifo(source / f"pipe{suffix}")
    (source / f"link{suffix}").symlink_to("nowhere")
    raw = read_dataset(source)
    told = outcomes(raw, tmp_path / "out")
    assert told.pop("good") == ""
    if suffix in (".nii.gz", ".npz"):
        assert "is a FIFO, not a file; get the file again, or leave the case out" in told.pop("pipe")
        assert "is a link to nowhere, which is not there" in told.pop("link")
    else:
        assert any(f"2 entries are neither file nor folder; link{suffix}" in remark for remark in raw.remarks)
    assert told == {}


@pytest.mark.timeout(60)
def test_a_fifo_among_images_and_a_label_that_links_to_nothing(tmp_path: Path, nnunet_source: Path) -> None:
    os.mkfifo(nnunet_source / "imagesTr" / "e_0000.nii.gz")
    (nnunet_source / "labelsTr" / "a.nii.gz").unlink()
    (nnunet_source / "labelsTr" / "a.nii.gz").symlink_to("../../gone.nii.gz")
    told = outcomes(read_dataset(nnunet_source), tmp_path / "out")
    assert "e_0000.nii.gz is a FIFO" in told["e"]
    assert "a.nii.gz is a link to ../../gone.nii.gz, which is not there" in told["a"]
    assert told["b"] == told["c"] == told["d"] == told["u"] == ""


CLOSED = """
import sys
from pathlib import Path
from anatomask.data.datasets import read_dataset
from anatomask.data.preparation import dataset_info, prepare_and_write
raw = read_dataset(Path(sys.argv[1]))
info = dataset_info(raw, "test", (1.0, 1.0, 1.0), 16, "none")
for one in raw.cases:
    print(f"{one.case} | {prepare_and_write(sys.argv[2], info, one).reason}")
"""


def totalsegmentator(source: Path) -> Path:
    for case in ("s0001", "s0002", "s0003"):
        write_scan(source / case / "ct.nii.gz")
    (source / "s0003" / "segmentations").mkdir()
    return source


def folder(source: Path) -> Path:
    for case in ("s0001/a", "s0002/deep/b", "s0003/c"):
        write_scan(source / f"{case}.nii.gz")
    return source


def autopet2(source: Path) -> Path:
    for case in ("s0001", "s0002", "s0003"):
        for name in ("CTres", "SUV", "SEG"):
            write_scan(source / f"PETCT_{case}" / "study" / f"{name}.nii.gz")
    return source


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root ignores permissions")
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
@pytest.mark.parametrize("make", [totalsegmentator, folder, autopet2])
def test_a_closed_folder_is_named_and_the_other_cases_are_read(
    make: Callable[[Path], Path], mode: int, tmp_path: Path
) -> None:
    source = make(tmp_path / "source")
    (closed,) = source.glob("*s0002*")
    (source / "lost+found").mkdir(mode=0)
    closed.chmod(mode)
    try:
        shown = subprocess.run(
            [*AS_ANYONE, "-c", CLOSED, source, tmp_path / "out"],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        closed.chmod(0o755)
    assert shown.returncode == 0, shown.stderr
    told = dict(line.split(" | ") for line in shown.stdout.splitlines())
    failed = {case: why for case, why in told.items() if "s0002" in case}
    assert len(failed) == 1 and len(told) == 3, told
    (why,) = failed.values()
    if (make, mode) == (totalsegmentator, 0o111):  # names that are known need no listing
        assert why == ""
    else:
        assert str(closed) in why and "ermission denied" in why


@pytest.mark.ray
def test_prepare_and_survey_go_through_them_all(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_scan(tmp_path / "scans" / "good.nii.gz")
    shutil.copy(os.fsencode(good), os.fsencode(good.parent) + b"/caf\xe9.nii.gz")
    shutil.copy(good, good.parent / f"{'x' * 245}.nii.gz")
    os.mkfifo(good.parent / "pipe.nii.gz")
    os.mkfifo(good.parent / "other")
    assert anatomask(["prepare", "--source", str(good.parent), "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert "1 (1 now), 3 skipped" in shown.out and "other is left out: a FIFO" in shown.out
    skipped = json.loads((tmp_path / "out" / "skipped.json").read_text(encoding="utf-8"))
    assert [row["case"] for row in skipped] == ["caf\\xe9", "pipe", "x" * 245]
    assert anatomask(["survey", str(good.parent), "--output", str(tmp_path / "survey")]) == 0
    assert "caf\\xe9" in (tmp_path / "survey" / "cases.csv").read_text(encoding="utf-8")
    assert "Traceback" not in shown.err + capsys.readouterr().err
