"""Export of a run's weights to other programs: `anatomask export-weights RUN --format nnunet`. It needs no Ray."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from anatomask.config import ExportWeightsConfig
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation import bundle_files
from anatomask.evaluation.network import check_network
from anatomask.evaluation.results import IDENTITY_FILE, SUMMARY_FILE
from anatomask.files import write_text
from anatomask.reports.evaluated_runs import read_run
from anatomask.runs.evaluation import EVALUATION
from anatomask.runs.remote import local_folder
from anatomask.stages.import_weights import check_folder
from anatomask.weights.axes import IN_WORDS
from anatomask.weights.exporting import ENDINGS, FOLDERS, Export, export_weights, write_export
from anatomask.weights.files import TENSORS, find_weights, read_weights, run_name, weights_digest, write_weights
from anatomask.weights.model_card import MODEL_CARD, guide, model_card


def plan(config: ExportWeightsConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run."""
    path, export = build_export(config)
    what = "folder" if config.format in FOLDERS else "file"
    return [("from", str(find_weights(config.run, config.checkpoint))), (what, str(path)), *describe(export)]


def stage(config: ExportWeightsConfig, *, overwrite: bool) -> int:
    """Write the file or the folder, and print what it holds and what it leaves out."""
    path, export = build_export(config)
    if config.format in FOLDERS:
        write_folder(path, export, config, overwrite=overwrite)
    else:
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists: choose another --output, or --overwrite it")
        write_export(path, config.format, export)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(str(path))
    for title, text in describe(export):
        console.print(f"{title}: {text}")
    return 0


def build_export(config: ExportWeightsConfig) -> tuple[Path, Export]:
    """Return the path of the file or the folder, and its content.

    Raises:
        UserError: there are no such weights, or they or the file's ending do not belong to the format.
    """
    path = output_path(config)
    source = find_weights(config.run, config.checkpoint)
    weights = read_weights(source)
    if config.format == "monai-bundle" and weights.header.get("kind") == "segmentation":
        check_network(weights, source)
        bundle_files.require_importable(weights.header)
    return path, export_weights(weights, config.format, path.suffix, config.in_channels)


def write_folder(folder: Path, export: Export, config: ExportWeightsConfig, *, overwrite: bool) -> None:
    """Write a folder of weights and of the texts that describe them.

    Raises:
        UserError: the folder is a run's or a file, or holds weights or other files of these names already.
    """
    if folder.is_file():
        raise UserError(f"--output {folder} is a file: choose a folder")
    texts = texts_of(export, config)
    weights = folder / bundle_files.MODELS if config.format == "monai-bundle" else folder
    check_folder(folder, overwrite)
    check_folder(weights, overwrite)
    ours = (weights / TENSORS).exists()  # they are written before the texts
    for name in texts:
        if (folder / name).exists() and not (overwrite and ours):
            remedy = "choose another folder, or --overwrite" if ours else "choose another folder"
            raise UserError(f"--output {folder} holds a {name} already: {remedy}")
    write_weights(weights, export.content, export.header)
    for name, text in texts.items():
        write_text(folder / name, text)


def texts_of(export: Export, config: ExportWeightsConfig) -> dict[str, str]:
    """Write what describes weights, by the names of the files; the scores of the run if they are of these weights.

    Raises:
        UserError: the files of the run's evaluation are damaged.
    """
    run = local_folder(config.run)
    name, licence = run_name(run), config.license
    scores = scores_of(run, find_weights(run, config.checkpoint)) if config.in_channels is None else None
    if config.format == "huggingface":
        return {MODEL_CARD: model_card(name, export, licence, scores)}
    described = {
        bundle_files.METADATA: bundle_files.metadata(name, export.header, licence, scores),
        bundle_files.INFERENCE: bundle_files.inference(export.header),
    }
    return {
        **{file: json.dumps(content, indent=4) + "\n" for file, content in described.items()},
        bundle_files.GUIDE: guide(name, export, licence, scores, bundle_files.how_to_run()),
        bundle_files.LICENCE: bundle_files.licence_note(licence),
    }


def scores_of(run: Path, weights: Path) -> Mapping[str, Any] | None:
    """Read the summary of a run's evaluation; None where there is none, or it was of other weights of the run.

    Raises:
        UserError: the evaluation's files are damaged.
    """
    identity = EVALUATION.earlier(Storage(run)) if (run / IDENTITY_FILE).is_file() else None
    if identity is None or identity.get("weights") != weights_digest(weights) or not (run / SUMMARY_FILE).is_file():
        return None
    return read_run(str(run)).summary


def output_path(config: ExportWeightsConfig) -> Path:
    """Return `--output`, or a file of the usual name in that folder; of a folder that is exported, the folder.

    Raises:
        UserError: no program would read a file with this ending.
    """
    if config.format in FOLDERS:
        return Path(config.output or Path(config.run) / "exported" / config.format).absolute()
    endings = ENDINGS[config.format]
    path = Path(config.output or Path(config.run) / "exported").absolute()
    if path.is_dir() or not path.suffix:
        path /= ("model" if config.format == "safetensors" else config.format) + endings[0]
    if path.suffix not in endings:
        raise UserError(
            f"--output {config.output}: a file of format {config.format} ends in {' or '.join(endings)}; "
            "choose such a name"
        )
    return path


def describe(export: Export) -> list[tuple[str, str]]:
    """Return titles and texts of what is exported, what completes it, and what is left out."""
    rows = [
        ("tensors", f"{export.exported}"),
        ("axes", IN_WORDS[export.axes]),
        ("strides", f"{export.strides} relative to the input; the network that loads the file needs the same"),
    ]
    if export.fresh:
        rows.append(("freshly drawn, not trained", _grouped(export.fresh, 1)))
    if export.left_out:
        rows.append(("not transferred", _grouped(export.left_out, 2)))
    return rows


def _grouped(names: Sequence[str], depth: int) -> str:
    groups = Counter(".".join(name.split(".")[:depth]) for name in names)
    return ", ".join(f"{group}.* ({count} tensors)" for group, count in groups.items())
