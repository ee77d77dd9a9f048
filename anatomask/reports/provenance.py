"""Provenance of runs: the command, seed, versions, hardware and time of each training, as its folder tells them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from anatomask.evaluation.results import IDENTITY_FILE
from anatomask.parsing import from_json, from_yaml
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.runs.belongings import CONFIG, ENVIRONMENT, is_run
from anatomask.runs.checkpoint_index import CHECKPOINTS, STEP
from anatomask.runs.identity import run_key
from anatomask.runs.remote import working_folder
from anatomask.training.journal import METRICS
from anatomask.weights.files import split_init

CURVES = ("train/loss", "val/loss", "val/dice")
"""Scalars whose course is kept."""
SCRATCH = "scratch"
"""Value of `init` of a training from random weights."""
SPEED = "train/samples_per_second"
MOST_POINTS = 400
"""Number of points to which a curve is averaged."""


@dataclass(frozen=True)
class Measured:
    """Measurements during a training."""

    updates: int = 0
    seconds: float = 0.0
    """Time of all updates, without validations and pauses."""
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Updates and values `(N,)` of those `CURVES` that were recorded."""


@dataclass(frozen=True)
class Training:
    """Pretraining or finetuning in a run's folder; what a damaged or missing file would tell is absent."""

    folder: Path
    verb: str
    settings: Mapping[str, Any]
    text: str
    """Its complete settings, as YAML."""
    environment: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def measured(self) -> Measured:
        """Measurements during the training, read from the run's folder."""
        return _measured(self.folder / METRICS, self.settings)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def command(self) -> str:
        """Command that makes the run, or goes on with it."""
        return shlex.join(["anatomask", self.verb, "--config", str(self.folder / CONFIG)])

    @property
    def seed(self) -> int | None:
        """Seed of everything random."""
        seed = self.settings.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def workers(self) -> int:
        """Number of worker processes, each with a GPU if there are any."""
        resources = self.environment.get("resources")
        workers = resources.get("workers") if isinstance(resources, Mapping) else None
        return workers if isinstance(workers, int) else 1

    @property
    def gpu(self) -> str | None:
        """Name of the GPU of each worker, as the machine on which it began has it; None for a training on CPUs.

        Where that machine has no GPU, or others than were asked for, it is the type that was asked for.
        """
        resources, gpus = self.environment.get("resources"), self.environment.get("gpus")
        taken = resources if isinstance(resources, Mapping) else {}
        if not taken.get("gpu", True):
            return None
        name = str(gpus[0]) if isinstance(gpus, list) and gpus else ""
        kind = str(taken.get("gpu_type", ""))
        return (name if kind in name else kind) or ("GPU" if taken.get("gpu") else None)

    @property
    def versions(self) -> dict[str, str]:
        """Version of Python, of each package and of the code."""
        packages = self.environment.get("packages")
        known = {"python": self.environment.get("python"), **(packages if isinstance(packages, Mapping) else {})}
        known["commit"] = self.environment.get("commit")
        return {name: str(version) for name, version in known.items() if version}


def trainings_of(runs: Iterable[EvaluatedRun]) -> list[Training]:
    """List the trainings that evaluated runs come from, each once, after those whose weights it started from."""
    found: dict[Path, Training] = {}
    for run in runs:
        for folder in {run.folder, *run.folders.values()}:
            for training in lineage(_trained_in(folder, str(run.summary["run"]))):
                found.setdefault(training.folder.resolve(), training)
    return list(found.values())


def pretrainings_of(runs: Iterable[EvaluatedRun]) -> list[str]:
    """Name the folder of the pretraining that each run comes from; empty where none is known."""
    firsts = (next((one for one in trainings_of((run,)) if one.verb == "pretrain"), None) for run in runs)
    return ["" if first is None else str(first.folder.resolve()) for first in firsts]


def shared(pretrainings: Sequence[str]) -> list[str]:
    """Return the pretrainings as the groups of an interval; all in one where no two runs share a pretraining."""
    several = any(name and pretrainings.count(name) > 1 for name in pretrainings)
    return list(pretrainings) if several else [""] * len(pretrainings)


def but_seed(training: Training) -> str:
    """Return a key that trainings share which differ in their seeds, and in the runs that they start from, alone."""
    settings = {name: value for name, value in training.settings.items() if name not in ("seed", "init")}
    taken = split_init(str(training.settings.get("init", "")))[0]  # the whole network, its encoder, …
    return run_key(training.verb, settings, {"taken": taken, "update": str(start_of(training)[1])})


def of_any_pretraining_seed(run: EvaluatedRun) -> EvaluatedRun:
    """Let a run be of one row with those whose pretraining differs in its seed alone, too, as well as its finetuning.

    Such runs are the chains of `reproduce` and of a sweep with several seeds.
    """
    kinship, trainings = run.summary.get("training"), trainings_of((run,))
    if not kinship or all(one.verb != "pretrain" for one in trainings):
        return run
    chain = f"{kinship['starts']} {sorted(map(but_seed, trainings))}"
    return replace(run, summary={**run.summary, "training": {**kinship, "seeds": chain}})


def evaluation_commands(runs: Iterable[EvaluatedRun]) -> list[str]:
    """List the command that scored each run; an older evaluation, which did not note how, has none."""
    commands = []
    for run in runs:
        for folder in dict.fromkeys([run.folder, *run.folders.values()]):
            try:
                noted = from_json((folder / IDENTITY_FILE).read_bytes())
                inference = noted["inference"]
                flags = {
                    "--data": noted["data"],
                    "--split": noted["split"],
                    "--checkpoint": noted["checkpoint"],
                    "--inference.overlap": inference["overlap"],
                }
                mirror = "--inference.mirror" if inference["mirror"] else "--inference.no-mirror"
                metrics = ["--scoring.metrics", *map(str, noted["metrics"])] if "metrics" in noted else []
            except (OSError, ValueError, TypeError, KeyError):
                continue
            trained = _trained_in(folder, str(run.summary["run"]))
            elsewhere = ["--out", str(folder)] if trained.resolve() != folder.resolve() else []
            if "absent" in run.summary:
                flags["--scoring.absent"] = run.summary["absent"]
            parts = [part for name, value in flags.items() for part in (name, str(value))]
            command = ["anatomask", "evaluate", "--run", str(trained), *parts, mirror, *metrics, *elsewhere]
            commands.append(shlex.join(command))
    return commands


def lineage(folder: Path) -> list[Training]:
    """List the training in a folder after those that it started from; none where the folder is not a run's."""
    found: list[Training] = []
    seen: set[Path] = set()
    while folder.resolve() not in seen and (training := read_training(folder)) is not None:
        seen.add(folder.resolve())
        found.insert(0, training)
        start, _ = start_of(training)
        if start is None:
            break
        folder = start
    return found


def start_of(training: Training) -> tuple[Path | None, int | None]:
    """Return the folder of the run whose weights a training started from, and the update of its checkpoint.

    Returns:
        None for the folder where the training started from scratch or from weights that are no run's; None for the
        update where `init` names a run as a whole, whose last or best checkpoint is taken.
    """
    init = training.settings.get("init")
    if not isinstance(init, str) or init == SCRATCH:
        return None, None
    path = working_folder(split_init(init)[1])
    step = None
    if STEP.fullmatch(path.name) and path.parent.name == CHECKPOINTS:
        path, step = path.parents[1], int(path.name.removeprefix("step_"))
    return (path, step) if is_run(path) else (None, None)


def read_training(folder: Path) -> Training | None:
    """Read what the folder of a run tells of its training; None where it does not hold a training's settings."""
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        settings = from_yaml(text.encode())
    except (OSError, ValueError):
        return None
    if not isinstance(settings, Mapping) or not {"method", "init"} & settings.keys():
        return None
    try:
        environment = from_json((folder / ENVIRONMENT).read_bytes())
    except (OSError, ValueError):
        environment = {}
    verb = "pretrain" if "method" in settings else "finetune"
    return Training(folder, verb, settings, text, environment if isinstance(environment, Mapping) else {})


def _trained_in(folder: Path, run: str) -> Path:
    """Find the folder of the training: that of the evaluation, or its neighbour, as in the store of sweeps."""
    beside = folder.resolve().parent / run
    return beside if not (folder / CONFIG).is_file() and Path(run).name == run and is_run(beside) else folder


def _measured(path: Path, settings: Mapping[str, Any]) -> Measured:
    """Read the number of updates, their seconds, and the curves; lines that are damaged are left out."""
    training = settings.get("training")
    batch = training.get("batch_size") if isinstance(training, Mapping) else None
    points: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    speeds: dict[int, float] = {}
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    row = from_json(line)
                    step = int(row["step"])
                    for name in points.keys() & row.keys():
                        points[name][step] = float(row[name])
                    if row.get(SPEED):
                        speeds[step] = float(row[SPEED])
                except (ValueError, TypeError, KeyError, AttributeError):
                    continue
    except OSError:
        return Measured()
    seconds = sum(batch / speed for speed in speeds.values()) if isinstance(batch, int) else 0.0
    curves = {name: _thinned(values) for name, values in points.items() if values}
    return Measured(max((max(values) for values in points.values() if values), default=0), seconds, curves)


def _thinned(points: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbouring points until `MOST_POINTS` are left."""
    steps = np.array(sorted(points))
    values = np.array([points[step] for step in steps.tolist()])
    parts = np.array_split(np.arange(len(steps)), min(MOST_POINTS, len(steps)))
    return (
        np.array([steps[part].mean() for part in parts]),
        np.array([values[part].mean() for part in parts]),
    )


def hours(seconds: float) -> str:
    """Format a time: seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def cost(trainings: Sequence[Training]) -> str:
    """Say what trainings took together, in GPU-hours and in worker-hours of processors."""
    parts = []
    for title, on_gpu in (("GPU-hours", True), ("worker-hours on CPUs", False)):
        total = sum(one.measured.seconds * one.workers for one in trainings if (one.gpu is not None) == on_gpu) / 3600
        if total:
            parts.append(f"{total:.3g} {title}")
    return f"All trainings shown took {' and '.join(parts)}, validations and pauses not counted." if parts else ""
