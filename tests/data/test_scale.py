from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import pytest

from anatomask.data.datasets import read_dataset
from anatomask.data.preparation import dataset_info, prepare_and_write
from anatomask.data.scale import measure, scale_of
from anatomask.data.settings import PreparePlanConfig
from anatomask.data.storage import Storage


def test_real_scans_take_what_was_measured(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    raw = read_dataset(real_data / "openkbp")
    cases = (raw.cases[0], raw.cases[1], raw.cases[-1])
    info = dataset_info(raw, "openkbp", (4.0, 4.0, 4.0), 32, "zstd")
    sample = measure(info, cases, 2)  # the first, which is labelled, and the last, which is not
    root = str(tmp_path / "out")
    outcomes = [prepare_and_write(root, info, case) for case in (cases[0], cases[-1])]
    assert (sample.cases, sample.voxels) == (2, sum(outcome.voxels for outcome in outcomes))
    assert sample.shard_bytes == sum(Storage(root).sizes("cases").values())
    assert sample.original_bytes == sum(Storage(root).sizes("originals").values()) > 0
    assert sample.cpu_seconds > 0
    assert not any((tmp_path / "temporary").iterdir())


def test_broken_cases_count_for_nothing(nnunet_source: Path) -> None:
    raw = read_dataset(nnunet_source)
    info = dataset_info(raw, "boxes", (2.0, 2.0, 3.0), 16, "none")
    whole = measure(info, raw.cases, 10)
    assert whole.cases == len(raw.cases)
    for path in (nnunet_source / "imagesTr").glob("*.nii.gz"):
        path.write_bytes(path.read_bytes()[:500])
    left = measure(info, raw.cases, 10)
    assert left.cases == 1 and left.voxels == whole.voxels / len(raw.cases)
    (nnunet_source / "imagesUnlabeled" / "u_0000.nii.gz").write_bytes(b"")
    assert dataclasses.replace(measure(info, raw.cases, 10), cpu_seconds=0).voxels == 0


def test_a_scale_is_that_of_the_cases_that_fit(nnunet_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = read_dataset(nnunet_source)  # five scans of 16 x 14 x 12 voxels of 2 x 2 x 3 mm
    info = dataset_info(raw, "boxes", (1.0, 1.0, 1.0), 16, "none")
    (nnunet_source / "imagesUnlabeled" / "u_0000.nii.gz").write_bytes(b"")
    scale = scale_of(info, raw.cases)
    assert (scale.voxels_per_case, scale.left_out) == (32 * 28 * 36, 0)
    monkeypatch.setattr("anatomask.data.scale.available_memory", lambda: 1000)
    scale = scale_of(info, raw.cases)
    assert (scale.voxels_per_case, scale.left_out, scale.memory) == (0, 4, 1000)


@pytest.mark.parametrize("field", [{"cases": 0}, {"sample": -1}])
def test_impossible_plans_are_refused(field: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        PreparePlanConfig(**field)
