"""Seconds in which a node installs the project: `python benchmarks/node_setup.py [--quick] [--cluster cluster.yaml]`.

The setup commands of a cluster's YAML that concern the package run in an empty home folder beside copies of its mounts:
the virtual environment, pip with the pinned versions and no cache, the shell's settings. What needs root or a cloud
(apt, the shared folder) is left out. Downloads count, so the time is that of this machine and its package index; the
gigabytes that are installed say how much of it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from measure import machine, report

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "anatomask-src"
"""Name of the folder on a node that holds the package."""
QUICK = 1
"""Number of commands in a quick run: it installs nothing."""


def main() -> None:
    """Measure, and print."""
    arguments = parse()
    cluster = yaml.safe_load(Path(arguments.cluster).read_text(encoding="utf-8"))
    commands = [command for command in cluster["setup_commands"] if SOURCE in command]
    if arguments.quick:
        commands = commands[:QUICK]
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        copy_mounts(cluster, home)
        seconds = [run(command, home) for command in commands]
        installed = size(home / SOURCE / ".venv")
    result = {
        "seconds": sum(seconds),
        "seconds_of_each": dict(zip(commands, seconds, strict=True)),
        "installed_gb": installed / 1e9,
        "load_average": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "machine": machine("cpu"),
    }
    rows = [[f"{command[:60]} …", f"{took:.1f}"] for command, took in zip(commands, seconds, strict=True)]
    title = f"Installing a node: {result['seconds']:.0f} s for {installed / 1e9:.1f} GB"
    report(title, ["command", "seconds"], rows, result)


def copy_mounts(cluster: dict[str, Any], home: Path) -> None:
    """Copy the mounts of the package into `home`, as `ray up` does."""
    for there, here in cluster["file_mounts"].items():
        if SOURCE not in there:  # the token
            continue
        target, source = home / SOURCE / Path(there).name, ROOT / here
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def run(command: str, home: Path) -> float:
    """Run a setup command in `home`, with this Python; return its seconds."""
    command = command.replace("python3 -m venv", f"{sys.executable} -m venv")
    started = time.monotonic()
    subprocess.run(["bash", "-c", command], cwd=home, env={**os.environ, "HOME": str(home)}, check=True)
    return time.monotonic() - started


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", default=str(ROOT / "cluster.yaml"), help="YAML of a cluster")
    parser.add_argument("--quick", action="store_true", help="make the environment only, and install nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
