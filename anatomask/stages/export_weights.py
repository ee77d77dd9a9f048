"""Export of a run's weights to other programs: `anatomask export-weights RUN --format nnunet`. It needs no Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from anatomask.config import ExportWeightsConfig
from anatomask.errors import UserError
from anatomask.weights.exporting import ENDINGS, Export, export_weights, write_export
from anatomask.weights.files import find_weights, read_weights


def plan(config: ExportWeightsConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run."""
    path, export = build_export(config)
    return [("from", str(find_weights(config.run, config.checkpoint))), ("file", str(path)), *describe(export)]


def stage(config: ExportWeightsConfig, *, overwrite: bool) -> int:
    """Write the file, and print what it holds and what it leaves out."""
    path, export = build_export(config)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: choose another --output, or --overwrite it")
    write_export(path, config.format, export)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(str(path))
    for title, text in describe(export):
        console.print(f"{title}: {text}")
    return 0


def build_export(config: ExportWeightsConfig) -> tuple[Path, Export]:
    """Return the path of the file and its content.

    Raises:
        UserError: there are no such weights, or the file's ending does not belong to the format.
    """
    path = output_path(config)
    weights = read_weights(find_weights(config.run, config.checkpoint))
    return path, export_weights(weights, config.format, path.suffix, config.in_channels)


def output_path(config: ExportWeightsConfig) -> Path:
    """Return `--output`, or a file of the usual name in that folder.

    Raises:
        UserError: no program would read a file with this ending.
    """
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
