from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.cli.main import main as anatomask


@pytest.fixture
def source(real_data: Path, tmp_path: Path) -> Path:
    """Three real scans of which one is upside down, and a file that is cut off."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("crlm_1004_abdomen", "nlst_101287_chest", "prostatex_0000_t2"):
        scan = nib.Nifti1Image.from_filename(real_data / "scans" / f"{name}.nii.gz")
        voxels = np.asanyarray(scan.dataobj)
        nib.save(
            nib.Nifti1Image(voxels[..., ::-1] if "crlm" in name else voxels, scan.affine), folder / f"{name}.nii.gz"
        )
    (folder / "broken.nii.gz").write_bytes((folder / "prostatex_0000_t2.nii.gz").read_bytes()[:5000])
    return folder


@pytest.mark.parametrize("name", ["cases.csv", "classes.csv", "contact-sheet.png", "survey.json"])
def test_a_file_that_no_survey_wrote_is_not_replaced(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{}")
    assert anatomask(["survey", str(source), "--output", str(tmp_path / "run")]) == 1
    assert f"{name} is there, but no survey wrote it; choose another --output" in capsys.readouterr().err
    assert (tmp_path / "run" / name).read_text() == "{}"


@pytest.mark.ray
def test_suspicious_cases_are_named_and_the_others_shown(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_session: None
) -> None:
    out = tmp_path / "out"
    assert anatomask(["survey", str(source), "--output", str(out)]) == 0
    shown = capsys.readouterr()
    told = "".join(character for character in shown.out if not character.isspace() and character not in "│┃")
    for words in ("broken", "image refused", "crlm_1004_abdomen", "upside down", "4, of which 0 have labels; 1 cannot"):
        assert words.replace(" ", "") in told
    assert "Traceback" not in shown.out + shown.err

    facts = json.loads((out / "survey.json").read_text())
    kinds = {(one["case"], one["kind"]) for one in facts["suspicions"]}
    assert kinds == {("broken", "image refused"), ("crlm_1004_abdomen", "upside down")}
    by_case = {one["case"]: one for one in facts["cases"]}
    assert by_case["broken"]["images"] is None and "broken.nii.gz" in by_case["broken"]["image_error"]
    assert by_case["nlst_101287_chest"]["images"]["orientation"] == "LPS"
    rows = {row["case"]: row for row in csv.DictReader((out / "cases.csv").read_text().splitlines())}
    assert rows["nlst_101287_chest"]["voxels_s"] == "143" and rows["nlst_101287_chest"]["suspicious"] == ""
    assert (out / "contact-sheet.png").read_bytes().startswith(b"\x89PNG")

    for path in source.glob("*.nii.gz"):
        path.write_bytes(path.read_bytes()[:400])
    assert anatomask(["survey", str(source), "--output", str(tmp_path / "none")]) == 1
    assert "none of the 4 cases" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_dry_run_starts_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert anatomask(["survey", str(source), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "4, of which 0 have labels" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_folder_is_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        anatomask(["survey"])
    assert "FOLDER" in capsys.readouterr().err
    assert anatomask(["survey", str(tmp_path / "nowhere")]) == 1
    assert "there is no such file or folder" in capsys.readouterr().err
