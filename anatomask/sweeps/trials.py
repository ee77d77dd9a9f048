"""Trials of a sweep: each runs those of its stages that are not finished in the store, and reports their scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from anatomask.cluster_nodes import trial_holds
from anatomask.data.addresses import folder_name
from anatomask.data.storage import Storage
from anatomask.errors import Stopped, UserError
from anatomask.evaluation.results import SUMMARY_FILE, scored_whole
from anatomask.sweeps.chain import Chain
from anatomask.sweeps.graph import Stage, run_in_order
from anatomask.sweeps.hparams import record_trial
from anatomask.sweeps.space import Point
from anatomask.sweeps.study import ERROR, LEFT, METRIC, PROBE, SCORES, TRIAL, StudySearch, storage_failed
from anatomask.training.stopping import run_or_leave, run_until_stopped, stop_file
from anatomask.weights.files import TENSORS, remove_weights

TUNE_LOG = "tune.log"

RunStage = Callable[[Stage, Path, Mapping[str, str]], None]
"""Function that runs, in a folder, what is not finished of a stage, given the runs that its settings name."""


def run_trials(chain: Chain, search: StudySearch, count: int, run_stage: RunStage, side_by_side: int) -> dict[str, str]:
    """Run `count` trials under Ray Tune; return the reason of each that failed, by the trial's name.

    Args:
        chain: stages of the trials.
        search: the study.
        count: number of trials.
        run_stage: how a stage is run.
        side_by_side: number of finetunings of a trial at the same time.

    Raises:
        UserError: the study's storage failed; trials that ran are left as they are, to be gone on with.
        Stopped: a signal came; the trainings of the trials have written checkpoints.
    """

    def trial(point: dict[str, Any]) -> None:
        fields = {name: value for name, value in point.items() if name != TRIAL}
        try:
            run_probes(chain, point[TRIAL], fields, run_stage, tune.report)
            scores = run_trial(chain, point[TRIAL], fields, run_stage, side_by_side)
        except Stopped:
            tune.report({METRIC: 0.0, LEFT: True})
            return
        except Exception as error:
            tune.report({METRIC: 0.0, ERROR: _reason(error)})
            raise
        tune.report({METRIC: mean_of(scores.values()), SCORES: scores})

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failure is reported at the end, in one message
    # A trial that held a CPU could leave none for the trainers that it starts.
    only_a_driver = tune.PlacementGroupFactory([trial_holds(side_by_side)])
    tuner = tune.Tuner(
        tune.with_resources(trial, only_a_driver),
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=count,
            max_concurrent_trials=chain.config.concurrent,
            trial_name_creator=lambda trial: trial.config[TRIAL],
            trial_dirname_creator=lambda trial: trial.config[TRIAL],
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(chain.folder),
            stop=search.prunes,
            failure_config=tune.FailureConfig(max_failures=1),  # its finished stages are kept
            verbose=0,
        ),
    )
    results: list[tune.ResultGrid] = []
    with (chain.folder / TUNE_LOG).open("a", encoding="utf-8", errors="backslashreplace") as log, redirect_stdout(log):
        try:
            run_until_stopped(lambda: results.append(tuner.fit()), chain.folder)
        except Exception:
            if search.failure is None:
                raise
    if search.failure is not None:
        raise storage_failed(chain.folder, chain.config.storage, search.failure)
    ended = [grid[index] for grid in results for index in range(len(grid))]
    return {str((result.config or {})[TRIAL]): _reason(result.error) for result in ended if result.error is not None}


def run_trial(chain: Chain, trial: str, point: Point, run_stage: RunStage, side_by_side: int = 1) -> dict[str, float]:
    """Run a trial's stages, or wait while others run them; return the DSC of each data set, the mean over seeds.

    First come the pretrainings, one after another, each with all that the trial may take; then the finetunings, of
    which `side_by_side` share that, each followed by its scoring. A stage that waits for another trial's holds neither
    CPU nor GPU, and what it waits for has its own: none waits for ever.

    Raises:
        UserError: a stage refused its input, or no case that was scored holds a class.
    """
    stages = chain.stages(point)

    def run(link: str, one: Stage) -> None:
        run_linked(chain, chain.folder / trial / link, one, run_stage)

    run_in_order({link: one for link, one in stages.items() if one.verb == "pretrain"}, run, 1)
    run_in_order({link: one for link, one in stages.items() if one.verb != "pretrain"}, run, side_by_side)
    dsc, nsd = (mean_scores(chain, stages, metric) for metric in (METRIC, "nsd"))
    each = {f"{METRIC}/{data}": score for data, score in dsc.items()}
    each |= {f"nsd/{data}": score for data, score in nsd.items()}
    record_trial(chain.folder, trial, point, {METRIC: mean_of(dsc.values()), **each})
    return dsc


def run_probes(
    chain: Chain, trial: str, point: Point, run_stage: RunStage, report: Callable[[dict[str, float]], None]
) -> None:
    """Run a trial's probes, each after its share of the pretraining, and report their DSC.

    A probe that is finished in the store is not run again. There is none where another trial or sweep has already taken
    the pretraining further.

    Args:
        chain: stages of the trials.
        trial: name of the trial's folder.
        point: its fields.
        run_stage: how a stage is run.
        report: function of a probe's number and DSC; it does not return if the trial is pruned.
    """
    links = chain.folder / trial
    for probe in chain.probes(point):
        scoring = chain.store.path(probe.scoring.name)
        if not scored_whole(scoring):
            run_linked(chain, links / f"{probe.prefix}-pretrain", probe.weights, run_stage)
        # Kept to this trial: another one that starts from these weights removes them once it has its score.
        with chain.store.claimed(probe.weights.name) as weights:
            for link, one in probe.stages_after.items():
                if not scored_whole(scoring) and (weights / TENSORS).is_file():
                    run_linked(chain, links / link, one, run_stage)
            if scored_whole(scoring):
                remove_weights(weights)
        if scored_whole(scoring):
            score = Storage(scoring).read_json(SUMMARY_FILE)[METRIC]["mean"]
            report({METRIC: 0.0 if score is None else score, PROBE: probe.step})


def run_linked(chain: Chain, link: Path, one: Stage, run_stage: RunStage) -> None:
    """Run what is not finished of a stage in the store, or wait while others run it, and let `link` lead to it.

    Raises:
        Stopped: the sweep, or this training alone, was asked to stop. A training has written a checkpoint; a scoring is
            left where it is, since each case is kept.
    """
    chain.store.link(link, one.name)
    with chain.store.claimed(one.name) as folder:
        needed = {name: str(chain.store.path(need.name)) for name, need in one.needs.items()}
        work = partial(run_stage, one, folder, needed)
        if one.verb == "evaluate":
            run_or_leave(work, stop_file(chain.folder))
        else:
            work()


def mean_scores(chain: Chain, stages: Mapping[str, Stage], metric: str) -> dict[str, float]:
    """Return the score of each data set, the mean over seeds; no NSD where a class that is scored has none.

    Raises:
        UserError: no case that was scored holds a class.
    """
    scores: dict[str, list[float]] = {}
    for one in stages.values():
        if one.verb == "evaluate":
            folder = chain.store.path(one.name)
            score = Storage(folder).read_json(SUMMARY_FILE)[metric]["mean"]
            if score is None and metric == METRIC:
                raise UserError(f"{folder}: no scored case holds any class")
            scores.setdefault(folder_name(one.config.data), []).extend([] if score is None else [score])
    return {name: mean_of(of_seeds) for name, of_seeds in scores.items() if of_seeds}


def mean_of(values: Iterable[float]) -> float:
    """Return the mean."""
    return float(np.mean(list(values)))


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return str(cause) if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"
