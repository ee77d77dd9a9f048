"""Trials of a sweep: each runs those of its stages that are not finished in the store, and reports their scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from anatomask.cluster_nodes import DRIVER_BYTES, DRIVERS
from anatomask.data.addresses import folder_name
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.results import SUMMARY_FILE
from anatomask.sweeps.chain import Chain
from anatomask.sweeps.graph import Stage
from anatomask.sweeps.space import Point
from anatomask.sweeps.study import METRIC, SCORES, TRIAL, StudySearch, storage_failed

TUNE_LOG = "tune.log"

RunStage = Callable[[Stage, Path, Mapping[str, str]], None]
"""Function that runs, in a folder, what is not finished of a stage, given the runs that its settings name."""


def run_trials(chain: Chain, search: StudySearch, count: int, run_stage: RunStage) -> dict[str, str]:
    """Run `count` trials under Ray Tune; return the reason of each that failed, by the trial's name.

    Raises:
        UserError: the study's storage failed; trials that ran are left as they are, to be gone on with.
    """

    def trial(point: dict[str, Any]) -> None:
        fields = {name: value for name, value in point.items() if name != TRIAL}
        scores = run_trial(chain, point[TRIAL], fields, run_stage)
        tune.report({METRIC: float(np.mean(list(scores.values()))), SCORES: scores})

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failure is reported at the end, in one message
    # A trial that held a CPU could leave none for the trainers that it starts.
    only_a_driver = tune.PlacementGroupFactory([{DRIVERS: 1, "memory": DRIVER_BYTES}])
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
        try:
            results = tuner.fit()
        except Exception:
            if search.failure is None:
                raise
    if search.failure is not None:
        raise storage_failed(chain.folder, chain.config.storage, search.failure)
    ended = [results[index] for index in range(len(results))]
    return {str((result.config or {})[TRIAL]): _reason(result.error) for result in ended if result.error is not None}


def run_trial(chain: Chain, trial: str, point: Point, run_stage: RunStage) -> dict[str, float]:
    """Run a trial's stages, or wait while others run them; return the DSC of each data set, the mean over seeds.

    Raises:
        UserError: a stage refused its input, or no case that was scored holds a class.
    """
    stages = chain.stages(point)
    for link, one in stages.items():
        chain.store.link(chain.folder / trial / link, one.name)
        with chain.store.claimed(one.name) as folder:
            run_stage(one, folder, {name: str(chain.store.path(need.name)) for name, need in one.needs.items()})
    scores: dict[str, list[float]] = {}
    for one in stages.values():
        if one.verb == "evaluate":
            folder = chain.store.path(one.name)
            score = Storage(folder).read_json(SUMMARY_FILE)["dsc"]["mean"]
            if score is None:
                raise UserError(f"{folder}: no scored case holds any class")
            scores.setdefault(folder_name(one.config.data), []).append(score)
    return {name: float(np.mean(of_seeds)) for name, of_seeds in scores.items()}


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return str(cause) if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"
