"""Status of a sweep that runs, here or elsewhere: its trials, the stages that each is in, and the best so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState
from rich import box
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from anatomask.errors import UserError
from anatomask.evaluation.results import SUMMARY_FILE
from anatomask.runs.belongings import is_run
from anatomask.sweeps.study import (
    JOURNAL,
    STORAGE_ERRORS,
    first_number,
    latest_trials,
    opened,
    shown_name,
    trial_name,
    why_failed,
)
from anatomask.terminal.progress import NewLines, last_row, polling, progress_shown
from anatomask.training.journal import JOURNAL as RUN_JOURNAL
from anatomask.training.journal import METRICS

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "waiting",
}
"""State of a trial that is known from the study alone."""


@dataclass(frozen=True)
class TrialStatus:
    """How far a trial is."""

    number: int
    """Number that begins the name of its folder."""
    name: str
    """Name in the tables."""
    state: str
    """complete, pruned, failed with the reason, waiting, or the stages that run: finetune-amos22, evaluate-flare22."""
    runs: bool
    updates: int
    """Updates of all its trainings, those that it shares with other trials among them."""
    scored: int
    """Number of its networks that are scored."""
    dsc: float | None
    """Mean DSC over the data sets, a fraction, of a trial that is complete."""


def read_status(folder: Path, study: optuna.Study) -> list[TrialStatus]:
    """Return the status of each trial of the sweep in `folder`."""
    found = []
    for trial in latest_trials(study):
        runs = folder / trial_name(trial)
        begun = sorted(runs.glob("[!.]*"), key=lambda link: link.lstat().st_mtime)  # links are made as stages begin
        why = why_failed(trial)
        found.append(
            TrialStatus(
                number=first_number(trial),
                name=shown_name(trial),
                state=STATES.get(trial.state, ", ".join(running_stages(begun)) or "starting") + f": {why}" * bool(why),
                runs=trial.state not in STATES,
                updates=updates_made(runs),
                scored=len(list(runs.glob(f"evaluate-*/{SUMMARY_FILE}"))),
                dsc=trial.value if trial.state == TrialState.COMPLETE else None,
            )
        )
    return found


def running_stages(begun: Sequence[Path]) -> list[str]:
    """Name the stages of a trial that run: the last that began, and finetunings and scorings that run beside it.

    Args:
        begun: links of the stages that have begun, in that order.
    """
    names = [link.name for link in begun]

    def runs(link: Path) -> bool:
        verb, _, rest = link.name.partition("-")
        if verb == "finetune":
            return f"evaluate-{rest}" not in names  # which follows at once
        return verb == "evaluate" and not (link / SUMMARY_FILE).is_file()

    return [link.name for link in begun if runs(link)] or names[-1:]


def updates_made(trial: Path) -> int:
    """Count the updates of the runs of a trial."""
    rows = (last_row(metrics) for metrics in trial.glob(f"*/{METRICS}"))
    return sum(int(row["step"]) for row in rows if row is not None)


def best_trial(trials: Sequence[TrialStatus]) -> TrialStatus | None:
    """Return the complete trial with the highest DSC, if there is one."""
    return max((one for one in trials if one.dsc is not None), key=lambda one: one.dsc or 0, default=None)


def status_table(trials: Sequence[TrialStatus]) -> Table:
    """Build a rich table for 80 columns; the best mean is bold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("Trial", overflow="fold")
    table.add_column("State", overflow="fold")
    for title in ("Updates", "Scored", "DSC [%]"):
        table.add_column(title, justify="right", no_wrap=True)
    best = best_trial(trials)
    for one in trials:
        dsc = Text("–" if one.dsc is None else f"{100 * one.dsc:.1f}", style="bold" if one is best else "")
        table.add_row(str(one.number), Text(one.name), Text(one.state), str(one.updates), str(one.scored), dsc)
    return table


def open_sweep(runs: str, name: str, storage: str) -> tuple[Path, optuna.Study]:
    """Open a sweep's folder and its study, to look at them.

    Raises:
        UserError: there is no such sweep, or its study is elsewhere.
    """
    folder = Path(runs) / name
    if not is_run(folder):
        raise UserError(f"--status {name}: {folder} is no sweep's folder; check the name and --runs")
    if not storage and not (folder / "study.db").exists():
        raise UserError(f"--status {name}: {folder} holds no study.db; if the sweep has a --storage, give it here, too")
    if storage.startswith(JOURNAL) and not Path(storage.removeprefix(JOURNAL)).exists():
        raise UserError(f"--status {name}: --storage {storage}: there is no such file; check the path")
    with opened(folder, storage) as place:
        if name not in optuna.get_all_study_names(place):
            raise UserError(f"--status {name}: there is no study of that name in its storage yet")
        return folder, optuna.load_study(study_name=name, storage=place)


@contextmanager
def following_trials(folder: Path, study: optuna.Study, trials: int, updates: int, networks: int) -> Iterator[None]:
    """Show, inside the block, how far the sweep is and, of each trial that runs, in which stage it is.

    The lines that the sweep's journal gains are shown too.

    Args:
        folder: folder of the sweep. Trials may run on other machines.
        study: its study.
        trials: number of trials, of which some may be complete.
        updates: number of updates of one trial.
        networks: number of networks that one trial scores.
    """
    bars: dict[int, TaskID] = {}
    journal = NewLines(folder / RUN_JOURNAL)

    def show(progress: Progress) -> None:
        for line in journal.read():
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        with suppress(*STORAGE_ERRORS):  # the next time, the storage may answer
            show_status(progress)

    def show_status(progress: Progress) -> None:
        status = read_status(folder, study)
        best = best_trial(status)
        leader = f", best {100 * (best.dsc or 0):.1f}" if best else ""
        scored = f"{sum(one.scored for one in status)}/{trials * networks} scored{leader}"
        progress.update(whole, completed=sum(one.updates for one in status), detail=scored)
        for one in status:
            running = one.runs
            if running and one.number not in bars:
                bars[one.number] = progress.add_task(f"trial {one.number}", total=updates, detail="")
            if one.number in bars:
                progress.update(bars[one.number], completed=one.updates, detail=one.state, visible=running)

    with progress_shown() as progress:
        whole = progress.add_task("sweep", total=trials * updates, detail="")
        with polling(lambda: show(progress)):
            yield
