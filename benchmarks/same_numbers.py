"""Check that a change keeps all numbers: `python benchmarks/same_numbers.py --scans OPENKBP --record FILE`.

It runs short trainings as a user would (two pretraining backends, random masks, masks among the body, two workers, a
run that is stopped and resumed, finetuning from scratch and from a pretraining) and writes the losses of each, update
by update, and a digest of its final weights. After the change, `--against FILE` runs them again on the same machine and
names the differences; there must be none. Digests are of tensors by name, so another file format does not matter. The
last line is JSON; the exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import machine, report

from anatomask.training.journal import METRICS
from anatomask.weights.files import find_weights, read_weights

REPOSITORY = Path(__file__).resolve().parents[1]
CASES = 6
UPDATES = 6
TINY = ["--recipe", "tiny", "--loader.patch-size", "32", "32", "48", "--training.epochs", "2"]
TINY += ["--training.steps-per-epoch", str(UPDATES // 2), "--training.validate-every", "2", "--cluster.threads", "1"]
PRETRAIN = ["pretrain", *TINY, "--splits", "train", "unlabeled", "--method.r0", "0.5"]
SCENARIOS: dict[str, list[str]] = {
    "pretrain-dense": [*PRETRAIN, "--method.sparse-backend", "dense", "--method.patch", "16"],
    "pretrain-blocks": [*PRETRAIN, "--method.sparse-backend", "blocks", "--method.patch", "16"],
    "pretrain-random": [*PRETRAIN, "--method.masking", "random"],
    "pretrain-body": [*PRETRAIN, "--method.patch", "8", "--method.among", "body"],
    "pretrain-two-workers": [*PRETRAIN, "--cluster.workers", "2"],
    "pretrain-resumed": [*PRETRAIN, "--training.checkpoint-every", "1"],
    "finetune-scratch": ["finetune", *TINY],
    "finetune-pretrained": ["finetune", *TINY, "--init", "{runs}/pretrain-blocks"],
    "finetune-two-workers": ["finetune", *TINY, "--cluster.workers", "2"],
}


def main() -> None:
    """Run the trainings, then write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True, help="OpenKBP, laid out as an nnU-Net raw folder")
    parser.add_argument("--record", type=Path, help="file to write")
    parser.add_argument("--against", type=Path, help="file of an earlier --record")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    arguments = parser.parse_args()
    before = json.loads(arguments.against.read_text()) if arguments.against else {}
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.scans.absolute(), arguments.only)
    if arguments.record:
        arguments.record.write_text(json.dumps(found, indent=1))
    changed = [name for name in found if name in before and before[name] != found[name]]
    rows = [
        [name, f"{result['losses'][-1]:.6f}", result["weights"][:12], verdict(name, before, changed)]
        for name, result in found.items()
    ]
    summary = {"changed": changed, "compared": len(found.keys() & before.keys()), "machine": machine("cpu")}
    report("Losses and weights of short trainings", ["", "last loss", "weights", "against"], rows, summary)
    raise SystemExit(1 if changed else 0)


def verdict(name: str, before: dict[str, Any], changed: list[str]) -> str:
    """Describe how a training compares with the recorded one."""
    if name not in before:
        return "-"
    return "CHANGED" if name in changed else "identical"


def measure(folder: Path, scans: Path, names: list[str]) -> dict[str, Any]:
    """Prepare a few scans, run the named trainings, and collect their numbers."""
    splits = json.loads((scans / "splits_final.json").read_text())[0]
    (folder / "cases.txt").write_text("\n".join([*splits["train"][: CASES - 2], *splits["val"][:2]]))
    source = ["--source", str(scans), "--out", str(folder / "shards"), "--reader.cases", str(folder / "cases.txt")]
    run(["prepare", "--recipe", "small", *source])
    found = {}
    needed = ["pretrain-blocks"] if "finetune-pretrained" in names and "pretrain-blocks" not in names else []
    for name in [*needed, *names]:
        flags = [flag.format(runs=folder / "runs") for flag in SCENARIOS[name]]
        command = [*flags, "--data", str(folder / "shards"), "--runs", str(folder / "runs"), "--name", name]
        if name.endswith("resumed"):
            stop_after(command, folder / "runs" / name / METRICS, UPDATES // 2)
        run(command)
        found[name] = numbers(folder / "runs" / name)
    return {name: found[name] for name in names}


def run(command: list[str]) -> None:
    """Run a verb to its end; stop with its output if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "anatomask", *command], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")


def stop_after(command: list[str], metrics: Path, updates: int) -> None:
    """Begin a training and stop it by SIGTERM once `updates` updates are recorded."""
    process = subprocess.Popen(
        [sys.executable, "-m", "anatomask", *command, "--training.log-every", "1"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(losses(metrics)) < updates:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait()


def losses(metrics: Path) -> list[float]:
    """Read the loss of every update that is recorded."""
    if not metrics.exists():
        return []
    rows = [json.loads(line) for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def numbers(folder: Path) -> dict[str, Any]:
    """Collect losses, and a digest of the final weights, tensor by tensor in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(read_weights(find_weights(folder)).tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return {"losses": losses(folder / METRICS), "weights": digest.hexdigest()}


if __name__ == "__main__":
    main()
