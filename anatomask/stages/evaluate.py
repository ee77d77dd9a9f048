"""Evaluation of a finetuned run: each case of a split is predicted on its original grid and scored.

One Ray task per case writes the prediction and then its scores. So a case is finished when its scores exist, and the
same command after a kill continues with the others. The run's folder, or `--out`, then holds:

    predictions/<case>.nii.gz   label map on the grid of the source
    predictions/<case>.csv      its scores
    evaluation.json             what was evaluated, so that two evaluations never mix
    cases.csv, summary.json     all scores; mean and SD over cases
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from anatomask.cluster import running
from anatomask.cluster_settings import ClusterConfig
from anatomask.config import EvaluateConfig
from anatomask.data.folds import cases_digest, fold_name
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.absent import by_rule
from anatomask.evaluation.case import Evaluation
from anatomask.evaluation.forward import forward_pass
from anatomask.evaluation.network import match_dataset, read_network
from anatomask.evaluation.placement import bytes_to_evaluate
from anatomask.evaluation.predictor import mirror_axes
from anatomask.evaluation.results import CASES_FILE, PREDICTIONS, SUMMARY_FILE, to_csv
from anatomask.evaluation.summary import summary_of
from anatomask.evaluation.windows import WindowGrid
from anatomask.reports.tables import verdict
from anatomask.runs.evaluation import claim_evaluation, evaluation_identity, finished_cases, read_scores
from anatomask.runs.remote import local_folder, run_copy
from anatomask.runs.siblings import kinship
from anatomask.stages.cases import map_cases
from anatomask.stages.remarks import little_context, trained_on
from anatomask.terminal.printing import remark, show_failures
from anatomask.terminal.progress import outages_told
from anatomask.weights.files import find_weights, run_name
from anatomask.weights.tensor_files import Weights


def plan(config: EvaluateConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run."""
    config = replace(config, run=str(local_folder(config.run)))
    weights, dataset = _open(config)
    split = scored_split(config, weights.header, dataset)
    cases = labelled_cases(dataset, split)
    finished = finished_cases(Storage(config.out or config.run), cases)
    patch = weights.header["patch_size"]
    shapes = [dataset.records[case].shape for case in cases]
    windows = sum(WindowGrid(shape, tuple(patch), config.inference.overlap).count for shape in shapes)
    passes = 2 ** len(mirror_axes(weights.header, config.inference))
    forward = forward_pass([weights], config.inference)
    memory = max(bytes_to_evaluate(dataset, case, patch, config.inference, forward) for case in cases)
    parameters = sum(tensor.numel() for tensor in weights.tensors.values())
    return [
        ("run", config.run),
        ("weights", f"{config.checkpoint}, {parameters / 1e6:.2f} M parameters"),
        ("data", f"{dataset.name} ({dataset.shown}), split {split}"),
        (
            "cases",
            f"{len(cases)}, of which {len(finished)} are finished",
        ),
        ("windows", f"{windows} of {' × '.join(map(str, patch))} voxels, {passes} forward passes each"),
        ("memory that the largest case reserves", f"{memory / 2**30:.2f} GiB"),
        *(("note", note) for note in _remarks(weights, dataset, split, cases)),
    ]


def stage(config: EvaluateConfig, *, overwrite: bool = False) -> int:
    """Evaluate what is not finished yet, then write the tables; return 1 if a case failed."""
    failures = score_run(config, overwrite=overwrite)
    show_failures("evaluate", failures)
    return 1 if failures else 0


def score_run(config: EvaluateConfig, *, overwrite: bool = False) -> dict[str, str]:
    """Evaluate what is not finished yet, then write and print the tables; return the reason of each failed case.

    The tasks write the results of a run at an address there, since they may run on machines that share no folder.
    """
    copy = run_copy(config.run, config.cluster.max_outage)
    config = replace(config, run=str(copy.found()))
    weights, dataset = _open(config)
    split = scored_split(config, weights.header, dataset)
    cases = labelled_cases(dataset, split)
    folder = Storage(Path(config.out or config.run).absolute())
    source = find_weights(config.run, config.checkpoint)
    identity = evaluation_identity(dataset, split, config.checkpoint, source, config.inference, config.scoring.metrics)
    claim_evaluation(folder, identity, overwrite=overwrite)
    copy.upload()
    for note in _remarks(weights, dataset, split, cases):
        remark(note)
    run = Path(config.run).absolute().name
    finished = finished_cases(folder, cases)
    pending = [case for case in cases if case not in finished]
    metrics = config.scoring.metrics_of(dataset.info.reader)
    results = folder if config.out else copy.results
    evaluation = Evaluation(run, results, dataset, config.inference, metrics)
    failures = evaluate_cases(evaluation, weights, pending, config.cluster) if pending else {}
    copy.fetch()
    scores = [score for case in cases if case not in failures for score in read_scores(folder, case)]
    scores = by_rule(scores, config.scoring.absent)
    if scores:
        began = weights.header["initialisation"].get("run")
        initialisation = "random" if began is None else run_name(began)
        summary = summary_of(
            run, initialisation, split, config.checkpoint, weights.header, dataset, scores, failures
        ) | {
            "absent": config.scoring.absent,
            "training": kinship(Path(config.run)),
            "inference": identity["inference"],
        }
        folder.write(CASES_FILE, to_csv(scores).encode())
        folder.write_json(SUMMARY_FILE, summary)
        copy.complete()
        console = Console()
        console.print(verdict(summary), markup=False, highlight=False)
        console.print(f"{folder.show(SUMMARY_FILE)}, {CASES_FILE}, {PREDICTIONS}/", highlight=False, soft_wrap=True)
    return failures


def _remarks(weights: Weights, dataset: PreparedDataset, split: str, cases: Sequence[str]) -> list[str]:
    shapes = {case: dataset.records[case].shape for case in cases}
    return trained_on(weights.header, dataset, split) + little_context(shapes, weights.header["patch_size"])


def _open(config: EvaluateConfig) -> tuple[Weights, PreparedDataset]:
    """Open the weights of the run and the data set, and check that they fit."""
    source = find_weights(config.run, config.checkpoint)
    weights = read_network(source)
    if not config.data and "data" not in weights.header:
        raise UserError(f"{source} does not say which data it was trained on (exported?); name a folder by --data")
    dataset = PreparedDataset.open(Storage(config.data or weights.header["data"], config.cluster.max_outage))
    return weights, match_dataset(weights.header, dataset, str(source))


def scored_split(config: EvaluateConfig, header: Mapping[str, Any], dataset: PreparedDataset) -> str:
    """Return the split to score: the one that is named, else the fold that training left out, else test.

    Raises:
        UserError: the data set has no fold of the cases that the run left out.
    """
    fold = header.get("fold")
    if config.split or fold is None:
        return config.split or "test"
    name = fold_name(fold["number"])
    if cases_digest(dataset.splits.get(name, ())) != fold["cases"]:
        raise UserError(
            f"{dataset.shown}: {name} does not hold the cases that {config.run} left out of its training, and others "
            "may have been trained on; name the split to score by --split"
        )
    return name


def labelled_cases(dataset: PreparedDataset, split: str) -> list[str]:
    """Return the cases of the split, sorted.

    Raises:
        UserError: the split has no cases, or none with labels.
    """
    cases = sorted(dataset.splits.get(split, ()))
    if not any(dataset.records[case].labelled for case in cases):
        usable = ", ".join(
            name for name, members in dataset.splits.items() if any(dataset.records[case].labelled for case in members)
        )
        remedy = f"--split may be {usable}" if usable else "prepare a source that has labels"
        raise UserError(f"split: {dataset.shown} has no labelled cases in {split!r}; {remedy}")
    return cases


def evaluate_cases(
    evaluation: Evaluation, weights: Weights, cases: Sequence[str], cluster: ClusterConfig
) -> dict[str, str]:
    """Evaluate the cases, one Ray task each; return the reason of each that failed."""
    patch, inference = weights.header["patch_size"], evaluation.inference
    forward = forward_pass([weights], inference)
    needs = {case: bytes_to_evaluate(evaluation.dataset, case, patch, inference, forward) for case in cases}
    with running(cluster), outages_told(evaluation.dataset.storage):
        return map_cases("predicting and scoring", evaluation, weights, needs, cluster)
