"""Probes of trials: after which shares they come, what is pruned by them, and that they change nothing else."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import SuccessiveHalvingPruner
from optuna.trial import TrialState

from anatomask.cli.arguments import parse
from anatomask.cluster_shares import TrainingResources
from anatomask.data.shards import PreparedDataset
from anatomask.recipes import RECIPES
from anatomask.stages.sweep import check, plan, run_stage
from anatomask.sweeps.chain import Chain, build_chain
from anatomask.sweeps.graph import Stage
from anatomask.sweeps.probes import pruner_of
from anatomask.sweeps.settings import ProbeConfig
from anatomask.sweeps.space import grid
from anatomask.sweeps.status import read_status
from anatomask.sweeps.study import METRIC, PROBE, StudySearch, latest_trials, open_study, trials_left
from anatomask.sweeps.trials import run_probes, run_trial
from anatomask.training.job import TrainingJob
from anatomask.weights.files import find_weights, read_weights
from tests.bad_input.world import OF_TRIAL, train_here, without_ray
from tests.sweeps.test_sweep import SETTINGS

RATIOS = grid({"method.mask_ratio": (0.5, 0.6, 0.7, 0.8, 0.9)})


def chain_of(data: PreparedDataset, runs: Path, *more: str) -> Chain:
    argv = [*SETTINGS[:5], data.path, "--finetune-data", data.path, "--runs", str(runs)]
    return build_chain(parse("sweep", [*argv, "--probe.prune", "asha", *more], RECIPES).config)


def test_probes_come_after_shares_of_the_pretraining_and_are_shared(labelled: PreparedDataset, tmp_path: Path) -> None:
    chain = chain_of(labelled, tmp_path, "--pretrain.training.epochs", "40", "--seeds", "0", "1", "--name", "one")
    point = {"method.mask_ratio": 0.7}
    probes, stages = chain.probes(point), chain.stages(point)
    assert [(probe.step, probe.weights.until) for probe in probes] == [(1, 5), (2, 10), (4, 20)]
    for probe in probes:
        assert replace(probe.weights, until=None).key == stages["pretrain-seed0"].key != probe.weights.key
        assert probe.finetuning.config.training.epochs == 10 and probe.finetuning.needs == {"init": probe.weights}
        assert probe.scoring.needs == {"run": probe.finetuning}
    names = {stage.name for probe in probes for stage in probe.stages.values()}
    assert len(names) == 9 and not names & {stage.name for stage in stages.values()}
    other = chain_of(labelled, tmp_path, "--pretrain.training.epochs", "40", "--name", "other", "--probe.factor", "4")
    assert [probe.scoring.name for probe in other.probes(point)] == [probes[0].scoring.name, probes[2].scoring.name]
    assert len(chain.probes(point | {"pretrain.training.epochs": 2, "optimiser.warmup_epochs": 0})) == 1
    assert chain.probes({"finetune.init": "scratch"}) == []
    assert replace(chain, config=replace(chain.config, probe=ProbeConfig())).probes(point) == []


@pytest.mark.slow
def test_the_dry_run_counts_probes(labelled: PreparedDataset, tmp_path: Path) -> None:
    more = ["--pretrain.training.epochs", "16", "--pretrain.training.steps-per-epoch", "3", "--probe.epochs", "4"]
    more += ["--finetune.training.epochs", "30", "--finetune.training.steps-per-epoch", "2"]
    chain = chain_of(labelled, tmp_path, *more)
    work = check(chain, RATIOS)
    assert (work.of_probes, work.updates) == (3 * 4 * 2, 16 * 3 + 30 * 2 + 3 * 4 * 2)
    assert (work.trainings, len(work.left)) == (5 * 5, 5 * 5)
    rows = dict(plan(replace(chain.config, space="table3_mask_ratio")))
    assert rows["probes"].startswith("24 of a trial's 132 updates") and "after 12.5, 25, 50 %" in rows["probes"]


@settings(max_examples=15, deadline=None)
@given(
    scores=st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=5, max_size=5),
    killed=st.sets(st.integers(0, 4)),
)
def test_asha_prunes_trials_as_optuna_prunes_them(scores: list[tuple[int, int, int]], killed: set[int]) -> None:
    """Against Optuna's own loop. Some trials are killed after their first probe, which the next process repeats."""
    config = ProbeConfig(prune="asha")
    theirs = optuna.create_study(
        direction="maximize", pruner=SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    )

    def objective(trial: optuna.Trial) -> float:
        for step, value in zip((1, 2, 4), scores[trial.number], strict=True):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 0.5

    theirs.optimize(objective, n_trials=5)
    study = optuna.create_study(direction="maximize")
    for row in RATIOS.rows.values():
        study.enqueue_trial(dict(row))
    for number in range(5):
        search = StudySearch(study, RATIOS, 0, pruner_of(config))
        search.suggest("t")
        if number in killed:
            search.prunes("t", {METRIC: scores[number][0], PROBE: 1})  # and the decision is lost with the process
            search = StudySearch(study, RATIOS, 0, pruner_of(config))
            search.suggest("again")
        name, last = next(iter(search._ot_trials)), dict[str, float]()
        for step, value in zip((1, 2, 4), scores[number], strict=True):
            last = {METRIC: value, PROBE: step}
            if name in search.pruned or search.prunes(name, last):
                break
        else:
            last = {METRIC: 0.5, "scores/a": 0.5}
            assert not search.prunes(name, last)
        search.on_trial_complete(name, last)
    assert [trial.state for trial in study.trials] == [trial.state for trial in theirs.trials]
    assert [trial.intermediate_values for trial in study.trials] == [
        trial.intermediate_values for trial in theirs.trials
    ]
    assert trials_left(study, RATIOS, 5) == 0


def test_asha_compares_probes_after_the_same_share_of_the_last_tries_alone(tmp_path: Path) -> None:
    study = open_study(tmp_path, RATIOS)
    search = StudySearch(study, RATIOS, 0, pruner_of(ProbeConfig(prune="asha")))
    search.suggest("late")
    assert not search.prunes("late", {METRIC: 0.7, PROBE: 2})  # the only one after two shares
    search.suggest("first")
    assert not search.prunes("first", {METRIC: 0.6, PROBE: 1})  # and the only one after one
    search.on_trial_complete("first", error=True)
    study = open_study(tmp_path, RATIOS)
    search = StudySearch(study, RATIOS, 0, pruner_of(ProbeConfig(prune="asha")))
    search.suggest("late")
    for name, value in (("b", 0.5), ("c", 0.4)):
        search.suggest(name)
        assert search.prunes(name, {METRIC: value, PROBE: 1}) == (name == "c")  # the failed try of 0.6 counts no more


def test_median_compares_probes_after_the_same_share_of_the_last_tries_alone(tmp_path: Path) -> None:
    """Optuna's own takes the best of a trial's probes, after whatever share."""
    pruner = pruner_of(ProbeConfig(prune="median", startup=2))
    search = StudySearch(open_study(tmp_path, RATIOS), RATIOS, 0, pruner)

    def probed(name: str, *values: float) -> list[bool]:
        search.suggest(name)
        return [search.prunes(name, {METRIC: value, PROBE: 2**number}) for number, value in enumerate(values)]

    for name, first in (("a", 0.5), ("b", 0.1)):  # fewer than two are complete
        assert probed(name, first, 0.6) == [False, False]
        search.on_trial_complete(name, {METRIC: 0.7})
    assert probed("c", 0.65, 0.4) == [False, True]  # the others have 0.6 there
    search.on_trial_complete("c", {METRIC: 0.4, PROBE: 2})
    assert probed("d", 0.6) == [False]
    search.on_trial_complete("d", error=True)
    search = StudySearch(open_study(tmp_path, RATIOS), RATIOS, 0, pruner)
    assert probed("e", 0.52, 0.5, 0.1) == [False, True, True]  # of 0.5, 0.1 and 0.65: the failed 0.6 counts no more


def test_a_pruned_trial_is_not_run_again_and_one_that_was_stopped_in_a_probe_is(tmp_path: Path) -> None:
    search = StudySearch(open_study(tmp_path, RATIOS), RATIOS, 0, pruner_of(ProbeConfig(prune="asha")))
    for name, value in (("a", 0.6), ("b", 0.5), ("c", 0.9)):
        search.suggest(name)
        assert search.prunes(name, {METRIC: value, PROBE: 1}) == (name == "b")
    for name in ("b", "c"):  # c: Ctrl-C
        search.on_trial_complete(name, {METRIC: 0.5, PROBE: 1})
    search.on_trial_complete("a", {METRIC: 0.4, "scores/x": 0.4})
    study = open_study(tmp_path, RATIOS)
    assert [trial.state for trial in latest_trials(study)][:3] == [
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING
    ]  # fmt: skip
    assert trials_left(study, RATIOS, 1) == 3
    assert [one.state for one in read_status(tmp_path, study)] == ["complete", "pruned", "starting", *["waiting"] * 2]
    assert [one.dsc for one in read_status(tmp_path, study)][:2] == [0.4, None]


def test_a_probe_that_comes_too_late_or_is_there_is_not_made(labelled: PreparedDataset, tmp_path: Path) -> None:
    """Of three probes, the first is finished in the store; past the second, the pretraining has already gone on."""
    chain = chain_of(labelled, tmp_path, "--pretrain.training.epochs", "40")
    first, second, third = chain.probes({})
    ran: list[str] = []

    def run(one: Stage, folder: Path, needed: Mapping[str, str]) -> None:
        ran.append(one.name)
        folder.mkdir(parents=True)
        if one.name == third.weights.name:
            (folder / "model.safetensors").touch()
        if one.verb == "evaluate":
            (folder / "summary.json").write_text(json.dumps({"dsc": {"mean": 0.25}}))

    run(first.scoring, chain.store.path(first.scoring.name), {})
    reported: list[dict[str, float]] = []
    run_probes(chain, "000-x", {}, run, reported.append)
    assert ran[1:] == [second.weights.name, *(stage.name for stage in third.stages.values())]
    assert reported == [{METRIC: 0.25, PROBE: 1}, {METRIC: 0.25, PROBE: 4}]
    assert not (chain.store.path(third.weights.name) / "model.safetensors").exists()
    assert sorted(path.name for path in (chain.folder / "000-x").iterdir()) == [
        "probe2-pretrain", "probe4-evaluate", "probe4-finetune", "probe4-pretrain"
    ]  # fmt: skip


def test_a_trial_that_has_its_score_leaves_the_weights_to_one_that_starts_from_them(
    labelled: PreparedDataset, tmp_path: Path
) -> None:
    """Two trials share a pretraining and differ in their finetunings; the second begins while the first ends."""
    chain = chain_of(labelled, tmp_path, "--pretrain.training.epochs", "2", "--probe.first", "0.5")
    points = [{"finetune.optimiser.lr": rate} for rate in (1e-3, 1e-4)]
    first, second = (chain.probes(point)[0] for point in points)
    assert first.weights.name == second.weights.name and first.scoring.name != second.scoring.name
    training, scored = threading.Event(), threading.Event()

    def run(one: Stage, folder: Path, needed: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if one.verb == "pretrain":
            (folder / "model.safetensors").touch()
        if one.name == second.finetuning.name:
            training.set()
            scored.wait(2)  # the first would have removed the weights by then
            assert (Path(needed["init"]) / "model.safetensors").is_file()
        if one.verb == "evaluate":
            (folder / "summary.json").write_text(json.dumps({"dsc": {"mean": 0.25}}))

    run(first.scoring, chain.store.path(first.scoring.name), {})  # its last moment
    reported: list[dict[str, float]] = []
    with ThreadPoolExecutor(2) as pool:
        later = pool.submit(run_probes, chain, "001-y", points[1], run, reported.append)
        assert training.wait(30)
        pool.submit(run_probes, chain, "000-x", points[0], run, reported.append).result()
        scored.set()
        later.result()
    assert reported == [{METRIC: 0.25, PROBE: 1}] * 2
    assert not (chain.store.path(first.weights.name) / "model.safetensors").exists()


@pytest.mark.slow
def test_probes_change_no_weight_of_the_trial_and_are_made_once(
    labelled: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials in this process, without Ray; "two", the case that is scored, is a copy of "one"."""
    for path in [path for path in Path(labelled.path).rglob("one*") if path.is_file()]:
        shutil.copy(path, path.with_name(path.name.replace("one", "two")))
    trained: list[tuple[str, int]] = []

    def fit(job: TrainingJob, resources: TrainingResources, max_failures: int) -> None:
        trained.append((job.run.name.partition("-")[0], job.last_update))
        train_here(job, resources, max_failures)

    without_ray(monkeypatch, fit)
    monkeypatch.setattr("anatomask.stages.sweep.fit", fit)
    more = ["--pretrain.splits", "train", "--pretrain.method.decoder-width", "16", "--pretrain.training.epochs", "2"]
    more += ["--finetune.training.epochs", "1", "--probe.first", "0.5", "--probe.epochs", "1"]
    for stage in ("pretrain", "finetune"):
        more += [f"--{stage}.network.base", "2", f"--{stage}.loader.patch-size", "32", "32", "32"]
        more += [f"--{stage}.training.steps-per-epoch", "2", f"--{stage}.optimiser.warmup-epochs", "0"]
        more += [f"--{stage}.training.batch-size", "1"]
    weights = []
    for runs in ("probed", "plain"):
        chain = chain_of(labelled, tmp_path / runs, *more, "--name", "it")
        run = partial(run_stage, resources=OF_TRIAL, store=chain.store)
        reported: list[dict[str, float]] = []
        if runs == "probed":
            for trial in ("000", "001"):
                run_probes(chain, trial, {}, run, reported.append)
            assert trained == [("pretrain", 2), ("finetune", 2)]
            assert len(reported) == 2 and reported[0] == reported[1] and reported[0][PROBE] == 1
        run_trial(chain, "000", {}, run)
        weights.append(read_weights(find_weights(chain.folder / "000" / "pretrain")).tensors)
    assert trained[2:] == [("pretrain", 4), ("finetune", 2)] * 2
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
