"""Trainings of `evidence.py`: the command and record of each, and running the missing ones, several at once."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import ray
from evidence_design import DIGITS, RECIPE, Finetuning, Pretraining, Record, Scale

from anatomask.cluster import on_loopback, own_token
from anatomask.errors import UserError
from anatomask.evaluation.results import CASES_FILE, from_csv
from anatomask.files import write_text
from anatomask.runs.folder import environment
from anatomask.training.journal import METRICS
from anatomask.weights.files import encoder_prefix, find_weights, read_weights, write_weights

REPOSITORY = Path(__file__).resolve().parents[1]
CHOOSING_CASES = 10
"""Number of labelled cases that choose budget and learning rate, and that only pretraining trains on."""


@contextmanager
def shared_ray(jobs: int) -> Iterator[str]:
    """Start a Ray that all trainings share, and yield its address.

    A Ray of its own takes a training a minute of a core to start, and a fifth of a core while it runs. The CPUs are
    what Ray counts, not what there is: half a one for the worker of each training, and one for its reader.
    """
    with own_token(), on_loopback():  # which those that join it must know, too
        ray.init(
            address="local",
            num_cpus=2 * jobs,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield ray.get_runtime_context().gcs_address


@dataclass
class Experiment:
    """A folder with shards, runs, encoders and records, all made at one commit or at others that train the same."""

    out: Path
    scans: Path
    scale: Scale
    jobs: int
    address: str = "local"
    """Address of the Ray that the trainings use; local: each starts its own."""
    also: tuple[str, ...] = ()
    """Other commits whose records and folder are taken, since their code trains the same networks."""
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)

    @property
    def commit(self) -> str:
        """Return the commit of this checkout."""
        return str(environment()["commit"])

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder for this commit and scale, and end all trainings when this program ends.

        Raises:
            SystemExit: the folder belongs to a commit that is not taken or another scale, or holds records of such.
        """
        taken = {self.commit, *self.also}
        given = {"commit": self.commit, "scale": json.loads(json.dumps(asdict(self.scale)))}
        path = self.out / "experiment.json"
        if path.exists():
            before = json.loads(path.read_text())
            same = {"commit": before.get("commit") in taken, "scale": before.get("scale") == given["scale"]}
            if changed := [name for name in same if not same[name]]:
                raise SystemExit(
                    f"{self.out} belongs to an experiment of another {' and '.join(changed)} "
                    f"({before.get(changed[0])}): check that commit out, choose another --out, or name it by --also "
                    "if its code trains the same networks"
                )
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(given, indent=1))
        if other := [record["name"] for record in self.records() if record["commit"] not in taken]:
            raise SystemExit(
                f"{self.out}/records holds {other[0]} of another commit: move it elsewhere, or name it by --also"
            )

        def end(number: int, frame: FrameType | None) -> None:
            self._end()  # now, for whatever waits for the trainings is left first
            raise SystemExit(128 + number)

        signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            self._end()

    def _end(self) -> None:
        for process in list(self._running):
            process.terminate()

    def prepare(self) -> None:
        """Write the splits and prepare the scans, once."""
        if (self.out / "shards" / "dataset.json").exists():
            return
        given = json.loads((self.scans / "splits_final.json").read_text())[0]
        unlabelled = sorted(
            path.name.removesuffix("_0000.nii.gz") for path in (self.scans / "imagesUnlabeled").iterdir()
        )
        order = np.random.default_rng(0).permutation(sorted(given["train"])).tolist()
        limit = self.scale.scans
        choosing = order[:CHOOSING_CASES][:limit]
        splits = {
            "train": order[CHOOSING_CASES:][:limit],
            "budget": choosing,
            "val": sorted(given["val"])[:limit],
            "test": [],
        }
        kept = [*(case for cases in splits.values() for case in cases), *unlabelled[:limit]]
        write_text(self.out / "splits.json", json.dumps(splits, indent=1))
        write_text(self.out / "cases.txt", "\n".join(kept) + "\n")
        self._command(
            "prepare",
            "prepare",
            [
                *("--source", str(self.scans), "--out", str(self.out / "shards"), "--name", "openkbp"),
                *("--split.file", str(self.out / "splits.json"), "--reader.cases", str(self.out / "cases.txt")),
            ],
        )

    def pretrain(self, runs: Sequence[Pretraining]) -> None:
        """Run the pretrainings that have no encoder yet, and keep the students' encoders in `encoders/NAME`."""
        self._parallel(self._pretrain, [run for run in runs if not self._encoder(run.name).exists()])

    def scores(self, runs: Sequence[Finetuning]) -> list[Record]:
        """Train and score the networks that have no record yet; return the records of all.

        A network that these start from is trained once more if it is among `runs` and only its record was copied here.
        """
        missing = [run for run in runs if not self._record(run).exists()]
        sources = {run.init.removeprefix("encoder:") for run in missing}
        self._parallel(
            self._finetune,
            [run for run in runs if run.name in sources and not (self.out / "runs" / run.folder / CASES_FILE).exists()],
        )
        self._parallel(self._finetune, [run for run in missing if not self._record(run).exists()])
        return [json.loads(self._record(run).read_text()) for run in runs]

    def records(self) -> list[Record]:
        """Read every record."""
        return [json.loads(path.read_text()) for path in sorted((self.out / "records").glob("*.json"))]

    def seconds(self, run: Pretraining) -> float:
        """Return the seconds that a pretraining took."""
        return float(json.loads((self._encoder(run.name).parent / "cost.json").read_text())["seconds"])

    def updates_in(self, seconds: float) -> int:
        """Return the number of updates, in hundreds, that a finetuning does in that time, measured on all records."""
        rates = [record["updates"] / record["seconds"] for record in self.records()]
        return max(1, round(seconds * float(np.median(rates)) / 100)) * 100

    def hours(self) -> float:
        """Add up the hours of all trainings."""
        costs = [json.loads(path.read_text())["seconds"] for path in (self.out / "encoders").glob("*/cost.json")]
        return sum([*costs, *(record["seconds"] for record in self.records())]) / 3600

    def _pretrain(self, run: Pretraining) -> None:
        self._keep(run.name, RECIPE, run.settings(), asdict(run))

    def _keep(self, name: str, recipe: str, settings: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Pretrain, and keep what a finetuning takes over: the encoder, or encoder and decoder."""
        seconds = self._command("pretrain", name, [*self._data(), *settings], recipe)
        weights = read_weights(find_weights(self.out / "runs" / name))
        prefix = weights.header.get("whole") or encoder_prefix(weights.header)
        kept = {n: tensor for n, tensor in weights.tensors.items() if n.startswith(prefix)}
        folder = self._encoder(name).parent
        write_weights(folder, kept, weights.header)
        write_text(folder / "cost.json", json.dumps({**facts, "seconds": seconds, "commit": self.commit}))

    def _finetune(self, run: Finetuning) -> None:
        part, _, source = run.init.rpartition(":")
        init = "scratch"
        if part == "encoder":
            init = f"encoder:{self.out / 'runs' / source}"
        elif source != "scratch":
            init = f"{part}:{self._encoder(source).parent}".lstrip(":")
        seconds = self._command(
            "finetune", run.folder, [*self._data(), "--init", init, *run.settings(self.scale.all_labels)], run.recipe
        )
        folder = self.out / "runs" / run.folder
        self._command(
            "evaluate",
            f"{run.name}.{run.split}",
            [
                *("--run", str(folder), "--split", run.split, "--checkpoint", "last", "--inference.no-mirror"),
                *("--scoring.metrics", "nsd", "nsd_2mm"),
            ],
        )
        write_text(self._record(run), json.dumps(self._scored(run, folder, seconds), indent=1))

    def _scored(self, run: Finetuning, folder: Path, seconds: float) -> Record:
        dsc: dict[str, dict[str, float]] = {}
        nsd: dict[str, dict[str, float]] = {}
        finer: dict[str, dict[str, float]] = {}
        for score in from_csv((folder / CASES_FILE).read_text(), CASES_FILE):
            if score.voxels:
                dsc.setdefault(score.case, {})[score.class_name] = round(score.dsc, DIGITS)
                nsd.setdefault(score.case, {})[score.class_name] = round(score.nsd, DIGITS)
                finer.setdefault(score.case, {})[score.class_name] = round(score.nsd_2mm, DIGITS)
        rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
        curve = [[row["step"], round(row["val/dice"], DIGITS)] for row in rows if "val/dice" in row]
        return {
            **asdict(run),
            "name": run.name,
            "commit": self.commit,
            "seconds": round(seconds),
            "curve": curve,
            "dsc": dsc,
            "nsd_3mm": nsd,
            "nsd_2mm": finer,
        }

    def _data(self) -> list[str]:
        return ["--data", str(self.out / "shards"), "--runs", str(self.out / "runs")]

    def _encoder(self, name: str) -> Path:
        """Return the file that exists once a pretraining's encoder is kept."""
        return self.out / "encoders" / name / "cost.json"

    def _record(self, run: Finetuning) -> Path:
        path = self.out / "records" / f"{run.name}.{run.split}.json"
        path.parent.mkdir(exist_ok=True)
        return path

    def _parallel(self, work: Any, runs: Sequence[Any]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(work, dict.fromkeys(runs)))

    def _command(self, verb: str, name: str, flags: Sequence[str], recipe: str = RECIPE) -> float:
        """Run a verb as a user would, with its output in `logs/NAME.log`; return the seconds that all its calls took.

        Raises:
            UserError: the command failed; the message names the log and its last line.
        """
        log = self.out / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        training = ["--name", name, "--cluster.threads", str(threads)] if verb in ("pretrain", "finetune") else []
        where = ["--cluster.address", self.address]
        command = [sys.executable, "-m", "anatomask", verb, "--recipe", recipe, *training, *where, *flags]
        spent = log.with_suffix(".seconds")
        before, start = float(spent.read_text()) if spent.exists() else 0.0, time.monotonic()
        with log.open("ab") as output:
            process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=output)
            self._running.add(process)
            code = process.wait()
            self._running.discard(process)
        total = before + time.monotonic() - start
        write_text(spent, str(total))
        if code:
            raise UserError(
                f"{name} failed with exit code {code}; {log} ends with: {log.read_text().splitlines()[-1:]}"
            )
        return total
