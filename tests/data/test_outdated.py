from __future__ import annotations

import os
from pathlib import Path

from anatomask.data.datasets.base import RawCase, nifti_image, nifti_label
from anatomask.data.outdated import outdated_note
from anatomask.data.storage import Storage


def written(path: Path, second: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (second, second))
    return path


def test_a_finished_case_counts_as_old_as_the_newest_of_its_files(tmp_path: Path) -> None:
    def case(name: str, image: int, label: int | None = None) -> RawCase:
        images = (nifti_image(written(tmp_path / f"{name}.nii", image)),)
        masks = None if label is None else written(tmp_path / name / "liver.nii", label).parent
        return RawCase(name, name, images, None if masks is None else nifti_label(masks))

    cases = [case("a", 99), case("b", 101), case("c", 99, 101), case("d", 99, 99), case("e", 101)]
    (tmp_path / "b.nii").rename(tmp_path / "old.nii")  # a link counts as what it leads to
    (tmp_path / "b.nii").symlink_to("old.nii")
    cases.append(RawCase("f", "f", (nifti_image(tmp_path / "nowhere.nii"),)))
    for name in "abcdf":
        written(tmp_path / "out" / f"{name}.x", 100)
    made = Storage(tmp_path).times("out", ".x")
    assert made == dict.fromkeys("abcdf", 100 * 10**9)
    (note,) = outdated_note(cases, made, "out/<case>.x")
    assert note.startswith("scans or labels of b, c are newer") and "delete out/<case>.x of each" in note
    assert outdated_note(cases[:1], made, "") == []
