"""`anatomask report` on runs whose results are written here; no Ray is started."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anatomask.cli.main import main
from anatomask.config import ReportConfig
from anatomask.data.shards import PreparedDataset
from anatomask.evaluation.results import CaseScore, summarise, to_csv
from anatomask.reports.overlays import overlay_paths
from anatomask.stages import report

MakeDataset = Callable[..., PreparedDataset]
Blobs = Callable[[Sequence[int]], np.ndarray]


def write_run(folder: Path, dataset: PreparedDataset, dsc: float, cases: Sequence[str]) -> str:
    """The folder of a run that predicted the truth, whatever score is told."""
    (folder / "predictions").mkdir(parents=True)
    rows = []
    for case in cases:
        nib.save(dataset.original_label(case), folder / "predictions" / f"{case}.nii.gz")
        names = dataset.class_names.items()
        rows += [CaseScore(folder.name, dataset.name, case, c, name, dsc, dsc, 9) for c, name in names]
    (folder / "cases.csv").write_text(to_csv(rows))
    summary = {
        "run": folder.name, "method": folder.name, "initialisation": "random", "dataset": dataset.name,
        "data": dataset.path, "split": "test", **summarise(rows),
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


@pytest.fixture
def dataset(make_dataset: MakeDataset, blobs: Blobs) -> PreparedDataset:
    return make_dataset({"a": blobs((20, 24, 18)), "b": blobs((22, 20, 16))}, codes="LPS")


def test_runs_of_the_same_cases_are_ranked_and_others_are_not(dataset: PreparedDataset, tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", dataset, 0.9, "ab")
    for name, cases, bold in (("poor", "ab", True), ("other", "a", False)):
        out = tmp_path / f"report-{name}"
        assert main(["report", "--runs", good, write_run(tmp_path / name, dataset, 0.5, cases), "--out", str(out)]) == 0
        table = (out / "table.md").read_text()
        assert ("**90.0 ± 0.0**" in table) == bold
        assert ("runs differ in cases" in table) != bold
        assert (out / "overlays-data.png").exists()
        page = (out / "report.html").read_text()
        images = re.findall(r'<script type="text/plain" id="volume-', page)
        assert len(images) == 4 * len(cases)  # the scan, its truth and two predictions


def test_what_is_asked_for_is_on_the_page(dataset: PreparedDataset, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", dataset, 0.9, "ab")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/study.png").write_bytes(b"picture")
    out = tmp_path / "report"
    asked = ["--tables", "2", "5", "--sweeps", str(tmp_path / "sweep"), "--viewer-mb", "0"]
    assert main(["report", "--runs", run, "--out", str(out), *asked]) == 0
    page, paper = (out / "report.html").read_text(), (out / "paper.md").read_text()
    assert re.findall(r"Table (\d)", page) == re.findall(r"Table (\d)", paper) == ["2", "5"]
    assert "data:image/png;base64,cGljdHVyZQ==" in page and "volume-" not in page and "niivue" not in page
    assert main(["report", "--runs", run, "--out", str(out)]) == 0
    assert "The paper&#39;s tables" not in (out / "report.html").read_text() and not (out / "paper.md").exists()
    (out / "paper.csv").write_text("mine")
    assert main(["report", "--runs", run, "--out", str(out)]) == 1 and (out / "paper.csv").read_text() == "mine"


def test_of_many_runs_the_first_of_each_row_is_shown(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MOST_COLUMNS", 2)
    runs = [write_run(tmp_path / name, dataset, 0.5, "ab") for name in ("one", "two", "three")]
    config = ReportConfig(runs=tuple(runs[:2]), out=str(tmp_path / "few"))
    assert [len(shown) for shown in report.read_results(config).shown.values()] == [2]
    out = tmp_path / "many"
    assert main(["report", "--runs", *runs, "--out", str(out), "--cases", "1"]) == 0
    page = (out / "report.html").read_text()
    assert "Predictions on data (the first 2 of 3)." in page and "differ most (the first 2 of 3)." in page


def test_two_folders_of_one_name_get_a_figure_each(
    dataset: PreparedDataset, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    copy = tmp_path / "copy" / "data"
    copy.parent.mkdir()
    Path(dataset.path).rename(copy)
    first = PreparedDataset.open(str(copy))
    label = np.asarray(nib.as_closest_canonical(first.original_label("a")).dataobj)
    second = make_dataset({"a": label})
    runs = [write_run(tmp_path / "x", first, 0.9, "ab"), write_run(tmp_path / "y", second, 0.5, "a")]
    out = tmp_path / "report"
    assert main(["report", "--runs", *runs, "--out", str(out)]) == 0
    assert len(list(out.glob("overlays-data-*.png"))) == 2
    assert "**" not in (out / "table.md").read_text()


@pytest.mark.parametrize("name", ["originals/a.nii.gz", "cases/a.parquet", "dataset.json"])
def test_damaged_data_cost_the_figure_and_are_named_on_a_line(
    name: str, dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", dataset, 0.9, "ab")
    path = Path(dataset.path) / name
    path.write_bytes(path.read_bytes()[:100])
    assert main(["report", "--runs", run, "--out", str(tmp_path / "report")]) == 0
    printed = "".join(capsys.readouterr().out.split())
    assert "Nofigureofdata:" in printed and name in printed
    assert (tmp_path / "report" / "table.md").exists()


def test_a_prediction_of_another_scan_is_named(
    dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", dataset, 0.9, "ab")
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)), tmp_path / "run/predictions/a.nii.gz")
    assert main(["report", "--runs", run, "--out", str(tmp_path / "report")]) == 0
    assert "a.nii.gzhasshape(3,4,5)" in "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", b'{"cut', "summary.json is damaged"),
        ("summary.json", b"[]", "summary.json has no field 'run'"),
        ("cases.csv", b"\xff\xfe\n1\n", "cases.csv is not a table of scores"),
        ("cases.csv", b"garbage", "cases.csv is not a table of scores"),
        ("cases.csv", to_csv([]).encode(), "cases.csv has scores of 0 cases, but summary.json counts"),
    ],
)
def test_damaged_results_are_named_with_the_remedy(
    name: str,
    content: bytes,
    message: str,
    dataset: PreparedDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = write_run(tmp_path / "run", dataset, 0.9, "ab")
    (tmp_path / "run" / name).write_bytes(content)
    assert main(["report", "--runs", run, "--out", str(tmp_path / "report")]) == 1
    error = capsys.readouterr().err
    assert message in error and "--overwrite" in error


@pytest.mark.parametrize("name", ["table.md", "table.csv", "overlays-data.png", "paper.md", "report.html"])
def test_a_file_that_no_report_wrote_is_not_replaced(
    name: str, dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", dataset, 0.9, "ab")
    out = tmp_path / "thesis"
    out.mkdir()
    (out / name).write_text("mine")
    assert main(["report", "--runs", run, "--out", str(out)]) == 1
    assert f"{name} is there, but no report wrote it; choose another --out" in capsys.readouterr().err.replace("\n", "")
    assert {path.name: path.read_text() for path in out.iterdir()} == {name: "mine"}


@pytest.mark.parametrize("name", ["../../evil", "a/b", "A B", "a b", ".", "x" * 300, "\x1b[2J", "Größe"])
def test_the_name_of_a_data_set_leads_no_figure_elsewhere(name: str) -> None:
    names = {name, name.upper(), f"{name}/", f"{name}.2"}
    paths = overlay_paths(Path("out"), names)
    assert paths.keys() == names and len(set(paths.values())) == len(names)
    for path in paths.values():
        assert path.parent == Path("out") and path.name.startswith("overlays-") and len(path.name) < 200
