"""Score a finetuned run: predict each case of a split on its original grid, then DSC and NSD per case and class.

One Ray task per case. It writes the prediction and then its scores, so a case is finished when its scores exist, and
the same command after a kill goes on with the others. In the run's folder:

    predictions/<case>.nii.gz   label map on the grid of the source
    predictions/<case>.csv      its scores
    evaluation.json             what was evaluated, so that two evaluations never mix
    cases.csv, summary.json     all scores; mean and SD over cases
"""

from __future__ import annotations

import gzip
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console

from anatomask.cluster import running
from anatomask.config import EvaluateConfig
from anatomask.data.addresses import public_address
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.case import evaluate_case
from anatomask.evaluation.inference import logits_bytes, window_count
from anatomask.evaluation.network import build_network, match_dataset, read_network
from anatomask.evaluation.results import (
    CASES_FILE,
    IDENTITY_FILE,
    PREDICTIONS,
    SUMMARY_FILE,
    CaseScore,
    evaluation_files,
    from_csv,
    summarise,
    to_csv,
)
from anatomask.reports.tables import percent
from anatomask.runs.folder import differences
from anatomask.terminal.progress import outages_told, progress_bar
from anatomask.weights.files import TENSORS, find_weights, network_of
from anatomask.weights.header import require_fields
from anatomask.weights.tensor_files import Weights

CPUS_PER_CASE = 4
"""More threads than these hardly speed up a window; further cores take further cases."""
TASK_BYTES = 2**30
"""What a task takes besides a case's arrays: Python, PyTorch, MONAI and the activations of a window."""
REMEDY = "--overwrite evaluates it anew"


@dataclass(frozen=True)
class Job:
    """What every task of an evaluation needs, apart from the weights."""

    config: EvaluateConfig
    run: str
    folder: Storage
    dataset: PreparedDataset
    gpu: bool
    threads: int


def plan(config: EvaluateConfig) -> list[tuple[str, str]]:
    """Rows of the dry run."""
    weights, dataset = _open(config)
    cases = _cases(config, dataset)
    patch = weights.header["patch_size"]
    windows = sum(window_count(dataset.records[case].shape, patch, config.inference.overlap) for case in cases)
    passes = 2 ** len(mirror_axes(weights.header, config))
    logits = max(logits_bytes(dataset.records[case].shape, len(dataset.class_names)) for case in cases)
    parameters = sum(tensor.numel() for tensor in weights.tensors.values())
    return [
        ("run", config.run),
        ("weights", f"{config.checkpoint}, {parameters / 1e6:.2f} M parameters"),
        ("data", f"{dataset.name} ({dataset.shown}), split {config.split}"),
        ("cases", f"{len(cases)}, of which {len(_finished(Storage(config.run), cases))} are finished"),
        ("windows", f"{windows} of {' × '.join(map(str, patch))} voxels, {passes} forward passes each"),
        ("logits of the largest case", f"{logits / 2**30:.2f} GiB"),
        ("memory that each task reserves", f"{_memory(dataset, cases, patch)[0] / 2**30:.2f} GiB"),
    ]


def stage(config: EvaluateConfig, *, overwrite: bool = False) -> int:
    """Evaluate what is not finished yet, then write the tables; returns 1 when a case failed."""
    failures = score_run(config, overwrite=overwrite)
    for case, reason in failures.items():
        Console(stderr=True).print(f"{case}: {reason}", markup=False, highlight=False, style="red", soft_wrap=True)
    return 1 if failures else 0


def score_run(config: EvaluateConfig, *, overwrite: bool = False) -> dict[str, str]:
    """Evaluate what is not finished yet, then write and print the tables; why each of the cases that failed did."""
    weights, dataset = _open(config)
    cases = _cases(config, dataset)
    folder = Storage(Path(config.run).absolute())
    _claim(folder, _identity(config, dataset, weights), overwrite)
    finished = _finished(folder, cases)
    pending = [case for case in cases if case not in finished]
    failures = _evaluate(config, folder, dataset, weights, pending) if pending else {}
    scores = [score for case in cases if case not in failures for score in _read_scores(folder, case)]
    console = Console()
    if scores:
        summary = _summary(config, dataset, weights.header, scores, failures)
        folder.write(CASES_FILE, to_csv(scores).encode())
        folder.write_json(SUMMARY_FILE, summary)
        console.print(_verdict(summary), markup=False, highlight=False)
        console.print(f"{folder.show(SUMMARY_FILE)}, {CASES_FILE}, {PREDICTIONS}/", highlight=False, soft_wrap=True)
    return failures


def _open(config: EvaluateConfig) -> tuple[Weights, PreparedDataset]:
    """The weights of the run, and the data set, once both are known to fit."""
    source = find_weights(config.run, config.checkpoint)
    weights = read_network(source)
    if not config.data:
        require_fields(weights.header, source, "data")
    dataset = PreparedDataset.open(Storage(config.data or weights.header["data"], config.cluster.max_outage))
    return weights, match_dataset(weights.header, dataset, str(source))


def mirror_axes(header: Mapping[str, Any], config: EvaluateConfig) -> list[int]:
    """The axes to mirror in inference: those of the training, or none where the configuration says so."""
    return list(header["mirror_axes"]) if config.inference.mirror else []


def _cases(config: EvaluateConfig, dataset: PreparedDataset) -> list[str]:
    """The cases of the split, sorted.

    Raises UserError when there are none, or none has labels.
    """
    cases = sorted(dataset.splits.get(config.split, ()))
    if not any(dataset.records[case].labelled for case in cases):
        usable = [
            name for name, members in dataset.splits.items() if any(dataset.records[case].labelled for case in members)
        ]
        raise UserError(
            f"split: {dataset.shown} has no labelled cases in {config.split!r}; --split may be {', '.join(usable)}"
        )
    return cases


def _identity(config: EvaluateConfig, dataset: PreparedDataset, weights: Weights) -> dict[str, Any]:
    """What makes two evaluations the same: cases evaluated under another identity are never counted in."""
    with (find_weights(config.run, config.checkpoint) / TENSORS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "data": public_address(dataset.path),
        "prepared": hashlib.sha256(dataset.storage.read("cases.jsonl")).hexdigest(),
        "split": config.split,
        "checkpoint": config.checkpoint,
        "weights": digest,
        "inference": {"overlap": config.inference.overlap, "mirror": config.inference.mirror},
    }


def _claim(folder: Storage, identity: dict[str, Any], overwrite: bool) -> None:
    """Take the run's folder for this evaluation; `overwrite` removes what an earlier one wrote.

    Raises UserError naming what differs when another evaluation lies there and `overwrite` is not set, or which files
    there no evaluation wrote.
    """
    if not folder.exists(IDENTITY_FILE):
        folder.refuse_foreign((PREDICTIONS, CASES_FILE, SUMMARY_FILE), "evaluation", "move it elsewhere")
    elif not overwrite:
        before = folder.read_json(IDENTITY_FILE, REMEDY)
        if not isinstance(before, Mapping):
            raise UserError(f"{folder.show(IDENTITY_FILE)} is damaged (no fields); {REMEDY}")
        changed = differences(before, identity)
        if changed:
            raise UserError(f"{folder.show()} was evaluated differently: {'; '.join(changed)}; {REMEDY}")
        return
    for path in evaluation_files(Path(folder.root)):
        path.unlink()
    folder.write_json(IDENTITY_FILE, identity)


def _finished(folder: Storage, cases: Sequence[str]) -> set[str]:
    return set(folder.names(PREDICTIONS, ".csv")) & set(cases)


def _read_scores(folder: Storage, case: str) -> list[CaseScore]:
    path = f"{PREDICTIONS}/{case}.csv"
    text = folder.read(path).decode(errors="replace")
    return from_csv(text, folder.show(path), "delete that file to evaluate the case again, or --overwrite all")


def _evaluate(
    config: EvaluateConfig, folder: Storage, dataset: PreparedDataset, weights: Weights, cases: Sequence[str]
) -> dict[str, str]:
    """Evaluate the cases, one Ray task each; returns why each of those that failed did."""
    failures = {}
    with running(config.cluster), outages_told(dataset.storage):
        memory, largest = _memory(dataset, cases, weights.header["patch_size"])
        threads, gpu = _resources(config, len(cases), memory, largest)
        job = ray.put(Job(config, Path(config.run).absolute().name, folder, dataset, gpu, threads))
        shared = ray.put(weights)
        # DEFAULT: inside a trial of a sweep, tasks would else be confined to the trial's reservation, which has no CPU.
        task = _evaluate_case.options(num_cpus=threads, num_gpus=int(gpu), memory=memory, scheduling_strategy="DEFAULT")
        for case, error in _completed({task.remote(job, shared, case): case for case in cases}):
            if error is not None:
                failures[case] = error
    return {case: failures[case] for case in cases if case in failures}


def _completed(tasks: dict[ray.ObjectRef, str]) -> Iterator[tuple[str, str | None]]:
    """Each case as its task ends, with the reason if it failed; shows progress and the time left."""
    with progress_bar() as progress:
        bar = progress.add_task("predicting and scoring", total=len(tasks), detail="cases")
        pending = list(tasks)
        while pending:
            (done,), pending = ray.wait(pending, num_returns=1)
            progress.advance(bar)
            try:
                ray.get(done)
                yield tasks[done], None
            except ray.exceptions.RayError as error:
                yield tasks[done], _reason(error)


@ray.remote
def _evaluate_case(job: Job, weights: Weights, case: str) -> None:
    """Predict and score one case and write both; the scores come last and say that the case is finished."""
    torch.set_num_threads(job.threads)
    device = torch.device("cuda" if job.gpu else "cpu")
    network = build_network(weights).to(device)
    patch_size = weights.header["patch_size"]
    axes = mirror_axes(weights.header, job.config)
    result = evaluate_case(network, job.dataset, case, patch_size, axes, job.config.inference, device, job.run)
    compressed = gzip.compress(result.prediction.to_bytes(), compresslevel=3, mtime=0)
    job.folder.write(f"{PREDICTIONS}/{case}.nii.gz", compressed)
    job.folder.write(f"{PREDICTIONS}/{case}.csv", to_csv(result.rows).encode())


def _memory(dataset: PreparedDataset, cases: Sequence[str], patch_size: Sequence[int]) -> tuple[int, str]:
    """Bytes of main memory that a task needs for the case that needs most, and which that is.

    Per voxel of the prepared grid: logits, the sum of the windows' weights (4 bytes), and each channel as stored and
    as float32 (6); per voxel of the source's: three scores and as many label maps while classes are compared (15).
    """

    def needed(case: str) -> int:
        record = dataset.records[case]
        padded = [max(extent, window) for extent, window in zip(record.shape, patch_size, strict=True)]
        prepared = logits_bytes(padded, len(dataset.class_names)) + (4 + 6 * len(record.channels)) * math.prod(padded)
        return TASK_BYTES + prepared + 15 * math.prod(record.original_shape)

    return max((needed(case), case) for case in cases)


def _resources(config: EvaluateConfig, cases: int, memory: int, largest_case: str) -> tuple[int, bool]:
    """CPU threads of a task, and whether it takes a GPU.

    Raises UserError when no node has as much, or not the `memory` (bytes) of a task: Ray would wait for ever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
    gpu = gpus > 0 if config.cluster.gpu is None else config.cluster.gpu
    if gpu and not gpus:
        raise UserError("cluster.gpu: the cluster has no GPU; leave the field out or set it to False")
    usable = [node for node in nodes if not gpu or node.get("GPU", 0)]
    room = max(node.get("memory", 0) for node in usable)
    if memory > room:
        raise UserError(
            f"case {largest_case} needs {memory / 2**30:.1f} GiB of memory to be evaluated, and no node has more than "
            f"{room / 2**30:.1f} GiB for Ray; use a larger machine, or leave the case out of the split"
        )
    largest = int(max(node.get("CPU", 0) for node in usable))
    share = cpus // (gpus if gpu else cases)
    threads = config.cluster.threads or max(1, min(CPUS_PER_CASE, share, largest))
    if threads > largest:
        raise UserError(f"cluster.threads: no node has {threads} CPUs, the largest has {largest}")
    return threads, gpu


def _reason(error: ray.exceptions.RayError) -> str:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, UserError):
        return str(cause)
    return f"{type(cause).__name__}: {cause}"


def _summary(
    config: EvaluateConfig,
    dataset: PreparedDataset,
    header: Mapping[str, Any],
    scores: Sequence[CaseScore],
    failures: Mapping[str, str],
) -> dict[str, Any]:
    initialisation = header["initialisation"]
    network = network_of(header)
    return {
        "run": Path(config.run).absolute().name,
        "method": initialisation["method"],
        "initialisation": _source_name(initialisation.get("run")),
        "network": _network_name(network.base, network.depth),
        "loaded": header.get("loaded"),
        "train_fraction": header.get("train_fraction"),
        "dataset": dataset.name,
        "data": public_address(dataset.path),
        "split": config.split,
        "checkpoint": config.checkpoint,
        **summarise(scores),
        "nsd_tolerance_mm": {name: dataset.nsd_tolerance[c] for c, name in sorted(dataset.class_names.items())},
        "failed": dict(failures),
    }


def _network_name(base: int, depth: int) -> str:
    sizes = {(16, 1): "S", (32, 1): "B", (64, 2): "L", (96, 3): "H"}
    size = sizes.get((base, depth))
    return f"STU-Net-{size}" if size else f"STU-Net (base {base}, depth {depth})"


def _source_name(run: str | None) -> str:
    """Name of the run whose weights the network started from; its checkpoints lie below it."""
    if run is None:
        return "random"
    parts = Path(run).absolute().parts
    return parts[parts.index("checkpoints") - 1] if "checkpoints" in parts else parts[-1]


def _verdict(summary: Mapping[str, Any]) -> str:
    parts = []
    for metric in ("dsc", "nsd"):
        parts.append(f"{metric.upper()} {percent(summary[metric]['mean'], summary[metric]['sd'])} %")
    parts.append(f"{summary['cases']} cases")
    if summary["failed"]:
        parts.append(f"{len(summary['failed'])} failed")
    return f"{summary['run']} on {summary['dataset']} ({summary['split']}): {', '.join(parts)}"
