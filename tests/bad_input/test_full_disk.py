"""A disk that fills up amid any write: one message names the file, and with room again the same command goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bad_input import world
from tests.bad_input.kinds import PREPARE, SMALL
from tests.bad_input.test_bad_input import code_of
from tests.kills.subjects import Digests, file_digests, run_digests

DISK_BYTES = 64 * 2**20
SHARES = (0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
"""Of what a command writes: how much there is room for."""
OFTEN = "--training.checkpoint-every 1 --training.log-every 1 --training.validate-every 1"
TRAIN = f"{SMALL} {OFTEN} --data data --runs disk/runs --name run"


def of_files(pattern: str) -> Callable[[Path], Digests]:
    """Return what takes the digests of these files."""
    return lambda disk: file_digests(disk, pattern)


def of_run(disk: Path) -> Digests:
    """Return the digests of a training."""
    return run_digests(disk / "runs" / "run")


def evaluated(disk: Path) -> None:
    """Put a finetuned run on the disk that was not evaluated."""
    shutil.copytree("runs/finetuned", disk / "run")
    for name in ("evaluation.json", "cases.csv", "summary.json"):
        (disk / "run" / name).unlink()
    shutil.rmtree(disk / "run" / "predictions")


COMMANDS: dict[str, tuple[str, Callable[[Path], Digests]]] = {
    "phantom": ("phantom --cases 1 --size 32 --spacing 8 --out disk/scans", of_files("scans/**/*")),
    "survey": ("survey scans --output disk/found", of_files("found/*.[jc]s*")),
    "prepare": (f"{PREPARE} disk/shards", of_files("shards/**/*")),
    "pretrain": (f"pretrain {TRAIN} --method.decoder-width 16", of_run),
    "finetune": (f"finetune {TRAIN}", of_run),
    "evaluate": ("evaluate --recipe tiny --data data --split train --run disk/run", of_files("run/*s/*.[nc]*")),
    "predict": (
        "predict --recipe tiny --run runs/finetuned --source scans/imagesTr --out disk/predicted",
        of_files("predicted/*.[nt]*"),
    ),
    "report": ("report --runs runs/finetuned --out disk/report", of_files("report/*")),
    "export": ("export-weights runs/finetuned --format nnunet --output disk/w.pth", lambda disk: {}),
    "export ours": (
        "export-weights runs/finetuned --format safetensors --output disk/w.safetensors",
        of_files("*.safetensors"),
    ),
    "export a folder": (
        "export-weights runs/finetuned --format huggingface --output disk/hub",
        of_files("hub/*"),
    ),
    "export a bundle": (
        "export-weights runs/finetuned --format monai-bundle --output disk/bundle",
        of_files("bundle/**/*"),
    ),
}
"""Commands that write on the disk, and what they must leave."""


SLOW = ("pretrain", "finetune", "survey", "predict", "report")
"""Those that take more than some seconds."""


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    """A small file system of its own."""
    where = folder / "disk"
    where.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", where], capture_output=True, text=True
    )
    if mounting.returncode:
        pytest.skip(f"no file system may be mounted here: {mounting.stderr.strip()}")
    yield where
    subprocess.run(["umount", "--lazy", where], check=True)


def clear(disk: Path) -> None:
    """Remove all that is on the disk."""
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in COMMANDS])
def test_a_disk_that_fills_up(
    name: str, disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    world.without_ray(monkeypatch, world.train_here)
    command, digests = COMMANDS[name]

    def begin() -> int:
        """Clear the disk, and return the bytes that are free then."""
        clear(disk)
        if name == "evaluate":
            evaluated(disk)
        return shutil.disk_usage(disk).free

    empty = begin()
    assert code_of(command) == 0
    needed = empty - shutil.disk_usage(disk).free
    expected, refused = digests(disk), 0
    for share in SHARES:
        room = begin() - int(share * needed)
        (disk / "filler").write_bytes(bytes(room))
        capfd.readouterr()
        code, err = code_of(command), capfd.readouterr().err
        (disk / "filler").unlink()
        if code:
            refused += 1
            (line,) = (one for one in err.splitlines() if one.startswith("anatomask"))
            assert "no space is left on the device; free some or choose another folder" in line, err
            assert f"{disk}/" in line.replace(": disk/", f": {disk}/"), line
            assert "Traceback" not in err
            left = [path for path in disk.rglob(".*") if path.is_file() and path.suffix != ".lock"]
            assert not left  # half a file would keep the disk full
        assert code_of(command if not name.startswith("export") else f"{command} --overwrite") == 0, (
            capfd.readouterr().err
        )
        assert digests(disk) == expected
    assert refused >= 3, json.dumps({"needed": needed})
