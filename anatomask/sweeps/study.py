"""The Optuna study of a sweep: which trials there are and how they ended, however often the sweep was killed.

The study's SQLite file alone says what is to be done. Ray Tune's own snapshots of an experiment are ten seconds apart
and lie in files apart from it, so a kill between two of them would leave trials that only one side knows of; a
transaction of SQLite has happened or has not. Going on therefore is a new Tune experiment over what the study has left.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch
from sqlalchemy.exc import DatabaseError

from anatomask.errors import UserError
from anatomask.names import file_name
from anatomask.sweeps.space import Space, Table, point_name

METRIC = "dsc"
"""What a trial reports: the mean DSC over the data sets."""
SCORES = "scores"
"""And the DSC of each data set."""
TRIAL = "trial"
"""Key of a trial's name in what Tune hands to it, beside the fields of its point."""

ROWS = "rows"
NAME = "name"
FIRST = "first"


def open_study(folder: Path, space: Space) -> optuna.Study:
    """The study in `folder`, made when it is not there yet.

    The rows of a table are enqueued, each once, and trials that failed are enqueued again.

    Raises:
        UserError: the table is another one than when the sweep began, or the study is damaged.
    """
    path = folder / "study.db"
    try:
        storage = RDBStorage(f"sqlite:///{path}")
        study = optuna.create_study(
            storage=storage, study_name=folder.name, direction="maximize", load_if_exists=True, sampler=TPESampler()
        )
    except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(f"{path} is damaged ({_first_line(error)}); put it back, or --overwrite the sweep") from error
    if isinstance(space, Table):
        rows = {name: dict(row) for name, row in space.rows.items()}
        if study.user_attrs.get(ROWS, rows) != rows:
            raise UserError(f"{folder} holds a sweep over other rows of this table; choose another --name")
        study.set_user_attr(ROWS, rows)
        present = {trial.user_attrs[NAME] for trial in study.get_trials(deepcopy=False)}
        for name, row in rows.items():
            if name not in present:
                study.enqueue_trial(row, user_attrs={NAME: name})
    for trial in latest_trials(study):
        if trial.state == TrialState.FAIL:
            study.enqueue_trial(trial.params, user_attrs={**trial.user_attrs, FIRST: first_number(trial)})
    return study


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def latest_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials in the order in which they were first made; of one that failed and was enqueued again the last try."""
    latest = {first_number(trial): trial for trial in study.get_trials(deepcopy=False)}
    return [latest[number] for number in sorted(latest)]


def first_number(trial: FrozenTrial) -> int:
    """Number of the first try of a trial."""
    return int(trial.user_attrs.get(FIRST, trial.number))


def shown_name(trial: FrozenTrial) -> str:
    """What the table of results calls a trial: the name of its row, or its point."""
    return str(trial.user_attrs.get(NAME, point_name(trial.params)))


def trial_name(trial: FrozenTrial) -> str:
    """Name of the folder of a trial's runs, the same for all its tries: `000-mask_ratio=0.6`."""
    return f"{first_number(trial):03d}-{file_name(shown_name(trial))}"


def trials_left(study: optuna.Study, space: Space, wanted: int) -> int:
    """Trials that are yet to be completed, of a table's rows or of `wanted` points of a free search."""
    trials = latest_trials(study)
    total = len(trials) if isinstance(space, Table) else max(wanted, len(trials))
    return total - sum(trial.state == TrialState.COMPLETE for trial in trials)


class StudySearch(OptunaSearch):
    """Ray Tune's OptunaSearch on a study that outlives the process.

    A trial that a killed process left running is suggested again before any new one. The draw of trial k depends on
    the seed, k and what is known by then, so that going on draws no earlier point again.
    """

    _ot_study: Any

    def __init__(self, study: optuna.Study, space: Space, seed: int) -> None:
        self.study = study
        self.seed = seed
        super().__init__(space.suggest, metric=METRIC, mode="max")

    def _setup_study(self, mode: str | list[str]) -> None:
        self._ot_study = self.study

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The point of the next trial, and the trial's name."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        taken = {trial.number for trial in self._ot_trials.values()}
        left = [trial for trial in running if trial.number not in taken]
        number = left[0].number if left else len(self.study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        self.study.sampler = TPESampler(seed=seed, constant_liar=True)
        if left:
            self._ot_trials[trial_id] = optuna.Trial(self.study, left[0]._trial_id)
        point = super().suggest(trial_id) or {}
        number = self._ot_trials[trial_id].number
        return {TRIAL: trial_name(self.study.get_trials(deepcopy=False)[number]), **point}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A trial reports once, at its end."""

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended. One that was merely stopped stays running, to be gone on with."""
        trial = self._ot_trials[trial_id]
        if error:
            self.study.tell(trial, state=TrialState.FAIL)
        elif result and METRIC in result:
            prefix = f"{SCORES}/"
            scores = {key.removeprefix(prefix): value for key, value in result.items() if key.startswith(prefix)}
            trial.set_user_attr(SCORES, scores)
            self.study.tell(trial, result[METRIC])
