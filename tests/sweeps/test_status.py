"""Status of a sweep: what each trial does, from the study and its runs alone, and the command that shows it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from anatomask.cli.main import main
from anatomask.runs.belongings import claim_folder
from anatomask.sweeps.space import grid
from anatomask.sweeps.status import best_trial, following_trials, read_status, running_stages
from anatomask.sweeps.study import ERROR, METRIC, TRIAL, StudySearch, open_study

RATIOS = grid({"method.mask_ratio": (0.6, 0.7, 0.8, 0.9)})


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[Path, optuna.Study]:
    """A sweep of four trials: complete, failed, in its finetuning, waiting."""
    folder = tmp_path / "ratios"
    claim_folder(folder)
    study = open_study(folder, RATIOS)
    search = StudySearch(study, RATIOS, seed=0)
    trials = [search.suggest(f"t{k}")[TRIAL] for k in range(3)]
    search.on_trial_complete("t0", {METRIC: 0.712})
    search.prunes("t1", {METRIC: 0.0, ERROR: "out of luck"})
    search.on_trial_complete("t1", error=True)
    for trial, link, step in [(0, "pretrain", 6), (0, "finetune-a", 4), (2, "pretrain", 6), (2, "finetune-a", 1)]:
        run = folder / trials[trial] / link
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text(json.dumps({"step": step, "train/loss": 0.5}) + "\n")
        os.utime(run, (step, 10 - step))
    (folder / trials[0] / "evaluate-a").mkdir()
    (folder / trials[0] / "evaluate-a" / "summary.json").write_text("{}")
    return folder, study


def test_each_trial_says_what_it_does(sweep: tuple[Path, optuna.Study]) -> None:
    status = read_status(*sweep)
    assert [(one.name, one.state, one.updates, one.scored, one.dsc) for one in status] == [
        ("mask_ratio=0.6", "complete", 10, 1, 0.712),
        ("mask_ratio=0.7", "failed: out of luck", 0, 0, None),
        ("mask_ratio=0.8", "finetune-a", 7, 0, None),
        ("mask_ratio=0.9", "waiting", 0, 0, None),
    ]
    assert best_trial(status) is status[0]


def test_stages_that_run_side_by_side_are_all_named(tmp_path: Path) -> None:
    order = ["pretrain", "finetune-a", "finetune-b", "evaluate-a", "finetune-c", "evaluate-c"]
    links = [tmp_path / name for name in order]
    for link in links:
        link.mkdir()
    assert running_stages([]) == []
    assert running_stages(links[:1]) == ["pretrain"]
    assert running_stages(links[:3]) == ["finetune-a", "finetune-b"]
    assert running_stages(links) == ["finetune-b", "evaluate-a", "evaluate-c"]
    for name in ("evaluate-a", "evaluate-c"):
        (tmp_path / name / "summary.json").touch()
    assert running_stages(links) == ["finetune-b"]
    assert running_stages([*links[:2], links[3]]) == ["evaluate-a"], "what comes next has not begun yet"
    assert running_stages([tmp_path / "probe1-pretrain", tmp_path / "probe1-finetune"]) == ["probe1-finetune"]


def test_the_command_shows_it_from_elsewhere(
    sweep: tuple[Path, optuna.Study], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = sweep
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["sweep", "--status", "ratios", "--runs", str(folder.parent)]) == 0
    shown = capsys.readouterr().out
    assert "finetune-a" in shown and "71.2" in shown and max(map(len, shown.splitlines())) <= 80
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert main(["sweep", "--status", "other", "--runs", str(folder.parent)]) == 1
    assert "other is no sweep's folder; check the name and --runs" in " ".join(capsys.readouterr().err.split())
    (folder / "study.db").unlink()
    assert main(["sweep", "--status", "ratios", "--runs", str(folder.parent)]) == 1
    assert "give it here, too" in " ".join(capsys.readouterr().err.split())
    journal = folder.parent / "journal.log"
    assert main(["sweep", "--status", "ratios", "--runs", str(folder.parent), "--storage", f"journal:{journal}"]) == 1
    assert "there is no such file" in " ".join(capsys.readouterr().err.split()) and not journal.exists()
    with pytest.raises(SystemExit):
        main(["sweep", "--status", "ratios", "--trials", "3"])


def test_it_is_followed_while_it_runs(sweep: tuple[Path, optuna.Study], monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr("anatomask.terminal.progress.Console", lambda **given: Console(file=told, width=100))
    with following_trials(*sweep, trials=4, updates=10, networks=1):
        pass
    lines = told.getvalue().splitlines()
    assert any(line.startswith("sweep 17/40 1/4 scored, best 71.2") for line in lines)
    assert any(line.startswith("trial 2 7/10 finetune-a") for line in lines)
