"""Sweeps: `anatomask sweep` runs chains of pretraining, finetuning and scoring, one trial for each point of a space.

A trial pretrains with the fields of its point, finetunes on each data set from those weights, and scores each network
with `evaluate`; its value is the mean DSC over the data sets. Trials are scored on validation cases where a data set
has labelled ones (`--split auto`), so that choosing among them leaves the test cases unseen: score the winner's runs
with `anatomask evaluate --split test` afterwards. The validation cases choose each network's checkpoint as well, so
the table flatters all trials alike.

The same command after a kill continues: finished trials stay, unfinished ones continue from their runs' checkpoints,
failed ones are tried again. The sweep's folder holds:

    study.db                 Optuna's study, which records how each trial ended
    000-mask_ratio=0.6/      links to a trial's runs: pretrain; finetune-<data> and evaluate-<data> for each data set;
                             probe<N>-… of each probe, where trials are pruned
    table.md, table.csv      the tables of `anatomask report`: a row for each trial and data set, and what differs
    sweep.csv                the trials with their fields and scores
    study.png                importance of the fields, parallel coordinates and slices, where a field was varied
    hparams/                 fields and scores of the trials for TensorBoard's HParams, written as each ends
    tune.log, tune/          Ray Tune's output and state; the traceback of a trial that failed

The runs themselves lie in the store (`anatomask.runs.store`): what trials or sweeps have in common is made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import TrialState
from rich.console import Console

from anatomask.cluster import running
from anatomask.cluster_nodes import DRIVERS, node_resources, of_gpu_type, trial_holds
from anatomask.cluster_shares import (
    TrainingResources,
    TrialResources,
    arrange_trial,
    divide,
    this_machine,
    trial_resources,
)
from anatomask.data.addresses import folder_name, public_address
from anatomask.data.storage import Storage
from anatomask.errors import Stopped, UserError
from anatomask.evaluation.placement import place
from anatomask.files import write_text
from anatomask.names import file_name
from anatomask.nested import plain
from anatomask.plugins import plugin_digests
from anatomask.reports.evaluated_runs import EvaluatedRun, read_run
from anatomask.reports.figures import write_figure
from anatomask.reports.result_tables import CSV, MARKDOWN, ResultTables
from anatomask.reports.seeds import by_seed
from anatomask.reports.studies import STUDY_FIGURE, Trials, study_figure
from anatomask.reports.sweeps import SweepRow, as_trials, paper_ablation, scratch_twins, sweep_csv, sweep_notes
from anatomask.runs.belongings import is_run
from anatomask.runs.checkpoint_index import last_step
from anatomask.runs.folder import open_run
from anatomask.runs.store import Store
from anatomask.stages import evaluate, finetune, pretrain
from anatomask.stages.jobs import all_settings, kept_from_others
from anatomask.stages.training import folders
from anatomask.stages.workload import Remaining, workload_rows
from anatomask.sweeps.chain import Chain, build_chain, link_name
from anatomask.sweeps.graph import Stage, unique
from anatomask.sweeps.hparams import HPARAMS
from anatomask.sweeps.probes import pruner_of
from anatomask.sweeps.settings import SweepConfig
from anatomask.sweeps.space import Space, Table, load_space
from anatomask.sweeps.status import following_trials, open_sweep, read_status, status_table
from anatomask.sweeps.study import (
    ENDED,
    SCORES,
    StudySearch,
    database_failures_told,
    latest_trials,
    make_way,
    open_study,
    shown_name,
    trial_name,
    trials_left,
    why_failed,
)
from anatomask.sweeps.trials import run_trials
from anatomask.terminal.printing import remark, show_failures
from anatomask.terminal.progress import NewLines
from anatomask.training.journal import JOURNAL
from anatomask.training.ray_train import fit
from anatomask.weights.files import TENSORS, find_weights, read_weights, write_weights


@dataclass(frozen=True)
class Work:
    """Amount of work of a sweep."""

    trainings: int
    """Number of different trainings of all trials whose points are known."""
    done: int
    """Number of these trainings that are finished in the store."""
    updates: int
    """Number of updates of one trial, those of its probes included."""
    of_probes: int
    """Number of updates of the probes of one trial."""
    left: Mapping[str, Remaining] = field(default_factory=dict)
    """Trainings that are not finished, by the names of their runs in the store."""


def check(chain: Chain, space: Space) -> Work:
    """Build the stages of every row of a table, or of one point of a search, before anything is started.

    Raises:
        UserError: a stage cannot work, or the machine is too small.
    """
    if chain.config.cluster.address == "local":
        local_resources(chain.config)
    points = space.examples()
    trials = [chain.stages(point) for point in points]
    probed = [{probe.finetuning.name: probe.finetuning for probe in chain.probes(point)} for point in points]
    jobs = {}
    for one in unique(stage for trial in (*trials, *probed) for stage in trial.values()):
        if one.until is not None:
            continue
        if one.verb == "pretrain":
            jobs[one.name] = pretrain.build_job(one.config)
        elif one.verb == "finetune":
            jobs[one.name] = finetune.build_job(replace(one.config, init=finetune.SCRATCH))
    configs = {one.name: one.config for trial in (*trials, *probed) for one in trial.values()}
    left = {name: job.total_steps - last_step(chain.store.path(name)) for name, job in jobs.items()}
    of_first = (*trials[0].values(), *probed[0].values())
    updates = sum(jobs[stage.name].total_steps for stage in of_first if stage.name in jobs)
    of_probe = sum(jobs[name].total_steps for name in probed[0])
    remaining = {name: Remaining(configs[name], count) for name, count in left.items() if count > 0}
    return Work(len(jobs), len(jobs) - len(remaining), updates, of_probe, remaining)


def stage(config: SweepConfig, *, overwrite: bool) -> int:
    """Run the sweep, or continue it; return 1 if a trial failed."""
    return run_space(config, load_space(config.space), overwrite=overwrite)


def run_space(config: SweepConfig, space: Space, *, overwrite: bool) -> int:
    """Run the sweep over a space, or continue it; return 1 if a trial failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    chain = build_chain(config)
    work = check(chain, space)
    begins = overwrite or not is_run(chain.folder)
    with kept_from_others(chain.folder), running(config.cluster) if begins else nullcontext():
        if begins:  # a cluster that is too small is told before anything is written or removed
            resources = trial_resources(config.cluster, config.at_once, config.finetuning_cluster())
            if not resources.shared:  # else a case takes one CPU
                scoring = config.finetuning_cluster()
                place(of_gpu_type(node_resources(), scoring.gpu_type), 1, scoring.threads, scoring.wants_gpu)
            if config.storage:
                make_way(chain.folder, config.storage, overwrite=overwrite)
        journal = NewLines(chain.folder / JOURNAL)
        open_run(chain.folder, plain(config), overwrite=overwrite, inputs=chain.inputs)
        for line in journal.read():
            remark(line)
        with database_failures_told(chain.folder, config.storage):
            return run_sweep(chain, space, work.updates)


def run_sweep(chain: Chain, space: Space, updates: int) -> int:
    """Run the trials that are left, of `updates` updates each, then report; return 1 if a trial failed."""
    config = chain.config
    study = open_study(chain.folder, space, config.storage)
    left = trials_left(study, space, config.trials)
    failures = {}
    if left:
        total = sum(trial.state in ENDED for trial in latest_trials(study)) + left
        with running(config.cluster):
            resources = trial_resources(config.cluster, config.at_once, config.finetuning_cluster())
            networks = len(config.finetune_data) * max(1, len(config.seeds))
            with following_trials(chain.folder, study, total, updates, networks):
                run = partial(run_stage, resources=resources, store=chain.store)
                search = StudySearch(study, space, config.seed, pruner_of(config.probe), chain.store.stop)
                failures = run_trials(chain, search, left, run, resources.side_by_side)
        if trials_left(study, space, config.trials) > len(failures):
            raise Stopped
    report(chain, study, space)
    show_failures("sweep", failures)
    return 1 if failures else 0


def run_stage(one: Stage, folder: Path, needed: Mapping[str, str], resources: TrialResources, store: Store) -> None:
    """Run what is not finished of a stage in `folder` of `store`; `needed` are the runs that its settings name.

    Beside other trainings, the scoring of a case takes one CPU, so that it need not wait until a node has several.

    Raises:
        UserError: the stage refused its input, or a case could not be scored.
        Stopped: a training was asked to stop, and has written a checkpoint.
    """
    if one.verb == "evaluate":
        threads = 1 if resources.shared else one.config.cluster.threads
        cluster = replace(one.config.cluster, threads=threads)
        config = replace(one.config, cluster=cluster, out=str(folder), **needed)
        for case, reason in evaluate.score_run(config).items():
            raise UserError(f"{folder}: {case} could not be scored: {reason}")
        return
    if one.until is not None:
        keep_weights(one, folder, resources, store)
        return
    train(one, folder, needed, resources, store)


def keep_weights(one: Stage, folder: Path, resources: TrialResources, store: Store) -> None:
    """Copy the weights of a pretraining after its epoch `until` into `folder`, having trained it as far as that.

    Where it has already gone further, there is nothing to copy.
    """
    whole = replace(one, until=None)
    if (folder / TENSORS).is_file():
        return
    with store.claimed(whole.name) as run:
        step = train(whole, run, {}, resources, store, one.until)
        if last_step(run) == step:
            weights = read_weights(find_weights(run))
            write_weights(folder, weights.tensors, weights.header)


def train(
    one: Stage,
    folder: Path,
    needed: Mapping[str, str],
    resources: TrialResources,
    store: Store,
    until: int | None = None,
) -> int:
    """Run what is not finished of a training in `folder`, to its end or to the end of epoch `until`.

    Returns:
        The last update of that.
    """
    config = replace(one.config, runs=str(folder.parent), name=folder.name, **needed)
    for data in folders(config):
        answered = Storage(data, config.cluster.max_outage, answered=True)  # when the sweep began
        answered.exists("dataset.json")  # waits for the end of an outage
    pretraining = one.verb == "pretrain"
    job = replace((pretrain if pretraining else finetune).build_job(config), columns=all_settings())
    job = replace(job, until=None if until is None else until * job.steps_per_epoch, stop=store.stop)
    if last_step(job.run) < job.last_update:  # else its environment stays that in which it was trained
        taken = resources.pretraining if pretraining else resources.finetuning
        inputs = {**job.inputs, **plugin_digests()}
        open_run(job.run, plain(config), overwrite=False, inputs=inputs, resources=asdict(taken))
        fit(job, taken, config.cluster.max_failures)
    return job.last_update


def report(chain: Chain, study: optuna.Study, space: Space) -> None:
    """Print the tables of `anatomask report` with the trials as rows, and write them and `sweep.csv`."""
    rows = [
        SweepRow(
            name=shown_name(trial),
            folder=trial_name(trial),
            state="failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
            point=trial.params,
            scores=trial.user_attrs.get(SCORES, {}),
            dsc=trial.value if trial.state == TrialState.COMPLETE else None,
            error=why_failed(trial),
        )
        for trial in latest_trials(study)
    ]
    datasets = [folder_name(data) for data in chain.config.finetune_data]
    paper = paper_ablation(space.paper) if isinstance(space, Table) else {}
    write_text(chain.folder / "sweep.csv", sweep_csv(rows, datasets, paper))
    scored = [as_trials(rows, read_results(chain, rows, data)) for data in datasets]
    trials = [run for runs in scored for run in runs]
    twins = scratch_twins(chain.folder.parent, trials)
    tables = ResultTables.of(by_seed([*trials, *twins]))
    further = list(sweep_notes(rows, trials, twins, paper))
    tables.write(Storage(chain.folder), further)
    names = [MARKDOWN, CSV, "sweep.csv"]
    if (figure := study_figure(Trials.of(study))) is not None:
        write_figure(figure, chain.folder / STUDY_FIGURE)
        names.append(STUDY_FIGURE)
    console = Console()
    tables.show(console, further)
    for line in (
        *(chain.folder / name for name in names),
        f"tensorboard --logdir {chain.folder}",
        f"tensorboard --logdir {chain.folder / HPARAMS}  (HParams: the trials' fields and scores)",
    ):
        console.print(str(line), markup=False, highlight=False, soft_wrap=True)


def read_results(chain: Chain, rows: Sequence[SweepRow], data: str) -> dict[str, list[EvaluatedRun]]:
    """Read the scored networks of one data set by their trials' folders; a remark names those that cannot be read."""
    found: dict[str, list[EvaluatedRun]] = {}
    for row in rows:
        folder = chain.folder / row.folder
        for seed in (chain.config.seeds or (None,)) if row.dsc is not None else ():
            evaluated, finetuned = (link_name(f"{verb}-{file_name(data)}", seed) for verb in ("evaluate", "finetune"))
            try:
                run = read_run(str(folder / evaluated))
            except UserError as error:  # the score itself is in the study
                remark(f"{row.name} is left out of the tables: {error}")
                continue
            found.setdefault(row.folder, []).append(replace(run, folder=folder / finetuned))
    return found


def show_status(runs: str, name: str, storage: str) -> int:
    """Print how far a sweep is that runs here or elsewhere, without touching it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Console().print(status_table(read_status(*open_sweep(runs, name, storage))))
    return 0


def plan(config: SweepConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = load_space(config.space)
    chain = build_chain(config)
    work = check(chain, space)
    trials = len(space.rows) if isinstance(space, Table) else config.trials
    return [
        ("sweep", str(chain.folder)),
        ("trials", f"{trials} of {config.space}, {config.concurrent} at once"),
        *(
            [("seeds", f"{', '.join(map(str, config.seeds))}: each trial's chain runs with each")]
            if config.seeds
            else []
        ),
        ("rows", "\n".join(space.rows) if isinstance(space, Table) else "drawn by Optuna"),
        ("updates", f"{trials * work.updates} = {trials} trials x {work.updates}"),
        ("different trainings", _shown_work(space, work)),
        *_shown_probes(config, work),
        *workload_rows(list(work.left.values()), 1 if isinstance(space, Table) else trials, chain.store),
        ("scored on", ", ".join(f"{split} of {public_address(data)}" for data, split in chain.splits.items())),
        ("each trial holds", _shown_resources(config)),
    ]


def _shown_probes(config: SweepConfig, work: Work) -> list[tuple[str, str]]:
    if not config.probe.shares:
        return []
    shares = ", ".join(f"{100 * share:g}" for share in config.probe.shares)
    return [
        (
            "probes",
            f"{work.of_probes} of a trial's {work.updates} updates, and their scoring: finetunings of "
            f"{config.probe.epochs} epochs on {public_address(config.finetune_data[0])} after {shares} % of the "
            f"pretraining. Pruned by {config.probe.prune}; all figures here are those of trials that go on to the end",
        )
    ]


def _shown_work(space: Space, work: Work) -> str:
    if isinstance(space, Table):
        return f"{work.trainings}, of which {work.done} are finished in the store"
    return "as Optuna draws them; those in the store are not made again"


def local_resources(config: SweepConfig) -> TrialResources:
    """Return what a trial takes of this machine.

    Raises:
        UserError: the machine is too small.
    """
    at_once, nodes = config.at_once, this_machine()
    return arrange_trial(lambda number: divide(nodes, config.cluster, at_once.trials, number), at_once)


def _shown_resources(config: SweepConfig) -> str:
    if config.cluster.address != "local":
        share = f"1/{config.concurrent} of the cluster" if config.concurrent > 1 else "the cluster"
        number = config.finetunings_at_once or "as many as there are GPUs for"
        return (
            f"for each training at the same time {_shown_holding(1)}; {share}; finetunings side by side: {number}\n"
            f"pretraining: {config.cluster.places()}\nfinetuning: {config.finetuning_cluster().places()}"
        )
    resources = local_resources(config)
    holding, alone = _shown_holding(resources.side_by_side), _shown_training(resources.pretraining)
    if resources.side_by_side == 1:
        return f"{holding}; its trainings, one after another: {alone}"
    beside = _shown_training(resources.finetuning)
    return f"{holding}; its pretraining: {alone}; {resources.side_by_side} finetunings side by side, each: {beside}"


def _shown_holding(side_by_side: int) -> str:
    holds = trial_holds(side_by_side)
    return f"{holds[DRIVERS]:g} {DRIVERS} and {holds['memory'] / 1e9:g} GB"


def _shown_training(resources: TrainingResources) -> str:
    readers = resources.workers * resources.readers
    each = ", ".join(f"{amount:g} {kind}" for kind, amount in resources.per_worker.items())
    return f"{resources.workers} workers of {each} and {readers} readers of {resources.reader_cpus:g} CPU"
