"""Cross-validation: folds in one prepared folder, a run for each, one row for all; no Ray, and nothing is trained."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from anatomask.cli.main import main
from anatomask.data.index import data_digest
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.evaluation.results import case_means, from_csv
from anatomask.weights.files import find_weights, read_header
from tests.bad_input import world
from tests.bad_input.kinds import FRESH, SMALL

TUNE = f"finetune {SMALL} --data out"
FOLDS = ("fold_0", "fold_1", "fold_2")


@pytest.fixture
def folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDataset:
    """Scans that are prepared with three folds, in the folder where the test runs."""
    world.write_scans(tmp_path / "scans")
    world.without_ray(monkeypatch, world.save_untrained)
    monkeypatch.chdir(tmp_path)
    assert main([*FRESH.split(), "--split.folds", "3"]) == 0
    return PreparedDataset.open("out")


def run(command: str) -> None:
    assert main(command.split()) == 0, command


def test_each_run_leaves_its_fold_out_and_is_scored_on_it_and_all_are_one_row(
    folds: PreparedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = set(world.CASES[:-1])
    assert set(folds.splits["train"]) == labelled
    assert [len(folds.splits[name]) for name in FOLDS] == [2, 2, 1]
    means: dict[str, float] = {}
    for k, name in enumerate(FOLDS):
        run(f"{TUNE} --name run-{k} --fold {k}")
        header = read_header(find_weights(f"runs/run-{k}"))
        assert (header["fold"]["number"], header["fold"]["of"]) == (k, 3)
        assert (
            "fold" in json.loads(json.dumps(header)) and f"fold: {k}" in Path(f"runs/run-{k}/config.yaml").read_text()
        )
        run(f"evaluate --recipe tiny --run runs/run-{k}")
        summary = json.loads(Path(f"runs/run-{k}/summary.json").read_text())
        assert (summary["split"], summary["fold"]) == (name, header["fold"])
        scores = case_means(from_csv(Path(f"runs/run-{k}/cases.csv").read_text(), "x"), "dsc")
        assert set(scores) == set(folds.splits[name])
        means |= scores
    assert set(means) == labelled
    run("report --runs runs/run-0 runs/run-1 runs/run-2 --out all --cases 5")
    (row,) = csv.DictReader(Path("all/table.csv").read_text().splitlines())
    assert (row["cases"], row["folds"]) == ("5", "0 1 2")
    assert float(row["dsc_mean_fraction"]) == pytest.approx(np.mean(list(means.values())), abs=1e-5)
    assert float(row["dsc_sd_fraction"]) == pytest.approx(np.std(list(means.values()), ddof=1), abs=1e-5)
    assert "scratch, 3 folds" in Path("all/table.md").read_text()
    assert "missing" not in Path("all/table.md").read_text()
    assert Path("all/overlays-scans.png").exists()
    run("report --runs runs/run-2 runs/run-0 --out some")
    assert "scratch, 2 of 3 folds" in Path("some/table.md").read_text()
    assert "run-0 + run-2: fold 1 of 3 is missing." in Path("some/table.md").read_text()

    run(f"{TUNE} --name other --fold 1 --train-fraction 0.5")
    run("evaluate --recipe tiny --run runs/other")
    run("evaluate --recipe tiny --run runs/run-1 --split train --out elsewhere")
    run("report --runs runs/run-0 runs/other runs/run-1 elsewhere --out three")
    rows = list(csv.DictReader(Path("three/table.csv").read_text().splitlines()))
    assert [row["folds"] for row in rows] == ["0 1", "1", ""]  # a run with other settings, and one on another split
    capsys.readouterr()

    splits = json.loads(Path("out/splits.json").read_text())
    before = data_digest(Storage("out"), splits=True)
    splits["fold_1"], splits["fold_2"] = splits["fold_2"], splits["fold_1"]
    Path("out/splits.json").write_text(json.dumps(splits))
    assert data_digest(Storage("out"), splits=True) != before
    assert main(["evaluate", "--recipe", "tiny", "--run", "runs/run-1", "--overwrite"]) == 1
    assert "fold_1 does not hold the cases that runs/run-1 left out" in capsys.readouterr().err
    assert Path("runs/run-1/summary.json").exists()
