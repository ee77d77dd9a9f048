"""What is killed: six commands, how far each is, what it has finished, and what it must end with."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import signal
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import optuna
from optuna.trial import TrialState
from safetensors import safe_open

from anatomask.runs.checkpoint_index import last_step
from anatomask.sweeps.status import updates_made
from anatomask.sweeps.study import trial_name
from anatomask.terminal.progress import last_row
from anatomask.training.checkpoints import Checkpoints

Digests = dict[str, str]
"""Of all that must be as without a kill, by what it is."""

CLOCKS = ("wait", "samples_per_second", "checkpoint_seconds")
"""Scalars that say how fast it was."""
SMALL = "--loader.patch-size 32 32 32 --network.base 4 --cluster.threads 1"
STEPS = 48
"""Updates of a training."""


@dataclass(frozen=True)
class Place:
    """Folders of one run of a command."""

    inputs: Path
    """What it reads."""
    out: Path
    """What it writes into, and nobody else."""


class Subject(ABC):
    """A command that is killed and started again."""

    name: ClassVar[str]
    victims: ClassVar[tuple[str, ...]] = ("driver", "raylet", "worker", "all")
    """Kinds of processes that are killed, each as often as the others."""
    signals: ClassVar[tuple[signal.Signals, ...]] = (signal.SIGKILL,)
    """What the driver is sent."""
    code: ClassVar[int] = 0
    """Exit code of a command that came to its end."""

    @abstractmethod
    def argv(self, place: Place) -> list[str]:
        """Return the program and its arguments, to read `inputs` and to write into `out`."""

    @abstractmethod
    def progress(self, place: Place) -> float:
        """Return the share of the work that is done, from 0 to 1."""

    @abstractmethod
    def digests(self, place: Place) -> Digests:
        """Return digests of what must not depend on kills."""

    def begin(self, place: Place) -> None:
        """Make the folder, with what the command needs there."""
        place.out.mkdir(parents=True)

    def finished(self, place: Place) -> dict[str, int]:
        """Return when each finished part was written (ns): a later start leaves it alone."""
        return {}

    def saved(self, place: Place) -> float:
        """Return the share of the work that a stop in good order leaves saved."""
        return self.progress(place)


class Training(Subject):
    """`pretrain` or `finetune`: weights, moments and every scalar are the same to the last bit."""

    victims = ("driver", "raylet", "worker", "actor", "all")
    signals = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

    def __init__(self, name: str, flags: str = "") -> None:
        self.name = name  # type: ignore[misc]
        self.flags = flags

    def argv(self, place: Place) -> list[str]:
        """Return the training of a small network."""
        steps = f"--training.epochs 4 --training.steps-per-epoch {STEPS // 4} --training.checkpoint-every 5"
        often = "--training.log-every 1 --training.validate-every 1"
        where = f"--data {place.inputs / 'shards'} --runs {place.out} --name run"
        return verb(f"{self.name} --recipe tiny {SMALL} {steps} {often} {self.flags} {where}")

    def progress(self, place: Place) -> float:
        """Return the share of the updates that are done."""
        row = last_row(place.out / "run" / "metrics.jsonl")
        return row["step"] / STEPS if row else 0.0

    def saved(self, place: Place) -> float:
        """Return the share of the updates that the last checkpoint holds."""
        return Checkpoints(place.out / "run").step() / STEPS

    def digests(self, place: Place) -> Digests:
        """Return digests of the last checkpoint's tensors and of every scalar but those of speed."""
        return run_digests(place.out / "run")


class Prepare(Subject):
    """`prepare`: every file is the same to the last byte, though one scan is cut off."""

    name = "prepare"
    code = 1  # a scan is skipped

    def argv(self, place: Place) -> list[str]:
        """Return the preparation of all scans."""
        return verb(f"{preparation(place.inputs)} --out {place.out / 'shards'}")

    def progress(self, place: Place) -> float:
        """Return the share of the files that are written: a shard for each good scan, and the index."""
        indexed = (place.out / "shards" / "dataset.json").exists()
        return (len(self.finished(place)) + indexed) / CASES

    def finished(self, place: Place) -> dict[str, int]:
        """Return when each shard was written."""
        return times(place.out, "shards/cases/[!.]*.parquet")

    def digests(self, place: Place) -> Digests:
        """Return digests of all files."""
        return file_digests(place.out, "shards/**/*")


class Evaluate(Subject):
    """`evaluate`: predictions, scores and tables are the same to the last byte."""

    name = "evaluate"

    def begin(self, place: Place) -> None:
        """Copy a finetuned run."""
        shutil.copytree(place.inputs / "finetuned", place.out / "run")

    def argv(self, place: Place) -> list[str]:
        """Return the evaluation of the training cases, which are most."""
        which = f"--data {place.inputs / 'shards'} --split train --inference.mirror"
        return verb(f"evaluate --recipe tiny --run {place.out / 'run'} {which}")

    def progress(self, place: Place) -> float:
        """Return the share of the cases that are scored."""
        cases = json.loads((place.inputs / "shards" / "splits.json").read_text())["train"]
        return len(list(place.out.glob("run/predictions/[!.]*.csv"))) / len(cases)

    def finished(self, place: Place) -> dict[str, int]:
        """Return when each case was scored."""
        return times(place.out, "run/predictions/[!.]*.csv")

    def digests(self, place: Place) -> Digests:
        """Return digests of what an evaluation writes."""
        patterns = ("run/predictions/*", "run/cases.csv", "run/summary.json")
        return {name: digest for pattern in patterns for name, digest in file_digests(place.out, pattern).items()}


class Predict(Subject):
    """`predict`: label maps and probabilities are the same to the last byte, though one scan is cut off."""

    name = "predict"
    code = 1  # a scan is left out

    def argv(self, place: Place) -> list[str]:
        """Return the prediction of all scans, as they came."""
        where = f"--source {place.inputs / 'scans'} --out {place.out / 'maps'}"
        return verb(f"predict --run {place.inputs / 'finetuned'} {where} --probabilities --inference.mirror")

    def progress(self, place: Place) -> float:
        """Return the share of the good scans that have a label map."""
        return len(self.finished(place)) / (CASES - 1)

    def finished(self, place: Place) -> dict[str, int]:
        """Return when each label map was written."""
        return times(place.out, "maps/[!.]*.nii.gz")

    def digests(self, place: Place) -> Digests:
        """Return digests of all files."""
        return file_digests(place.out, "maps/**/[!.]*")


class Sweep(Subject):
    """`sweep`: each point has one complete trial, of the same value; the table is the same, and so are all weights."""

    name = "sweep"
    victims = ("driver", "raylet", "worker", "actor", "all")
    rows = 2
    steps = 4
    """Updates of each training."""
    signals = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

    def argv(self, place: Place) -> list[str]:
        """Return a sweep over two mask ratios."""
        data = place.inputs / "shards"
        stages = " ".join(
            f"--{stage}.loader.patch-size 32 32 32 --{stage}.network.base 2 --{stage}.training.epochs 1 "
            f"--{stage}.training.steps-per-epoch {self.steps} --{stage}.training.log-every 1 "
            f"--{stage}.optimiser.warmup-epochs 0 --{stage}.training.checkpoint-every 2"
            for stage in ("pretrain", "finetune")
        )
        where = f"--runs {place.out} --name ratios --pretrain-data {data} --finetune-data {data} --cluster.threads 1"
        return verb(
            f"sweep --recipe tiny --space {place.inputs / RATIOS} --pretrain.method.decoder-width 16 {stages} {where}"
        )

    def progress(self, place: Place) -> float:
        """Return the share of the updates of all trainings that are done."""
        made = sum(map(updates_made, (place.out / "ratios").glob("[0-9]*")))
        return made / (2 * self.steps * self.rows)

    def saved(self, place: Place) -> float:
        """Return the share of the updates of all trainings that their last checkpoints hold."""
        saved = sum(last_step(run) for run in (place.out / "ratios").glob("[0-9]*/*"))
        return saved / (2 * self.steps * self.rows)

    def finished(self, place: Place) -> dict[str, int]:
        """Return when the checkpoints of each complete trial were written."""
        found: dict[str, int] = {}
        for name, _ in self.complete(place):
            found |= times(place.out, f"ratios/{name}/*/checkpoints/index.json")
        return found

    def digests(self, place: Place) -> Digests:
        """Return digests of the complete trials, the table, and the last checkpoints of all runs."""
        found = {"trials": json.dumps(self.complete(place))} | file_digests(place.out, "ratios/sweep.csv")
        for index in sorted(place.out.glob("ratios/[0-9]*/*/checkpoints/index.json")):
            run = index.parents[1]
            found |= {f"{run.relative_to(place.out)}: {name}": value for name, value in run_digests(run).items()}
        return found

    def complete(self, place: Place) -> list[tuple[str, float | None]]:
        """Return name and value of each trial that the study calls complete; twice what is there twice."""
        database = place.out / "ratios" / "study.db"
        if not database.exists():
            return []
        storage = f"sqlite:///file:{database}?mode=ro&uri=true"
        try:
            study = optuna.load_study(study_name="ratios", storage=storage)
        except Exception:  # it was killed while it made the file: SQLAlchemy's own errors are many
            return []
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return sorted((trial_name(trial), trial.value) for trial in trials)


def verb(command: str) -> list[str]:
    """Return the program of a verb with its flags."""
    return [sys.executable, "-m", "anatomask", *shlex.split(command)]


CASES = 12
"""Scans."""
RATIOS = "ratios.py"
"""Name of the file of the sweep's space."""
SPACE = """
from anatomask.sweeps.space import grid

SPACE = grid({"method.mask_ratio": (0.6, 0.9)})
"""
CUT_OFF = "s0007"
"""Name of the scan that is cut off."""


def preparation(inputs: Path) -> str:
    """Return the command that prepares the scans, but for its folder."""
    spacing = "--preprocess.spacing 8 8 8 --preprocess.classes liver spleen"
    return f"prepare --recipe tiny --source {inputs / 'scans'} {spacing}"


def run_digests(run: Path) -> Digests:
    """Return digests of the last checkpoint's tensors, and of every scalar but those of speed."""
    last = run / "checkpoints" / json.loads((run / "checkpoints" / "index.json").read_text())["last"]
    found = {}
    for name in ("model", "optimiser"):
        with safe_open(last / f"{name}.safetensors", framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(key)
                content = f"{tensor.dtype} {tensor.shape}".encode() + tensor.tobytes()
                found[f"{name} {key}"] = hashlib.sha256(content).hexdigest()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timeless = [{name: row[name] for name in row if name.rpartition("/")[2] not in CLOCKS} for row in rows]
    for number, row in enumerate(row for row in timeless if len(row) > 1):  # a signal's checkpoint has a row of its own
        found[f"row {number} of metrics"] = json.dumps(row, sort_keys=True)
    return found


def file_digests(folder: Path, pattern: str) -> Digests:
    """Return digests of the files of that name."""
    files = (path for path in sorted(folder.glob(pattern)) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def times(folder: Path, pattern: str) -> dict[str, int]:
    """Return when the files of that name were written (ns)."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob(pattern)}


SUBJECTS: dict[str, Subject] = {
    "pretrain": Training("pretrain", "--method.decoder-width 16 --method.r0 0.5"),
    "sweep": Sweep(),
    "prepare": Prepare(),
    "evaluate": Evaluate(),
    "finetune": Training("finetune"),
    "predict": Predict(),
}
