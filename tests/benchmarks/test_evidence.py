"""What the experiment decides from its records, and which folder it takes for its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from evidence_design import Finetuning, Pretraining, Record, Scale, mean_dsc, weakest_organ
from evidence_report import arm_of, arms_of, evidence, main_comparison
from evidence_runs import Experiment
from evidence_steps import FULL, QUICK, choose_budget, choose_labels, choose_rate, positive_control, run_steps

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ORGANS = ("brainstem", "cord", "mandible")


def record(run: Finetuning, *dsc: float) -> Record:
    """A record of two cases with these scores of each organ."""
    scores = {case: dict(zip(ORGANS, dsc, strict=True)) for case in ("a", "b")}
    settings = {**vars(run), "name": run.name, "commit": "abc", "seconds": 60, "curve": [[run.updates, dsc[0]]]}
    return {**settings, "dsc": scores, "nsd_2mm": scores, "nsd_3mm": scores}


class Imagined(Experiment):
    """An experiment whose networks score what a function says, and that trains nothing."""

    def __init__(self, out: Path, scale: Scale, score: Callable[[Finetuning], Sequence[float]]) -> None:
        super().__init__(out, out, scale, jobs=1)
        self.score = score
        self.asked: list[Finetuning] = []
        self.pretrained: list[Pretraining] = []

    def prepare(self) -> None:
        pass

    def pretrain(self, runs: Sequence[Pretraining]) -> None:
        self.pretrained += runs

    def scores(self, runs: Sequence[Finetuning]) -> list[Record]:
        self.asked += runs
        return [record(run, *self.score(run)) for run in runs]

    def records(self) -> list[Record]:
        return [record(run, *self.score(run)) for run in dict.fromkeys(self.asked)]

    def seconds(self, run: Pretraining) -> float:
        return 6000


def test_the_budget_is_the_shortest_at_which_all_organs_are_found(tmp_path: Path) -> None:
    def score(run: Finetuning) -> Sequence[float]:
        return 0.6, 0.6, 0.2 if run.updates == 1000 and run.seed == 1 else 0.4

    experiment = Imagined(tmp_path, FULL, score)
    assert choose_budget(experiment) == 2000
    assert {(run.labels, run.updates) for run in experiment.asked} == {(10, 1000), (10, 2000)}
    assert all(run.split == "budget" and run.init == "scratch" for run in experiment.asked)


@pytest.mark.parametrize(("gains", "chosen"), [({10: 0.031}, 10), ({10: 0.029, 5: 0.04}, 5), ({3: 0.02}, 3)])
def test_the_labels_are_the_most_of_few_that_all_labels_beat(
    gains: dict[int, float], chosen: int, tmp_path: Path
) -> None:
    experiment = Imagined(tmp_path, FULL, lambda run: (0.7 - gains.get(run.labels, 0.0),) * 3)
    assert choose_labels(experiment, 1000) == chosen
    assert {run.labels for run in experiment.asked} == {89, *(few for few in FULL.few_labels if few >= chosen)}
    assert {run.split for run in experiment.asked} == {"budget"}


def test_the_longest_budget_is_taken_where_none_fits(tmp_path: Path) -> None:
    assert choose_budget(Imagined(tmp_path, FULL, lambda run: (0.5, 0.5, 0.1))) == 4000


def test_arms_that_are_compared_have_the_one_rate_that_the_choosing_cases_like_best(tmp_path: Path) -> None:
    def score(run: Finetuning) -> Sequence[float]:
        liked = {("a", 2e-3): 0.7, ("b", 6e-3): 0.9}
        return (liked.get((run.init, run.rate), 0.6),) * 3

    experiment = Imagined(tmp_path, FULL, score)
    assert choose_rate(experiment, ["a"], 10, 1000) == 2e-3
    assert choose_rate(experiment, ["a", "b"], 10, 1000) == 6e-3
    assert {(run.init, run.rate) for run in experiment.asked} == {(init, rate) for init in "ab" for rate in FULL.rates}


@pytest.mark.parametrize(
    ("full", "control", "verdict"),
    [
        (0.70, 0.66, "transfer works"),
        (0.70, 0.64, "below 0.050"),
        (0.64, 0.62, "transfer works"),
        (0.64, 0.61, "below"),
    ],
)
def test_the_control_must_gain_5_dsc_or_half_of_what_all_labels_give(
    full: float, control: float, verdict: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def score(run: Finetuning) -> Sequence[float]:
        return ({89: full}.get(run.labels, control if run.init != "scratch" else 0.6),) * 3

    positive_control(Imagined(tmp_path, FULL, score), 10, 600, 2e-3)
    assert verdict in capsys.readouterr().out


def test_records_of_another_commit_are_refused(tmp_path: Path) -> None:
    experiment = Written(tmp_path, tmp_path, FULL, jobs=1)
    experiment._finetune(Finetuning("scratch", 10, 600, 2e-3, 0, "budget"))
    with pytest.raises(SystemExit, match="s0 of another commit: move it elsewhere"), experiment.claimed():
        pass
    with replace(experiment, also=("abc",)).claimed():
        pass


def test_the_steps_compare_the_same_seeds_in_every_arm(tmp_path: Path) -> None:
    experiment = Imagined(tmp_path, FULL, lambda run: (0.6 + 0.05 * (run.labels > 10),) * 3)
    run_steps(experiment, 3)
    assert [run.name for run in experiment.pretrained] == [
        f"{arm}-body-u10000-p{seed}" for seed in (0, 1) for arm in ("spark", "anatomask")
    ]
    scored = {run for run in experiment.asked if run.split == "val"}
    assert {run.updates for run in scored} == {1000} and {run.labels for run in scored} == {10}
    seeds = {init: sorted(run.seed for run in scored if run.init == init) for init in {run.init for run in scored}}
    assert seeds.pop("scratch") == list(range(8))
    assert seeds == {
        "spark-body-u10000-p0": [0, 1, 2, 3],
        "anatomask-body-u10000-p0": [0, 1, 2, 3],
        "permuted:anatomask-body-u10000-p0": [0, 1, 2, 3],
        "spark-body-u10000-p1": [4, 5, 6, 7],
        "anatomask-body-u10000-p1": [4, 5, 6, 7],
    }
    arms, by_labels = main_comparison(experiment.records())
    assert {name: len(runs) for name, runs in arms.items()} == {
        "scratch": 8, "SparK": 8, "AnatoMask": 8, "AnatoMask, permuted": 4
    }  # fmt: skip
    assert not by_labels


def test_every_number_of_updates_is_a_section_with_the_hours_of_its_arms(tmp_path: Path) -> None:
    experiment = Imagined(tmp_path, FULL, lambda run: (0.6 + 0.05 * (run.labels > 10),) * 3)
    run_steps(experiment, 6)
    main, longer, scratch = evidence(experiment.records()).split("\n## ")
    for arm, networks in (("scratch", 8), ("AnatoMask, 20,000 updates", 3), ("SparK, all patches", 4)):
        assert f"| {arm} | {networks} | {networks * 60 / 3600:.1f} |\n" in main
    assert longer.startswith("2,000 updates\n") and "| AnatoMask – SparK | 3 | +0.0" in longer
    assert "| scratch | 3 | 0.1 |" in longer and "| scratch | 3 | 0.1 |" in scratch and "AnatoMask" not in scratch


class Written(Experiment):
    """An experiment that trains nothing and writes what a training would leave."""

    def _finetune(self, run: Finetuning) -> None:
        self.trained = [*getattr(self, "trained", []), run.name]
        folder = self.out / "runs" / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cases.csv").write_text("")
        self._record(run).write_text(json.dumps(record(run, 0.5, 0.5, 0.5)))


def test_a_source_of_which_only_the_record_was_copied_is_trained_before_what_starts_from_it(tmp_path: Path) -> None:
    source = Finetuning("scratch", 89, 600, 2e-3, 0, "budget")
    control = Finetuning(f"encoder:{source.name}", 10, 600, 2e-3, 0, "budget")
    experiment = Written(tmp_path, tmp_path, FULL, jobs=1)
    experiment._record(source).write_text(json.dumps(record(source, 0.5, 0.5, 0.5)))
    assert len(experiment.scores([source])) == 1 and not hasattr(experiment, "trained")
    assert [scored["name"] for scored in experiment.scores([source, control])] == [source.name, control.name]
    assert experiment.trained == [source.name, control.name]
    shutil.rmtree(tmp_path / "runs")
    experiment.scores([source, control])
    assert experiment.trained == [source.name, control.name]  # nothing starts from it any more


def test_all_steps_run_through(tmp_path: Path) -> None:
    experiment = Imagined(tmp_path, replace(FULL, budgets=(600,)), lambda run: (0.6,) * 3)
    run_steps(experiment, 6)
    assert {run.labels for run in experiment.asked if run.split == "val"} == {3, 5, 10, 25, 89}
    assert {run.updates for run in experiment.asked if run.split == "val"} > {600, 1200}


def test_scores_of_a_record() -> None:
    run = Finetuning("scratch", 10, 600, 2e-3, 0, "val")
    assert mean_dsc([record(run, 0.1, 0.2, 0.6)]) == pytest.approx(0.3)
    assert weakest_organ(record(run, 0.1, 0.2, 0.6)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("init", "arm"),
    [
        ("scratch", "scratch"),
        ("spark-body-u10000-p1", "SparK"),
        ("anatomask-body-u10000-p0", "AnatoMask"),
        ("anatomask-all-u10000-p0", "AnatoMask, all patches"),
        ("permuted:anatomask-body-u10000-p0", "AnatoMask, permuted"),
    ],
)
def test_arms_are_named_as_in_tables(init: str, arm: str) -> None:
    assert arm_of({"init": init}) == arm


def test_a_longer_pretraining_is_an_arm_of_its_own() -> None:
    runs = [Finetuning(f"anatomask-body-u{length}-p0", 10, 600, 2e-3, 0, "val") for length in (4000, 8000)]
    runs.append(Finetuning("permuted:anatomask-body-u4000-p0", 10, 600, 2e-3, 0, "val"))
    records = [record(run, 0.1, 0.2, 0.6) for run in runs]
    assert [*arms_of(records)] == ["AnatoMask", "AnatoMask, 8,000 updates", "AnatoMask, permuted"]


def test_a_folder_of_another_scale_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    with Experiment(tmp_path, tmp_path, FULL, 1).claimed():
        pass
    before = (tmp_path / "experiment.json").read_text()
    assert json.loads(before)["scale"]["pretraining"] == 10_000
    with Experiment(tmp_path, tmp_path, FULL, 1).claimed():
        pass
    with (
        pytest.raises(SystemExit, match=r"another scale .*: check that commit out, choose another --out"),
        Experiment(tmp_path, tmp_path, QUICK, 1).claimed(),
    ):
        pass
    assert (tmp_path / "experiment.json").read_text() == before


def test_a_folder_of_another_commit_is_taken_where_it_is_named(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path, tmp_path, FULL, 1)
    with experiment.claimed():
        pass
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "abc"}))
    with pytest.raises(SystemExit, match=r"another commit \(abc\)"), experiment.claimed():
        pass
    with replace(experiment, also=("abc",)).claimed():
        pass


def test_asked_to_end_it_ends_its_trainings_at_once(tmp_path: Path) -> None:
    experiment, before = Experiment(tmp_path, tmp_path, FULL, 1), signal.getsignal(signal.SIGTERM)
    training = subprocess.Popen(["sleep", "600"])
    experiment._running.add(training)
    ended: int | None = None
    try:
        with pytest.raises(SystemExit, match="143"), experiment.claimed():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:  # as a pool of threads would wait
                ended = training.wait(10)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == -signal.SIGTERM


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_experiment_runs_and_goes_on_where_it_was(real_data: Path, tmp_path: Path) -> None:
    """Its first step, of five trainings; of those, the same command once more makes none."""
    quick = ["--quick", "--step", "1", "--out", str(tmp_path), "--scans", str(real_data / "openkbp"), "--jobs", "1"]
    command = [sys.executable, str(BENCHMARKS / "evidence.py"), *quick]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    records = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    assert json.loads(done.stdout.splitlines()[-1])["records"] == len(records) == 5
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()} == records
    report = [sys.executable, str(BENCHMARKS / "evidence_report.py"), "--records", str(tmp_path / "records")]
    subprocess.run([*report, "--out", str(tmp_path / "report")], check=True, env=environment)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"choices.md"}
