"""Optuna study of a sweep: its trials and their outcomes, however often the sweep was killed.

The study's storage, a SQLite file by default, is the only record of what is to be done. Ray Tune's own snapshots of an
experiment are ten seconds apart and lie in separate files, so a kill between two of them would leave trials that only
one side knows of; a transaction of a database is either complete or absent. To resume, a new Tune experiment runs the
trials that the study has left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch
from sqlalchemy.exc import SQLAlchemyError

from anatomask.data.addresses import public_address
from anatomask.errors import UserError, first_line
from anatomask.names import file_name
from anatomask.sweeps.space import Point, Space, Table, as_kept, point_name

METRIC = "dsc"
"""Name of the value that a trial reports: the mean DSC over the data sets."""
SCORES = "scores"
"""Name of the DSC of each data set, which a trial reports too."""
PROBE = "probe"
"""Name of a probe's number, which a trial reports with the probe's DSC in place of its own."""
ERROR = "error"
"""Name of the reason for which a trial fails, which it reports with a value of 0 before it does."""
LEFT = "left"
"""Key that a trial reports, with a value of 0, where it is left to be gone on with."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
"""States of a trial that is not run again."""
TRIAL = "trial"
"""Key of a trial's name in the configuration that Tune passes to it, beside the fields of its point."""

DATABASE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""Errors by which a study's database fails."""
STORAGE_ERRORS = (*DATABASE_ERRORS, OSError)
"""Errors by which a study's storage fails: a database, or a journal file."""
JOURNAL = "journal:"
"""Prefix of a storage that is a journal file."""
LOCKED_SECONDS = 60
"""Seconds to wait for a SQLite file that another program, as a dashboard, holds."""
ROWS = "rows"
NAME = "name"
FIRST = "first"


def open_study(folder: Path, space: Space, storage: str = "") -> optuna.Study:
    """Open the study of the sweep in `folder`, or create it.

    The rows of a table are enqueued, each once, and trials that failed are enqueued again.

    Args:
        folder: folder of the sweep, whose name is the study's.
        space: what varies.
        storage: see `SweepConfig.storage`.

    Raises:
        UserError: the table has changed since the sweep began, the study is damaged, or its storage cannot be used.
    """
    with opened(folder, storage) as place:
        study = optuna.create_study(
            storage=place, study_name=folder.name, direction="maximize", load_if_exists=True, sampler=TPESampler()
        )
    if isinstance(space, Table):
        rows = {name: as_kept(row) for name, row in space.rows.items()}
        if study.user_attrs.get(ROWS, rows) != rows:
            raise UserError(f"{folder} holds a sweep over other rows of this table; choose another --name")
        study.set_user_attr(ROWS, rows)
        present = {trial.user_attrs[NAME] for trial in study.get_trials(deepcopy=False)}
        for name, row in rows.items():
            if name not in present:
                study.enqueue_trial(row, user_attrs={NAME: name})
    for trial in latest_trials(study):
        if trial.state == TrialState.FAIL:
            kept = {name: value for name, value in trial.user_attrs.items() if name != ERROR}
            study.enqueue_trial(trial.params, user_attrs={**kept, FIRST: first_number(trial)})
    return study


def make_way(folder: Path, storage: str, *, overwrite: bool) -> None:
    """Make way in a storage of its own for a sweep that begins: remove the study of its name, if it may be overwritten.

    Raises:
        UserError: there is one and it must stay, or the storage cannot be used.
    """
    with opened(folder, storage) as place:
        if folder.name not in optuna.get_all_study_names(place):
            return
        if not overwrite:
            raise UserError(
                f"--storage {public_address(storage)} holds a study named {folder.name}, and {folder} is new: choose "
                "another --name, or --overwrite the study"
            )
        optuna.delete_study(study_name=folder.name, storage=place)


@contextmanager
def opened(folder: Path, storage: str) -> Iterator[BaseStorage]:
    """Open the storage of a study: SQLite in the sweep's folder, a database, or a journal file.

    Raises:
        UserError: it is damaged or cannot be used; credentials are not shown.
    """
    try:
        if storage.startswith(JOURNAL):
            yield JournalStorage(JournalFileBackend(storage.removeprefix(JOURNAL)))
        else:
            address = storage or f"sqlite:///{folder / 'study.db'}"
            waiting = {"connect_args": {"timeout": LOCKED_SECONDS}} if address.startswith("sqlite") else {}
            yield RDBStorage(address, engine_kwargs=waiting)
    except (*STORAGE_ERRORS, ImportError, ValueError, RuntimeError) as error:
        place, why = _place(folder, storage), _reason(error, storage)
        if not storage:
            raise UserError(f"{place} is damaged{why}; put it back, or --overwrite the sweep") from error
        raise UserError(
            f"{place} cannot be used{why}: give the URL of a database whose driver is "
            "installed, or journal:FILE in a folder that exists"
        ) from None


@contextmanager
def database_failures_told(folder: Path, storage: str) -> Iterator[None]:
    """Turn the failure of a study's database within the block, amid a sweep, into a message.

    Raises:
        UserError: it failed; see `storage_failed`.
    """
    try:
        yield
    except DATABASE_ERRORS as error:
        raise storage_failed(folder, storage, error) from None


def storage_failed(folder: Path, storage: str, error: BaseException) -> UserError:
    """Return the message on a study's storage that failed amid a sweep; credentials are not shown."""
    return UserError(
        f"{_place(folder, storage)} has failed while the sweep ran{_reason(error, storage)}. Nothing is lost: the runs "
        f"of all trials are in {folder.parent / 'store'}. Once it answers again, the same command goes on"
    )


def _place(folder: Path, storage: str) -> str:
    return f"--storage {public_address(storage)}" if storage else str(folder / "study.db")


def _reason(error: BaseException, storage: str) -> str:
    """Return what an error, or the database's own that Optuna wrapped, says, in brackets, unless it has credentials."""
    said = first_line(error.__cause__ or error)
    credentials = storage.partition("://")[2].rpartition("@")[0]
    return "" if any(part and part in said for part in credentials.split(":")) else f" ({said})"


def latest_trials(study: optuna.Study) -> list[FrozenTrial]:
    """List the trials in the order in which they were first made; of one that failed and was retried, the last try."""
    latest = {first_number(trial): trial for trial in study.get_trials(deepcopy=False)}
    return [latest[number] for number in sorted(latest)]


def first_number(trial: FrozenTrial) -> int:
    """Return the number of the first try of a trial."""
    return int(trial.user_attrs.get(FIRST, trial.number))


def shown_name(trial: FrozenTrial) -> str:
    """Return the trial's name in the table of results: the name of its row, or its point."""
    return str(trial.user_attrs.get(NAME, point_name(trial.params)))


def why_failed(trial: FrozenTrial) -> str:
    """Return the reason for which a trial failed; empty where its process died."""
    return str(trial.user_attrs.get(ERROR, "")) if trial.state == TrialState.FAIL else ""


def trial_name(trial: FrozenTrial) -> str:
    """Return the name of the folder of a trial's runs, the same for all its tries: `000-mask_ratio=0.6`."""
    return f"{first_number(trial):03d}-{file_name(shown_name(trial))}"


def trials_left(study: optuna.Study, space: Space, wanted: int) -> int:
    """Count the trials yet to be completed or pruned, of a table's rows or of `wanted` points of a free search."""
    trials = latest_trials(study)
    total = len(trials) if isinstance(space, Table) else max(wanted, len(trials))
    return total - sum(trial.state in ENDED for trial in trials)


class StudySearch(OptunaSearch):
    """Ray Tune's OptunaSearch on a study that outlives the process.

    A trial that a killed process left running is suggested again before any new one. The draw of trial k depends on the
    seed, k and what is known by then, so that resuming draws no earlier point again.
    """

    _ot_study: Any

    def __init__(
        self, study: optuna.Study, space: Space, seed: int, pruner: BasePruner | None = None, stop: Path | None = None
    ) -> None:
        self.study = study
        self.stop = stop
        """File at which no further trial begins."""
        self.study.pruner = pruner or NopPruner()
        self.pruned: set[str] = set()
        """Trials that the pruner stopped, as Tune names them."""
        self.errors: dict[str, str] = {}
        """Reason of each trial that fails, by Tune's name of it."""
        self.seed = seed
        self.rows: Mapping[str, Point] = space.rows if isinstance(space, Table) else {}
        """Rows of a table by name, whose texts alone the study has of some values."""
        self.failure: Exception | None = None
        """Error by which the study's storage failed, which Ray Tune passes on as a text alone."""
        super().__init__(space.suggest, metric=METRIC, mode="max")

    def __getstate__(self) -> dict[str, Any]:
        """Return what may be written to storage: not the study, whose address may hold a password."""
        return {name: value for name, value in vars(self).items() if name not in ("study", "_ot_study", "_ot_trials")}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, since the study outlives the process."""

    def _setup_study(self, mode: str | list[str]) -> None:
        self._ot_study = self.study

    def suggest(self, trial_id: str) -> Any:
        """Return the point of the next trial, with the trial's name, or Tune's word for the end of all trials."""
        if self.stop is not None and self.stop.exists():
            return self.FINISHED
        with self._failure_kept():
            return self._suggest(trial_id)

    def _suggest(self, trial_id: str) -> dict[str, Any]:
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        taken = {trial.number for trial in self._ot_trials.values()}
        left = [trial for trial in running if trial.number not in taken]
        number = left[0].number if left else len(self.study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        self.study.sampler = TPESampler(seed=seed, constant_liar=True)
        if left:
            self._ot_trials[trial_id] = optuna.Trial(self.study, left[0]._trial_id)
        point = super().suggest(trial_id) or {}
        trial = self.study.get_trials(deepcopy=False)[self._ot_trials[trial_id].number]
        return {TRIAL: trial_name(trial), **self.rows.get(trial.user_attrs.get(NAME, ""), point)}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Do nothing: `prunes` records probes, and a trial's own score is recorded at its end."""

    def prunes(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Record what a trial reported if it is a probe, and return whether the pruner stops the trial.

        The reason for which a trial fails is kept until `on_trial_complete`, to which Ray Tune does not pass it.
        """
        if ERROR in result:
            self.errors[trial_id] = result[ERROR]
        if PROBE not in result:
            return False
        with self._failure_kept():
            trial, step = self._ot_trials[trial_id], result[PROBE]
            known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
            if step not in known:  # else by an earlier try, which was killed
                trial.report(result[METRIC], step)
            if trial.should_prune():
                self.pruned.add(trial_id)
        return trial_id in self.pruned

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Record in the study how a trial ended. One that was only stopped stays running, to be resumed."""
        with self._failure_kept():
            self._record(trial_id, result, error)

    def _record(self, trial_id: str, result: Mapping[str, Any] | None, error: bool) -> None:
        trial = self._ot_trials[trial_id]
        if error:
            if trial_id in self.errors:
                trial.set_user_attr(ERROR, self.errors[trial_id])
            self.study.tell(trial, state=TrialState.FAIL)
        elif trial_id in self.pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif result and METRIC in result and PROBE not in result and LEFT not in result:
            prefix = f"{SCORES}/"
            scores = {key.removeprefix(prefix): value for key, value in result.items() if key.startswith(prefix)}
            trial.set_user_attr(SCORES, scores)
            self.study.tell(trial, result[METRIC])

    @contextmanager
    def _failure_kept(self) -> Iterator[None]:
        try:
            yield
        except STORAGE_ERRORS as error:
            self.failure = error
            raise
