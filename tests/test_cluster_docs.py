"""Commands of the pages on clusters, taken from there and given to Ray's own code and to the verbs' command line."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
from ray.dashboard.modules.job.cli import submit

from anatomask.cli.arguments import parse
from anatomask.recipes import RECIPES

ROOT = Path(__file__).parents[1]
MADE = (".git/HEAD", ".venv/bin/python", "runs/a/config.yaml", "demo/x.parquet", "data/ct.nii", "shards/x.parquet")
"""Files of a checkout that no node needs."""


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    """The documented `ray job submit`, as Ray's own command line reads it."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    (command,) = re.findall(r"^    (ray job submit (?:.*\\\n)*.*)$", page, re.MULTILINE)
    return submit.make_context("submit", shlex.split(command.replace("\\\n", ""))[3:]).params


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git tracks, and what a user's work leaves beside it."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.rstrip("\0").split("\0"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / ".gitignore").unlink()  # Ray reads it too; the command does without
    for name in MADE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def shipped(checkout: Path, job: dict[str, Any], target: Path) -> set[str]:
    """Names of the files that Ray would send to the cluster."""
    environment = parse_runtime_env_args(job["runtime_env"], job["runtime_env_json"], str(checkout))

    def upload(folder: str, excludes: list[str] | None, is_file: bool = False) -> None:
        create_package(folder, target, include_gitignore=True, excludes=excludes)

    upload_working_dir_if_needed(environment, include_gitignore=True, upload_fn=upload)
    with zipfile.ZipFile(target) as archive:
        return set(archive.namelist())


def test_a_job_ships_the_checkout_without_what_was_made_in_it(
    job: dict[str, Any], checkout: Path, tmp_path: Path
) -> None:
    present = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()}
    assert "anatomask/data/storage.py" in present and set(MADE) <= present
    assert shipped(checkout, job, tmp_path / "job.zip") == present - set(MADE)


def test_excludes_without_a_slash_would_leave_the_package_s_own_folders_out(
    job: dict[str, Any], checkout: Path, tmp_path: Path
) -> None:
    bare = job | {"runtime_env_json": job["runtime_env_json"].replace('"/', '"')}
    assert "anatomask/data/storage.py" not in shipped(checkout, bare, tmp_path / "job.zip")


def commands() -> list[tuple[str, list[str]]]:
    """Verb and arguments of each `pipelines/<verb>.py` and each `sbatch` in the pages."""
    pages = [ROOT / "README.md", ROOT / "docs" / "cluster.md", *(ROOT / "docs" / "cluster").glob("*.md")]
    text = "\n".join(re.sub(r" *\\\n *", " ", page.read_text()) for page in pages)
    text = re.sub(r"`([^`]*)`", lambda code: code[0].replace("\n", " "), text)
    found = re.findall(r"pipelines/(\w+)\.py(?: --)? (--[^`\n]*)", text)
    found += re.findall(r"sbatch \S+ \S+ (\w+) (--[^`\n]*)", text)
    return [(verb, shlex.split(flags)) for verb, flags in found]


def test_the_verbs_accept_every_command_of_the_pages() -> None:
    verbs = [verb for verb, _ in commands()]
    assert set(verbs) == {"prepare", "pretrain", "finetune", "evaluate"} and verbs.count("pretrain") >= 4
    for verb, argv in commands():  # the run to finetune from is not here
        parse(verb, ["scratch" if before == "--init" else word for before, word in pairwise(["", *argv])], RECIPES)


def test_the_job_runs_a_program_that_is_shipped(job: dict[str, Any]) -> None:
    python, program, *_ = job["entrypoint"]
    assert job["working_dir"] == "." and python == "python" and (ROOT / program).is_file()
