"""Files of a run: the marker by which its folder is known, and what `--overwrite` removes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from anatomask.errors import UserError
from anatomask.evaluation.results import evaluation_files
from anatomask.files import write_text
from anatomask.parsing import from_json
from anatomask.runs.checkpoint_index import CHECKPOINTS

MARKER = "anatomask-run.txt"
CONFIG = "config.yaml"
INPUTS = "inputs.json"
ENVIRONMENT = "environment.json"

INDEX = f"{CHECKPOINTS}/index.json"
WRITTEN = (
    *("stop", "metrics.jsonl", "non_finite.jsonl", "log.txt", "events.out.tfevents.*"),
    *("checkpoints/step_*/*.safetensors", "checkpoints/step_*/*.json", "checkpoints/.step_*/*", "pictures/**/*.png"),
    *("exported/*.pth", "exported/*.pt", "exported/*.model", "exported/*.safetensors"),
    *(f"exported/huggingface/{name}" for name in ("model.safetensors", "model.json", "README.md")),
    *("exported/monai-bundle/LICENSE", "exported/monai-bundle/configs/*.json", "exported/monai-bundle/docs/README.md"),
    *("exported/monai-bundle/models/model.safetensors", "exported/monai-bundle/models/model.json"),
    *("study.db", "study.db-journal", "sweep.csv", "study.png", "table.csv", "table.md", "tune.log"),
    "hparams/*/events.out.tfevents.*",
    *(INPUTS, ENVIRONMENT, CONFIG, "trackers.json"),
)
"""Patterns of the files that the program writes into the folder of a run or a sweep, besides those of an evaluation."""

OF_RAY = ("ray", "tune")
"""Folders in which Ray keeps its state of a training and of a sweep."""

TRIALS = "[0-9][0-9][0-9]*-*/*"
"""Pattern of the runs of a sweep's trials."""

TEMPORARY = re.compile(r"\..+\.(\d+|[0-9a-f]{8}\.tmp)")
"""Name of a file whose writing was cut off."""

TEXT = "A run of anatomask. Its --overwrite removes the files that anatomask wrote into this folder, and no others.\n"


def claim_folder(folder: Path) -> None:
    """Make `folder` a run's folder, if it is none yet.

    Raises:
        UserError: the folder holds files of something else.
        OSError: the folder cannot be written.
    """
    if not is_run(folder) and folder.exists() and any(not TEMPORARY.fullmatch(path.name) for path in folder.iterdir()):
        raise UserError(f"{folder} holds files and is not a run's folder: choose another --name")
    if not (folder / MARKER).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / MARKER, TEXT)


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's: by its marker, or by the files of older versions, which wrote no marker."""
    if (folder / MARKER).is_file():
        return True
    if not (folder / CONFIG).is_file():
        return False
    try:
        described = from_json((folder / ENVIRONMENT).read_bytes())
    except (OSError, ValueError):
        return False
    packages = described.get("packages") if isinstance(described, Mapping) else None
    return isinstance(packages, Mapping) and "anatomask" in packages and "python" in described


def remove_run(folder: Path) -> list[str]:
    """Remove what the program wrote into the folder of a run or a sweep; the marker stays.

    The index of the checkpoints is removed first and the settings last, so a run that is half removed begins anew and
    still has its settings.

    Returns:
        The files of others, which stay, relative to `folder`.
    """
    _remove(folder, folder / INDEX)
    for name in OF_RAY:
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
    for link in [path for path in folder.glob(TRIALS) if path.is_symlink()]:  # into the store, which stays
        _remove(folder, link)
    for run in [path for path in folder.glob(TRIALS) if is_run(path)]:
        if not remove_run(run):
            _remove(folder, run / MARKER)
    for path in [*evaluation_files(folder), *_written_files(folder)]:
        _remove(folder, path)
    return sorted(str(path.relative_to(folder)) for path in _files(folder) if path.name != MARKER)


def _written_files(folder: Path) -> Iterator[Path]:
    """List the files of the patterns. Behind a linked folder, only checkpoints have names that nobody else gives."""
    for pattern in WRITTEN:
        top = folder / pattern.partition("/")[0]
        if not (top.is_symlink() and top.is_dir()) or top == folder / CHECKPOINTS:
            yield from (path for path in list(folder.glob(pattern)) if not path.is_dir())


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir() and not TEMPORARY.fullmatch(path.name))


def _remove(folder: Path, path: Path) -> None:
    """Remove a file, and the folders below `folder` that it leaves empty; a linked folder stays."""
    path.unlink(missing_ok=True)
    for parent in path.parents:
        if parent == folder or parent.is_symlink() or not parent.is_dir() or any(parent.iterdir()):
            return
        parent.rmdir()
