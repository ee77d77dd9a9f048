"""Study of a sweep: what a kill, a failure or a stop leaves of it, and where it may lie."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from ray import cloudpickle, tune
from ray.tune.error import TuneError

from anatomask.cli.arguments import parse
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.recipes import RECIPES
from anatomask.reports.studies import Trials, study_figure
from anatomask.sweeps.chain import build_chain
from anatomask.sweeps.space import Search, Space, grid, load_space
from anatomask.sweeps.study import (
    METRIC,
    TRIAL,
    StudySearch,
    database_failures_told,
    latest_trials,
    make_way,
    open_study,
    trials_left,
)
from anatomask.sweeps.trials import run_trials

RATIOS = grid({"method.mask_ratio": (0.6, 0.8, 0.9)})


@contextmanager
def study_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def point_of(suggested: dict) -> tuple:
    return tuple(sorted((name, value) for name, value in suggested.items() if name != TRIAL))


@settings(max_examples=10, deadline=None)
@given(fates=st.lists(st.sampled_from(["complete", "fail", "kill", "stop"]), max_size=8))
def test_every_row_is_completed_once_whatever_happens(fates: list[str]) -> None:
    """A sweep of three rows, two at once, in which trials end, fail, are stopped, or the whole process is killed."""
    with study_folder() as folder:
        completed: list[tuple] = []
        folders: dict[tuple, str] = {}
        while True:
            study = open_study(folder, RATIOS)  # a new process
            if not trials_left(study, RATIOS, 1):
                break
            search = StudySearch(study, RATIOS, seed=0)
            waiting = [f"t{k}" for k in range(trials_left(study, RATIOS, 1))]
            running: list[tuple[str, dict]] = []
            killed = False
            while (waiting or running) and not killed:
                while waiting and len(running) < 2:
                    running.append((waiting[0], search.suggest(waiting.pop(0))))
                identity, suggested = running.pop(0)
                folders.setdefault(point_of(suggested), suggested[TRIAL])
                assert folders[point_of(suggested)] == suggested[TRIAL]
                fate = fates.pop(0) if fates else "complete"
                if fate == "complete":
                    search.on_trial_complete(identity, {METRIC: 0.5, "scores/a": 0.5})
                    completed.append(point_of(suggested))
                elif fate == "fail":
                    search.on_trial_complete(identity, error=True)
                elif fate == "stop":
                    search.on_trial_complete(identity)
                killed = fate == "kill"
        rows = [tuple(row.items()) for row in RATIOS.rows.values()]
        assert sorted(completed) == sorted(rows)
        assert len(set(folders.values())) == 3
        latest = latest_trials(study)
        assert [trial.state for trial in latest] == [TrialState.COMPLETE] * 3
        assert all(trial.user_attrs["scores"] == {"a": 0.5} for trial in latest)
        assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.FAIL}


def test_the_address_of_a_study_is_not_written_to_storage(tmp_path: Path) -> None:
    """Ray Tune writes the search, and what stops trials, beside the runs; the address may hold a password."""
    search = StudySearch(open_study(tmp_path, RATIOS, f"sqlite:///{tmp_path}/hush.db"), RATIOS, seed=0)
    search.suggest("t0")
    search.save_to_dir(str(tmp_path / "tune"))
    assert b"hush" not in cloudpickle.dumps([search, search.prunes])
    assert not (tmp_path / "tune").exists()


def test_a_search_that_is_interrupted_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    space = load_space("search")

    def draw(folder: Path, trials: int, reopen: bool) -> list[dict[str, Any]]:
        folder.mkdir(exist_ok=True)
        drawn: list[dict[str, Any]] = []
        search = StudySearch(open_study(folder, space), space, seed=3)
        while trials_left(search.study, space, trials):
            identity = f"t{len(drawn)}"
            suggested = search.suggest(identity)
            if reopen:  # killed after the suggestion, and gone on with
                search = StudySearch(open_study(folder, space), space, seed=3)
                assert search.suggest(identity) == suggested
            search.on_trial_complete(identity, {METRIC: suggested["method.mask_ratio"]})
            drawn.append(suggested)
        return drawn

    whole = draw(tmp_path / "whole", 13, reopen=False)
    assert draw(tmp_path / "interrupted", 13, reopen=True) == whole
    assert len({point_of(suggested) for suggested in whole}) == 13
    more = draw(tmp_path / "whole", 15, reopen=False)
    assert len(more) == 2
    assert not {point_of(suggested) for suggested in more} & {point_of(suggested) for suggested in whole}


def test_a_kill_amid_a_suggestion_leaves_a_trial_that_is_gone_on_with(tmp_path: Path) -> None:
    def breaks_off(trial: optuna.Trial) -> None:
        trial.suggest_float("method.mask_ratio", 0.4, 0.9)
        raise KeyboardInterrupt

    whole: Space = load_space("search")
    with pytest.raises(KeyboardInterrupt):
        StudySearch(open_study(tmp_path, whole), Search(breaks_off), seed=0).suggest("first")
    study = open_study(tmp_path, whole)
    drawn = study.trials[0].params["method.mask_ratio"]
    suggested = StudySearch(study, whole, seed=0).suggest("second")
    assert suggested["method.mask_ratio"] == drawn
    assert len(suggested) == 8
    assert len(study.trials) == 1


def test_another_table_under_the_same_name_is_refused(tmp_path: Path) -> None:
    open_study(tmp_path, RATIOS)
    with pytest.raises(UserError, match="other rows"):
        open_study(tmp_path, grid({"method.mask_ratio": (0.5,)}))


def test_a_table_may_vary_fields_of_several_numbers(tmp_path: Path) -> None:
    """A study is JSON, which makes lists of tuples: no trial began, and the same command found other rows."""
    crops = grid({"loader.patch_size": ((64, 64, 64), (96, 96, 96)), "optimiser.betas": ([0.9, 0.95],)})
    study = open_study(tmp_path, crops)
    search = StudySearch(study, crops, seed=0)
    points = [search.suggest("t0"), search.suggest("t1")]
    for point, row in zip(points, crops.rows.values(), strict=True):
        assert {name: value for name, value in point.items() if name != TRIAL} == row
    search.on_trial_complete("t0", {METRIC: 0.5})
    search.on_trial_complete("t1", error=True)
    study = open_study(tmp_path, crops)  # the same command again
    search = StudySearch(study, crops, seed=0)
    assert search.suggest("t0") == points[1]
    search.on_trial_complete("t0", {METRIC: 0.6})
    assert trials_left(study, crops, 1) == 0
    assert [point["loader.patch_size"] for point in Trials.of(study).points] == ["(64, 64, 64)", "(96, 96, 96)"]
    assert study_figure(Trials.of(study)) is not None


@pytest.mark.parametrize("address", ["sqlite:///{}/elsewhere.db", "journal:{}/journal.log"])
def test_a_study_may_lie_in_a_storage_of_its_own(address: str, tmp_path: Path) -> None:
    storage, folder = address.format(tmp_path), tmp_path / "ratios"
    make_way(folder, storage, overwrite=False)
    search = StudySearch(open_study(folder, RATIOS, storage), RATIOS, seed=0)
    search.suggest("t0")
    search.on_trial_complete("t0", {METRIC: 0.5})
    assert trials_left(open_study(folder, RATIOS, storage), RATIOS, 1) == 2
    assert trials_left(open_study(tmp_path / "other", RATIOS, storage), RATIOS, 1) == 3
    with pytest.raises(UserError, match="holds a study named ratios"):
        make_way(folder, storage, overwrite=False)
    make_way(folder, storage, overwrite=True)
    assert trials_left(open_study(folder, RATIOS, storage), RATIOS, 1) == 3
    assert not (folder / "study.db").exists()


@pytest.mark.parametrize(
    "address",
    ["nonsense", "oracle9://u:secret@h/db", "postgresql+none://u:secret@h/db", "journal:/nowhere/at/all/journal.log"],
)
def test_a_storage_that_cannot_be_used_is_refused_without_its_password(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--storage .* cannot be used") as caught:
        open_study(tmp_path, RATIOS, address)
    assert "secret" not in str(caught.value)


def close_connections(study: optuna.Study) -> None:
    storage: Any = study._storage
    if (engine := getattr(getattr(storage, "_backend", None), "engine", None)) is not None:  # of a database
        engine.dispose()


class TuneWithoutRay:
    """Ray Tune's loop over one trial after another, in this process; it passes errors of the searcher on as a text."""

    def __init__(self, trial: Any, *, tune_config: Any, run_config: Any) -> None:
        self.search, self.count = tune_config.search_alg, tune_config.num_samples

    def fit(self) -> list[Any]:
        try:
            for number in range(self.count):
                self.search.suggest(f"t{number}")
                self.search.on_trial_complete(f"t{number}", {METRIC: 0.5, "scores/a": 0.5})
        except Exception:
            raise TuneError(traceback.format_exc()) from None
        return []


@pytest.mark.parametrize("moment", ["suggest", "on_trial_complete"])
@pytest.mark.parametrize("address", ["", "sqlite:///{}/elsewhere.db", "journal:{}/journal.log"])
def test_a_storage_that_fails_amid_a_sweep_is_one_message_and_loses_nothing(
    address: str, moment: str, labelled: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call at that moment finds no storage; once it is back, the sweep is gone on with."""
    storage, runs = address.format(tmp_path), tmp_path / "runs"
    argv = ["--recipe", "tiny", "--space", "table3_mask_ratio", "--pretrain-data", labelled.path, "--runs", str(runs)]
    argv += ["--finetune-data", labelled.path, "--name", "ratios", "--storage", storage]
    chain = build_chain(parse("sweep", argv, RECIPES).config)
    chain.folder.mkdir(parents=True)
    place = Path(storage.partition(":")[2].removeprefix("///")) if storage else chain.folder / "study.db"
    study = open_study(chain.folder, RATIOS, storage)
    search, usual = StudySearch(study, RATIOS, seed=0), getattr(StudySearch, moment)
    calls: list[int] = []

    def fail_the_second_time(self: StudySearch, *given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            place.rename(tmp_path / "kept")
            place.mkdir()
            close_connections(study)  # one that is open would still see the file
        return usual(self, *given, **options)

    monkeypatch.setattr(StudySearch, moment, fail_the_second_time)
    monkeypatch.setattr(tune, "Tuner", TuneWithoutRay)
    with pytest.raises(UserError) as caught, database_failures_told(chain.folder, storage):
        run_trials(chain, search, 3, lambda *given: None, 1)
    said = str(caught.value)
    assert str(place) in said and "has failed while the sweep ran (" in said and "the same command goes on" in said
    assert caught.value.__cause__ is None
    place.rmdir()
    (tmp_path / "kept").rename(place)
    monkeypatch.undo()
    assert trials_left(open_study(chain.folder, RATIOS, storage), RATIOS, 1) == 2


def test_a_database_that_fails_before_or_after_the_trials_is_the_same_message(tmp_path: Path) -> None:
    study = open_study(tmp_path / "it", RATIOS, f"sqlite:///{tmp_path}/elsewhere.db")
    (tmp_path / "elsewhere.db").unlink()
    close_connections(study)
    told = pytest.raises(UserError, match=r"elsewhere.db has failed while .*no such table")
    with told, database_failures_told(tmp_path / "it", f"sqlite:///{tmp_path}/elsewhere.db"):
        trials_left(study, RATIOS, 1)
