"""Many chains of pretraining, finetuning and scoring: `anatomask sweep`, one trial for each point of a space.

A trial pretrains with the fields of its point, finetunes on each data set from those weights, and scores each network
with `evaluate`; its value is the mean DSC over the data sets. Trials are scored on validation cases where a data set
has labelled ones (`--split auto`), so that choosing among them leaves the test cases unseen: score the winner's runs
with `anatomask evaluate --split test` afterwards. The validation cases choose each network's checkpoint as well, so
the table flatters all trials alike.

The same command after a kill goes on: finished trials stay, unfinished ones continue from their runs' checkpoints,
failed ones are tried again. In the sweep's folder:

    study.db                 Optuna's study, which says how each trial ended
    000-mask_ratio=0.6/      links to a trial's runs: pretrain; finetune-<data> and evaluate-<data> for each data set
    sweep.csv                the table
    tune.log, tune/          what Ray Tune says and keeps; the traceback of a trial that failed

The runs themselves lie in the store (`anatomask.runs.store`): what trials or sweeps have in common is made once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray import tune
from rich.console import Console

from anatomask.cluster import DRIVERS, TrainingResources, divide, local_total, running, trial_resources
from anatomask.config import SweepConfig
from anatomask.data.addresses import folder_name, public_address
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.results import SUMMARY_FILE
from anatomask.files import write_text
from anatomask.nested import plain
from anatomask.plugins import plugin_digests
from anatomask.reports.sweeps import SweepRow, paper_ablation, sweep_csv, sweep_table
from anatomask.runs.checkpoint_index import last_step
from anatomask.runs.folder import open_run
from anatomask.stages import evaluate, finetune, pretrain
from anatomask.stages.jobs import all_settings, kept_from_others
from anatomask.sweeps.chain import Chain, build_chain
from anatomask.sweeps.graph import Stage, unique
from anatomask.sweeps.space import Point, Space, Table, load_space
from anatomask.sweeps.study import (
    METRIC,
    SCORES,
    TRIAL,
    StudySearch,
    latest_trials,
    open_study,
    shown_name,
    trial_name,
    trials_left,
)
from anatomask.terminal.printing import remark
from anatomask.terminal.progress import NewLines, last_row, polling, progress_shown
from anatomask.training.journal import JOURNAL, METRICS
from anatomask.training.ray_train import fit

TUNE_LOG = "tune.log"


@dataclass(frozen=True)
class Work:
    """What a sweep has to do."""

    trainings: int
    """Different trainings of all trials whose points are known."""
    done: int
    """Those of them that are finished in the store."""
    updates: int
    """Updates of one trial."""


def check(chain: Chain, space: Space) -> Work:
    """Build the stages of every row of a table, or of one point of a search, before anything is started.

    Raises:
        UserError: what cannot work.
    """
    if chain.config.cluster.address == "local":
        divide(local_total(), chain.config.cluster, chain.config.concurrent)
    trials = [chain.stages(point) for point in space.examples()]
    jobs = {}
    for one in unique(stage for trial in trials for stage in trial.values()):
        if one.verb == "pretrain":
            jobs[one.name] = pretrain.build_job(one.config)
        elif one.verb == "finetune":
            jobs[one.name] = finetune.build_job(replace(one.config, init=finetune.SCRATCH))
    done = sum(last_step(chain.store.path(name)) >= job.total_steps for name, job in jobs.items())
    updates = sum(jobs[stage.name].total_steps for stage in trials[0].values() if stage.name in jobs)
    return Work(len(jobs), done, updates)


def stage(config: SweepConfig, *, overwrite: bool) -> int:
    """Run the sweep, or go on with it; returns 1 when a trial failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = load_space(config.space)
    chain = build_chain(config)
    work = check(chain, space)
    with kept_from_others(chain.folder):
        journal = NewLines(chain.folder / JOURNAL)
        open_run(chain.folder, plain(config), overwrite=overwrite, inputs=chain.inputs)
        for line in journal.read():
            remark(line)
        return run_sweep(chain, space, work.updates)


def run_sweep(chain: Chain, space: Space, updates: int) -> int:
    """The trials that are left, of so many updates each, then the table; returns 1 when a trial failed."""
    config = chain.config
    study = open_study(chain.folder, space)
    left = trials_left(study, space, config.trials)
    failures = {}
    if left:
        total = sum(trial.state == TrialState.COMPLETE for trial in latest_trials(study)) + left
        with running(config.cluster):
            resources = trial_resources(config.cluster, config.concurrent)
            with following_trials(chain, total, updates):
                failures = run_trials(chain, resources, StudySearch(study, space, config.seed), left)
        if trials_left(study, space, config.trials) > len(failures):
            raise KeyboardInterrupt
    report(chain, study, space)
    for name, reason in failures.items():
        Console(stderr=True).print(f"{name}: {reason}", markup=False, highlight=False, style="red", soft_wrap=True)
    return 1 if failures else 0


def run_trials(chain: Chain, resources: TrainingResources, search: StudySearch, count: int) -> dict[str, str]:
    """Run `count` trials; why each of those that failed did, by the trial's name and point."""

    def trial(point: dict[str, Any]) -> None:
        fields = {name: value for name, value in point.items() if name != TRIAL}
        scores = run_trial(chain, resources, point[TRIAL], fields)
        tune.report({METRIC: float(np.mean(list(scores.values()))), SCORES: scores})

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failure is reported at the end, in one message
    # A trial that held a CPU could leave none for the trainers that it starts.
    only_a_driver = tune.PlacementGroupFactory([{DRIVERS: 1}])
    tuner = tune.Tuner(
        tune.with_resources(trial, only_a_driver),
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=count,
            max_concurrent_trials=chain.config.concurrent,
            trial_name_creator=lambda trial: trial.config[TRIAL],
            trial_dirname_creator=lambda trial: trial.config[TRIAL],
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(chain.folder), verbose=0),
    )
    with (chain.folder / TUNE_LOG).open("a", encoding="utf-8", errors="backslashreplace") as log, redirect_stdout(log):
        results = tuner.fit()
    ended = [results[index] for index in range(len(results))]
    return {str((result.config or {})[TRIAL]): _reason(result.error) for result in ended if result.error is not None}


def run_trial(chain: Chain, resources: TrainingResources, trial: str, point: Point) -> dict[str, float]:
    """Run what is not finished of a trial's stages, here or elsewhere. Returns the DSC of each data set.

    Raises:
        UserError: what a stage found wrong.
    """
    stages = chain.stages(point)
    for link, one in stages.items():
        chain.store.link(chain.folder / trial / link, one.name)
        with chain.store.claimed(one.name) as folder:
            run_stage(
                one, folder, {name: str(chain.store.path(need.name)) for name, need in one.needs.items()}, resources
            )
    scores = {}
    for one in stages.values():
        if one.verb == "evaluate":
            folder = chain.store.path(one.name)
            score = Storage(folder).read_json(SUMMARY_FILE)["dsc"]["mean"]
            if score is None:
                raise UserError(f"{folder}: no scored case holds any class")
            scores[folder_name(one.config.data)] = score
    return scores


def run_stage(one: Stage, folder: Path, needed: Mapping[str, str], resources: TrainingResources) -> None:
    """Run a stage in `folder`, from the runs that its settings need, or what of it is not finished."""
    if one.verb == "evaluate":
        for case, reason in evaluate.score_run(replace(one.config, out=str(folder), **needed)).items():
            raise UserError(f"{folder}: {case} could not be scored: {reason}")
        return
    config = replace(one.config, runs=str(folder.parent), name=folder.name, **needed)
    data = Storage(config.data, config.cluster.max_outage, answered=True)  # when the sweep began
    data.exists("dataset.json")  # waits for the end of an outage
    job = replace((pretrain if one.verb == "pretrain" else finetune).build_job(config), columns=all_settings())
    open_run(job.run, plain(config), overwrite=False, inputs={**job.inputs, **plugin_digests()})
    fit(job, resources, config.cluster.max_failures)


def report(chain: Chain, study: optuna.Study, space: Space) -> None:
    """Print the table and write `sweep.csv`."""
    rows = [
        SweepRow(
            name=shown_name(trial),
            folder=trial_name(trial),
            state="failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
            point=trial.params,
            scores=trial.user_attrs.get(SCORES, {}),
            dsc=trial.value if trial.state == TrialState.COMPLETE else None,
        )
        for trial in latest_trials(study)
    ]
    datasets = [folder_name(data) for data in chain.config.finetune_data]
    paper = paper_ablation(space.paper) if isinstance(space, Table) else {}
    write_text(chain.folder / "sweep.csv", sweep_csv(rows, datasets, paper))
    console = Console()
    console.print(sweep_table(rows, datasets, paper))
    splits = ", ".join(f"{folder_name(data)} ({split})" for data, split in chain.splits.items())
    note = f"DSC: mean over the cases of {splits}."
    if paper:
        note += " Paper: STU-Net-B on TotalSegmentator's test cases."
    console.print(note, style="dim", markup=False, highlight=False)
    for line in (chain.folder / "sweep.csv", f"tensorboard --logdir {chain.folder}"):
        console.print(str(line), markup=False, highlight=False, soft_wrap=True)


def plan(config: SweepConfig) -> list[tuple[str, str]]:
    """What would be done, for `--dry-run`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = load_space(config.space)
    chain = build_chain(config)
    work = check(chain, space)
    trials = len(space.rows) if isinstance(space, Table) else config.trials
    return [
        ("sweep", str(chain.folder)),
        ("trials", f"{trials} of {config.space}, {config.concurrent} at once"),
        ("rows", "\n".join(space.rows) if isinstance(space, Table) else "drawn by Optuna"),
        ("updates", f"{trials * work.updates} = {trials} trials x {work.updates}"),
        ("different trainings", _shown_work(space, work)),
        ("scored on", ", ".join(f"{split} of {public_address(data)}" for data, split in chain.splits.items())),
        ("each trial holds", f"1 {DRIVERS}; its trainings, one after another: {_shown_resources(config)}"),
    ]


def _shown_work(space: Space, work: Work) -> str:
    if isinstance(space, Table):
        return f"{work.trainings}, of which {work.done} are finished in the store"
    return "as Optuna draws them; those in the store are not made again"


def _shown_resources(config: SweepConfig) -> str:
    if config.cluster.address != "local":
        return f"a {config.concurrent}th of the cluster" if config.concurrent > 1 else "the cluster"
    resources = divide(local_total(), config.cluster, config.concurrent)
    readers = resources.workers * resources.readers
    each = ", ".join(f"{amount:g} {kind}" for kind, amount in resources.per_worker.items())
    return f"{resources.workers} workers of {each} and {readers} readers of {resources.reader_cpus:g} CPU"


@contextmanager
def following_trials(chain: Chain, trials: int, updates: int) -> Iterator[None]:
    """While trials run (elsewhere), show the updates that they have made and the networks that are scored."""
    networks = trials * len(chain.config.finetune_data)

    def show() -> None:
        scored = len(list(chain.folder.glob(f"[0-9]*/*/{SUMMARY_FILE}")))
        progress.update(bar, completed=updates_made(chain.folder), detail=f"{scored}/{networks} scored")

    with progress_shown() as progress:
        bar = progress.add_task("sweep", total=trials * updates, detail="")
        with polling(show):
            yield


def updates_made(folder: Path) -> int:
    """Updates of all the runs of a sweep."""
    rows = (last_row(metrics) for metrics in folder.glob(f"[0-9]*/*/{METRICS}"))
    return sum(int(row["step"]) for row in rows if row is not None)


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return str(cause) if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"
