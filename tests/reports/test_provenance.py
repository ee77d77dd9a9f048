"""What runs' folders tell of how they were made, damaged or not."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from anatomask.cli.arguments import parse
from anatomask.recipes import RECIPES
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.reports.provenance import (
    MOST_POINTS,
    cost,
    evaluation_commands,
    hours,
    lineage,
    of_any_pretraining_seed,
    trainings_of,
)
from anatomask.reports.seeds import by_seed
from anatomask.runs.belongings import CONFIG, ENVIRONMENT, MARKER

SPEED = "train/samples_per_second"


def write_training(folder: Path, settings: dict[str, Any], updates: int = 10, gpu: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("a run")
    (folder / CONFIG).write_text(yaml.safe_dump({"seed": 3, "training": {"batch_size": 4}, **settings}))
    described = {
        "python": "3.11", "packages": {"anatomask": "0.1.0"}, "commit": None, "gpus": ["H100"],
        "resources": {"workers": 2, "gpu": gpu},
    }  # fmt: skip
    (folder / ENVIRONMENT).write_text(json.dumps(described))
    rows = [{"step": step, "train/loss": 1 / step, SPEED: 2.0} for step in range(1, updates + 1)]
    rows.append({"step": updates, "val/dice": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluated(folder: Path, run: str) -> EvaluatedRun:
    return EvaluatedRun(folder, {"run": run}, {"a": 0.5})


def test_a_run_comes_after_those_it_started_from(tmp_path: Path) -> None:
    first = write_training(tmp_path / "pre", {"method": {"name": "anatomask"}}, updates=1000, gpu=True)
    second = write_training(tmp_path / "ts", {"init": str(first)})
    third = write_training(tmp_path / "flare", {"init": str(second)})
    found = trainings_of([evaluated(third, "flare"), evaluated(second, "ts")])
    assert [(one.name, one.verb, one.seed, one.measured.updates) for one in found] == [
        ("pre", "pretrain", 3, 1000),
        ("ts", "finetune", 3, 10),
        ("flare", "finetune", 3, 10),
    ]
    assert found[0].measured.seconds == 1000 * 4 / 2 and found[0].gpu == "H100" and found[1].gpu is None
    assert (
        len(found[0].measured.curves["train/loss"][0]) == MOST_POINTS
        and found[0].measured.curves["train/loss"][1][0] > 0.5
    )
    assert found[0].versions == {"python": "3.11", "anatomask": "0.1.0"}
    assert cost(found) == (
        "All trainings shown took 1.11 GPU-hours and 0.0222 worker-hours on CPUs, validations and pauses not counted."
    )
    assert shlex.split(found[1].command) == ["anatomask", "finetune", "--config", str(second / CONFIG)]


@pytest.mark.parametrize(
    ("gpus", "kind", "named"),
    [
        (["NVIDIA A100-SXM4-80GB"], "A100", "NVIDIA A100-SXM4-80GB"),
        (["NVIDIA L4"], "A100", "A100"),
        ([], "A100", "A100"),
        ([], "", "GPU"),
    ],
)
def test_a_training_that_began_on_a_machine_without_its_gpus_took_gpu_hours(
    gpus: list[str], kind: str, named: str, tmp_path: Path
) -> None:
    """The driver of a sweep's trial has no GPU, nor has the head of many a cluster."""
    folder = write_training(tmp_path / "run", {"init": "scratch"}, gpu=True)
    described = json.loads((folder / ENVIRONMENT).read_text())
    described |= {"gpus": gpus, "resources": {"workers": 4, "gpu": True, "gpu_type": kind}}
    (folder / ENVIRONMENT).write_text(json.dumps(described))
    (training,) = trainings_of([evaluated(folder, "run")])
    assert training.gpu == named and cost([training]).startswith("All trainings shown took 0.0222 GPU-hours,")


def test_chains_that_differ_in_their_seeds_alone_are_one_row(tmp_path: Path) -> None:
    """Two seeds of a chain; another learning rate of the pretraining; an earlier checkpoint of it; from scratch."""
    pretraining = {"method": {"name": "anatomask"}}
    starts = {
        "a": write_training(tmp_path / "pre-a", {**pretraining, "seed": 0}),
        "b": write_training(tmp_path / "pre-b", {**pretraining, "seed": 1}),
        "c": write_training(tmp_path / "pre-c", {**pretraining, "seed": 2, "optimiser": {"lr": 0.5}}),
        "d": tmp_path / "pre-a" / "checkpoints" / "step_00000005",
        "e": "scratch",
        "f": "scratch",
    }
    runs = []
    for seed, (name, init) in enumerate(starts.items()):
        folder = write_training(tmp_path / name, {"init": str(init), "seed": seed})
        kinship = {"seed": seed, "seeds": f"from {init}", "starts": "alike"}
        runs.append(EvaluatedRun(folder, {"run": name, "training": kinship}, {"case": 0.5}))
    assert [[run.summary["run"] for run in arm] for arm in by_seed(runs)] == [["a"], ["b"], ["c"], ["d"], ["e", "f"]]
    rows = by_seed([of_any_pretraining_seed(run) for run in runs])
    assert [[run.summary["run"] for run in arm] for arm in rows] == [["a", "b"], ["c"], ["d"], ["e", "f"]]


def test_a_circle_of_starts_ends(tmp_path: Path) -> None:
    for one, other in ("ab", "ba"):
        write_training(tmp_path / one, {"init": str(tmp_path / other)})
    assert [training.name for training in lineage(tmp_path / "a")] == ["b", "a"]


def test_an_evaluation_in_the_store_finds_its_neighbour(tmp_path: Path) -> None:
    trained = write_training(tmp_path / "store" / "finetune-1", {"init": "scratch"})
    scored = tmp_path / "store" / "evaluate-1"
    scored.mkdir()
    link = tmp_path / "trial" / "evaluate-x"
    link.parent.mkdir()
    link.symlink_to(scored)
    noted = {
        "data": "shards with a space", "split": "val", "checkpoint": "best",
        "inference": {"overlap": 0.25, "mirror": False, "windows": 2},
    }  # fmt: skip
    (scored / "evaluation.json").write_text(json.dumps(noted))
    run = evaluated(link, "finetune-1")
    assert [one.folder for one in trainings_of([run])] == [trained]
    (command,) = evaluation_commands([run])
    program, verb, *flags = shlex.split(command)
    config = parse(verb, flags, RECIPES).config
    assert (program, verb) == ("anatomask", "evaluate")
    assert (config.run, config.data, config.split) == (str(trained), "shards with a space", "val")
    assert (config.inference.overlap, config.inference.mirror, config.out) == (0.25, False, str(link))


@pytest.mark.parametrize("metrics", [None, [], ["hd95", "nsd"]])
def test_the_command_of_an_evaluation_scores_by_the_same_metrics_and_rule(
    metrics: list[str] | None, tmp_path: Path
) -> None:
    folder = write_training(tmp_path / "run", {"init": "scratch"})
    noted = {
        "data": "shards", "split": "val", "checkpoint": "best", "inference": {"overlap": 0.5, "mirror": True},
        **({} if metrics is None else {"metrics": metrics}),
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(noted))
    for absent in ("flare", None):
        summary = {"run": "run", **({"absent": absent} if absent else {})}
        (command,) = evaluation_commands([EvaluatedRun(folder, summary, {"a": 0.5})])
        scoring = parse("evaluate", shlex.split(command)[2:], RECIPES).config.scoring
        assert scoring.metrics == (None if metrics is None else tuple(metrics))
        assert scoring.absent == (absent or "totalsegmentator")


@pytest.mark.parametrize("name", [CONFIG, ENVIRONMENT, "metrics.jsonl", "evaluation.json"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe{", b"[1]\n", b'{"step": "x"}\n', b'{"step": 1, "train/loss": []}\n']
)
def test_damaged_files_tell_nothing_and_stop_nothing(name: str, content: bytes, tmp_path: Path) -> None:
    folder = write_training(tmp_path / "run", {"init": "scratch"})
    (folder / name).write_bytes(content)
    found = trainings_of([evaluated(folder, "run")])
    assert len(found) == (name != CONFIG) and evaluation_commands([evaluated(folder, "run")]) == []
    for one in found:
        assert (
            one.gpu is None
            and one.workers >= 1
            and all(np.isfinite(values).all() for _, values in one.measured.curves.values())
        )


def test_times_have_units() -> None:
    assert [hours(seconds) for seconds in (5, 89, 600, 5399, 5400, 36_000)] == [
        *("5 s", "89 s", "10 min", "90 min", "1.5 h", "10.0 h")
    ]
