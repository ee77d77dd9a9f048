"""`anatomask evaluate` with settings of the scores; the cases are evaluated in this process, without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from anatomask.cli.main import main
from anatomask.config import FinetuneConfig
from anatomask.data.shards import PreparedDataset
from anatomask.evaluation.case import Evaluation
from anatomask.evaluation.results import CaseScore, from_csv
from anatomask.nested import plain
from anatomask.stages import evaluate
from anatomask.weights.tensor_files import Weights
from tests.evaluation.test_pipeline import arguments, write_run


@pytest.fixture
def run(
    make_dataset: Callable[..., PreparedDataset],
    blobs: Callable[..., np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A run's folder; class 2 is absent from the reference of case a."""
    labels = {"a": blobs((33, 20, 24)), "b": blobs((20, 30, 31))}
    labels["a"][labels["a"] == 2] = 0
    folder = write_run(tmp_path / "runs/net", make_dataset(labels, (2.0, 2.0, 3.0), "LPS"))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(FinetuneConfig(data="shards", seed=7))))
    (folder / "inputs.json").write_text('{"data": "d"}')

    def here(evaluation: Evaluation, weights: Weights, cases: Sequence[str], _: object) -> dict[str, str]:
        for case in cases:
            evaluation.finish(weights, case, torch.device("cpu"))
        return {}

    monkeypatch.setattr(evaluate, "evaluate_cases", here)
    return folder


def scores(run: Path) -> list[CaseScore]:
    return from_csv((run / "cases.csv").read_text(), "cases.csv")


def test_another_rule_for_absent_classes_writes_the_tables_anew(run: Path) -> None:
    assert main(["evaluate", *arguments(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["absent"], summary["training"]["seed"]) == ("totalsegmentator", 7)
    assert summary["classes"]["spleen"]["cases"] == 1 and "hd95_missing" in summary
    assert np.isnan(scores(run)[1].dsc)
    written = {path: path.stat().st_mtime_ns for path in (run / "predictions").iterdir()}
    assert main(["evaluate", *arguments(run, "--scoring.absent", "flare")]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["absent"], summary["classes"]["spleen"]["cases"]) == ("flare", 2)
    assert scores(run)[1].dsc == float(scores(run)[1].predicted_volume_ml == 0)
    assert {path: path.stat().st_mtime_ns for path in (run / "predictions").iterdir()} == written


def test_only_the_metrics_that_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *arguments(run, "--scoring.metrics", "lesions", "nsd_1mm")]) == 0
    assert {score.lesions for score in scores(run) if score.voxels} == {1}
    assert all(0 <= score.nsd_1mm <= 1 for score in scores(run) if score.voxels)
    assert all(np.isnan(score.nsd) and np.isnan(score.hd95_mm) for score in scores(run))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["nsd"]["mean"] is None and "hd95_mm" not in summary and "false_negative_ml" in summary
    assert summary["nsd_1mm"]["mean"] is not None and "nsd_2mm" not in summary
    assert main(["evaluate", *arguments(run)]) == 1
    assert "holds an evaluation with other settings: metrics is" in " ".join(capsys.readouterr().err.split())
    assert main(["evaluate", *arguments(run, "--scoring.metrics", "--overwrite")]) == 0
    assert all(score.lesions is None and np.isnan(score.nsd) for score in scores(run))
