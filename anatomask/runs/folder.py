"""Folder of a run: its name, its configuration, and the machine and versions that made it."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from anatomask.data.addresses import folder_name
from anatomask.data.claims import differences, require_same, short_text
from anatomask.errors import UserError
from anatomask.files import refuse_pipe, write_text
from anatomask.names import file_name, some
from anatomask.parsing import from_json, from_yaml
from anatomask.runs.belongings import CONFIG, ENVIRONMENT, INPUTS, claim_folder, remove_run
from anatomask.runs.identity import identity, run_key
from anatomask.training.journal import note

PACKAGES = ("torch", "ray", "monai", "numpy", "pyarrow", "safetensors", "optuna", "anatomask")


def run_folder(
    runs: str, name: str, verb: str, data: str, settings: Mapping[str, Any], inputs: Mapping[str, str] | None = None
) -> Path:
    """Return the folder of a run: `name`, else `<verb>-<data set>-<eight digits of its key>`; see `run_key`."""
    key = run_key(verb, settings, inputs or {})
    return Path(runs).absolute() / (name or f"{verb}-{file_name(folder_name(data))}-{key[:8]}")


def open_run(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    overwrite: bool,
    inputs: Mapping[str, str] | None = None,
    resources: Mapping[str, Any] | None = None,
) -> None:
    """Begin a run, or continue it when it has the same settings and inputs.

    `config.yaml` (complete), `environment.json` (versions, hardware and `resources`), `inputs.json` (a digest of each
    input) and the marker by which the folder is known as a run's are written. The journal notes what has changed in the
    environment since the run was last opened, for the same numbers are promised only for the same versions, workers and
    threads.

    Args:
        folder: folder of the run.
        settings: the complete configuration.
        overwrite: remove what an earlier run wrote there. The files of others stay, and the journal names them.
        inputs: a digest of what each input holds, by the field of the settings that names it. The same content
            elsewhere is the same input.
        resources: what the training takes of the cluster.

    Raises:
        UserError: the folder holds another run, whose differing fields or inputs are named, a damaged run, or something
            that is not a run.
        OSError: the folder cannot be written.
    """
    claim_folder(folder)
    if overwrite and (others := remove_run(folder)):
        note(folder, f"--overwrite leaves what anatomask did not write: {some(others)}")
    inputs = inputs or {}
    before = _read(folder / CONFIG, from_yaml) or settings
    known = {_field(name): digest for name, digest in _read(folder / INPUTS, from_json).items()}
    contents = [name for name in inputs if name in known]  # their paths may be others
    remedy = "choose another --name, or --overwrite to begin anew"
    if _epochs(before) != _epochs(settings):  # the schedules run over all of them
        remedy = f"other epochs mean other learning rates from the first update on, so it cannot go on: {remedy}"
    require_same(str(folder), "a run", identity(before, contents), identity(settings, contents), remedy)
    if changed := [
        _other_content(name, before.get(name), settings.get(name)) for name in contents if known[name] != inputs[name]
    ]:
        raise UserError(f"{' and '.join(changed)} since {folder} began: {remedy}")
    described = environment() | {"resources": dict(resources or {})}
    earlier = _read(folder / ENVIRONMENT, from_json)
    write_text(folder / INPUTS, json.dumps(dict(inputs), indent=1))
    write_text(folder / CONFIG, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
    if earlier and (other := differences(earlier, described)):
        note(folder, f"goes on in another environment, so numbers may differ in their last digits: {'; '.join(other)}")
    write_text(folder / ENVIRONMENT, json.dumps(described, indent=1))


def _read(path: Path, parse: Callable[[bytes], Any]) -> Mapping[str, Any]:
    """Read a file of a run that holds fields; return none where it is missing.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return {}
    refuse_pipe(path)
    try:
        fields = parse(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); put it back, or begin the run anew with --overwrite") from error
    if not isinstance(fields, Mapping):
        raise UserError(f"{path} is damaged (it holds no fields); put it back, or begin the run anew with --overwrite")
    return fields


def _other_content(name: str, before: Any, now: Any) -> str:
    """Describe an input that has other content than before."""
    flag = f"--{name.replace('_', '-')} {short_text(now)}" if now else f"--{name}"
    return f"{flag} is not {short_text(before)}, or that has changed," if before != now else f"{flag} changed"


def _field(name: str) -> str:
    """Return the field that an input is named by; older versions wrote `--data shards/x`."""
    return name.removeprefix("--").partition(" ")[0] if name.startswith(("--data ", "--init ")) else name


def environment() -> dict[str, Any]:
    """Collect versions, commit and hardware of this process."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "processor": platform.processor() or platform.machine(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Read the commit of the checkout in which this file lies, if it is one; a dirty tree is marked."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _epochs(settings: Mapping[str, Any]) -> Any:
    training = settings.get("training")
    return training.get("epochs") if isinstance(training, Mapping) else None
