"""Stopping a sweep: what its trainings computed is kept, nothing begins any more, and the same command goes on."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray import tune
from ray.train.torch import TorchTrainer

from anatomask.cli.arguments import parse
from anatomask.data.shards import PreparedDataset
from anatomask.errors import Stopped
from anatomask.recipes import RECIPES
from anatomask.runs.checkpoint_index import last_step
from anatomask.stages.sweep import run_stage
from anatomask.sweeps import trials
from anatomask.sweeps.chain import Chain, build_chain
from anatomask.sweeps.graph import Stage
from anatomask.sweeps.study import LEFT, StudySearch, latest_trials, open_study, trials_left
from anatomask.sweeps.trials import run_trial, run_trials
from anatomask.training.journal import JOURNAL
from anatomask.training.stopping import stop_file
from tests.bad_input.world import OF_TRIAL, RESOURCES, train_here
from tests.sweeps.test_sweep import RATIOS, SETTINGS


def chain_of(data: PreparedDataset, runs: Path, *more: str) -> Chain:
    argv = [*SETTINGS[:5], data.path, "--finetune-data", data.path, "--runs", str(runs), "--name", "it", *more]
    chain = build_chain(parse("sweep", argv, RECIPES).config)
    chain.folder.mkdir(parents=True)
    return chain


def here(trainer: Any) -> None:
    """Train in this process, as Ray Train's workers would."""
    job = trainer.train_loop_config["job"]
    train_here(job, RESOURCES, 0)
    stop_file(job.run).unlink(missing_ok=True)  # the last action of the first worker


def test_a_trial_that_is_stopped_has_its_checkpoint_and_goes_on(
    labelled: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request comes before the first update; a marker in the run's own folder stops that run, too."""
    for path in [path for path in Path(labelled.path).rglob("one*") if path.is_file()]:
        shutil.copy(path, path.with_name(path.name.replace("one", "two")))  # the case that is watched
    more = ["--pretrain.splits", "train", "--pretrain.method.decoder-width", "16", "--pretrain.network.base", "2"]
    more += ["--pretrain.training.epochs", "1", "--pretrain.training.steps-per-epoch", "3"]
    more += ["--pretrain.training.batch-size", "1", "--pretrain.loader.patch-size", "32", "32", "32"]
    chain = chain_of(labelled, tmp_path, *more, "--pretrain.optimiser.warmup-epochs", "0")
    run = partial(run_stage, resources=OF_TRIAL, store=chain.store)
    pretraining = chain.store.path(chain.stages({})["pretrain"].name)
    began = list[Path]()

    def ask(*places: Path) -> Callable[[TorchTrainer], None]:
        def fit(trainer: TorchTrainer) -> None:
            for place in places:
                stop_file(place).touch()
            here(trainer)

        return fit

    for place, updates in ((chain.folder, 1), (pretraining, 2)):
        monkeypatch.setattr(TorchTrainer, "fit", ask(place))
        with pytest.raises(Stopped):
            run_trial(chain, "000-x", {}, run)
        assert last_step(pretraining) == updates and not stop_file(pretraining).exists()
        assert [path.name for path in (chain.folder / "000-x").iterdir()] == ["pretrain"]
        stop_file(chain.folder).unlink(missing_ok=True)
    stop_file(pretraining).touch()  # left by a driver that was killed
    monkeypatch.setattr(TorchTrainer, "fit", ask())

    def pretrain_only(one: Stage, folder: Path, needed: Mapping[str, str]) -> None:
        began.append(folder)
        if one.verb != "pretrain":
            raise Stopped
        run(one, folder, needed)

    with pytest.raises(Stopped):
        run_trial(chain, "000-x", {}, pretrain_only)
    assert last_step(pretraining) == 3 and len(began) == 2


def tuner(began: list[str], patch: pytest.MonkeyPatch) -> type:
    """Make a class that stands for Ray Tune's: it runs one trial after the other in the thread that calls it."""

    class Tuner:
        def __init__(
            self, trial: Callable[..., None], tune_config: tune.TuneConfig, run_config: tune.RunConfig
        ) -> None:
            self.trial, self.config = trial, tune_config

        def fit(self) -> list[Any]:
            search: Any = self.config.search_alg
            for number in range(self.config.num_samples):
                point = search.suggest(f"t{number}")
                if point == search.FINISHED:
                    return []
                reported = list[dict[str, Any]]()
                patch.setattr(tune, "report", reported.append)
                began.append(point[trials.TRIAL])
                self.trial(point)
                search.on_trial_complete(f"t{number}", reported[-1])
                assert reported[-1][LEFT]
            return []

    return Tuner


def test_a_signal_stops_the_trials_in_order_and_begins_no_other(
    labelled: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, began, over = chain_of(labelled, tmp_path), list[str](), threading.Event()
    monkeypatch.setattr(tune, "Tuner", tuner(began, monkeypatch))
    monkeypatch.setattr(tune, "with_resources", lambda trial, resources: trial)
    stop_file(chain.folder).touch()  # left by a driver that was killed

    def train(one: Stage, folder: Path, needed: Mapping[str, str]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while not stop_file(chain.folder).exists():
            over.wait(0.01)
        raise Stopped

    study = open_study(chain.folder, RATIOS)
    search = StudySearch(study, RATIOS, 0, stop=chain.store.stop)
    with pytest.raises(Stopped, match="SIGTERM") as stopped:
        run_trials(chain, search, 3, train, side_by_side=1)
    assert stopped.value.exit_code == 143 and began == ["000-mask_ratio=0.6"]
    assert not stop_file(chain.folder).exists()
    assert "SIGTERM: stopping after a checkpoint" in (chain.folder / JOURNAL).read_text()
    assert latest_trials(study)[0].state == TrialState.RUNNING and trials_left(study, RATIOS, 3) == 3
    again = StudySearch(open_study(chain.folder, RATIOS), RATIOS, 0, stop=chain.store.stop)
    assert again.suggest("t")[trials.TRIAL] == began[0]


def test_a_scoring_is_left_and_not_waited_for(
    labelled: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, over = chain_of(labelled, tmp_path), threading.Event()

    def run(one: Stage, folder: Path, needed: Mapping[str, str]) -> None:
        if one.verb == "evaluate":
            stop_file(chain.folder).touch()
            over.wait(60)

    try:
        with pytest.raises(Stopped):
            run_trial(chain, "000-x", {}, run)
        assert not over.is_set()
    finally:
        over.set()
