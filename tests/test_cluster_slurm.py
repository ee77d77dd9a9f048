"""docs/cluster/slurm*.sh: exit codes and the request for a checkpoint, with stand-ins for srun, ray and anatomask."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ray.scripts.scripts import start as ray_start

FOLDER = Path(__file__).parents[1] / "docs" / "cluster"
SCRIPTS = ["slurm.sh", "slurm-shared.sh"]

SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n[[ $1 == mkdir ]] || exec "$@"\n'
"""`srun` that runs its command here, and makes no folder in /tmp."""
RAY = """#!/bin/bash
echo "ray$(printf ' %q' "$@")" >> "$HOME/calls"
case $1 in
symmetric-run) [ -e "$HOME/no-start" ] && exit 0; while [ "$1" != -- ]; do shift; done; shift; "$@" ;;
start) [ -e "$HOME/no-start" ] && exit 1; exec sleep 0.5 ;;
esac
"""
"""`ray` that starts, unless the file `no-start` is there: then symmetric-run exits with 0, as Ray's own does."""
ANATOMASK = """#!/bin/bash
echo "anatomask $*" >> "$HOME/calls"
[ -e "$HOME/long" ] && until [ -e "$HOME/run/stop" ]; do sleep 0.05; done
exit "$(cat "$HOME/code")"
"""


class Node:
    """Home folder on a node with stand-ins on its PATH."""

    def __init__(self, home: Path) -> None:
        self.home = home
        binaries = home / "anatomask/.venv/bin"
        binaries.mkdir(parents=True)
        (home / "run").mkdir()
        (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\n')
        for name, text in (("srun", SRUN), ("ray", RAY), ("anatomask", ANATOMASK)):
            (binaries / name).write_text(text)
            (binaries / name).chmod(0o755)

    def start(self, script: str, code: int = 0) -> subprocess.Popen[str]:
        """Start the script as SLURM would, on two nodes; the stage is to exit with `code`."""
        (self.home / "code").write_text(str(code))
        given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8", "SLURMD_NODENAME": "n1"}
        given |= {"SLURM_SUBMIT_DIR": str(self.home), "HOME": str(self.home), "PATH": os.environ["PATH"]}
        command = ["bash", str(FOLDER / script), str(self.home / "run"), "pretrain", "--name", "a b"]
        return subprocess.Popen(command, env=given, stderr=subprocess.PIPE, text=True)

    def calls(self) -> str:
        """What was called, a line each."""
        return (self.home / "calls").read_text()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize("code", [0, 1, 143])
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_job_ends_with_the_exit_code_of_the_stage(script: str, code: int, node: Node) -> None:
    job = node.start(script, code)
    job.communicate()
    assert job.returncode == code
    (stage,) = (line for line in node.calls().splitlines() if line.startswith("anatomask"))
    assert stage.startswith("anatomask pretrain --name a b --cluster.address ") and "--cluster.gpu True" in stage
    assert not list(node.home.glob("*.ended"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_ray_that_does_not_start_fails_the_job(script: str, node: Node) -> None:
    (node.home / "no-start").touch()
    if script == "slurm-shared.sh":  # no head answers `ray status`
        ray = node.home / "anatomask/.venv/bin/ray"
        ray.write_text(ray.read_text().replace("start)", "status) exit 1 ;;\nstart)"))
    job = node.start(script)
    assert "Ray did not start" in job.communicate()[1] and job.returncode == 1
    assert "anatomask" not in [line.split()[0] for line in node.calls().splitlines()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_before_its_time_is_up_the_job_asks_for_a_checkpoint_and_waits_for_it(script: str, node: Node) -> None:
    (node.home / "long").touch()
    job = node.start(script)
    while not (node.home / "calls").exists() or "anatomask" not in node.calls():
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    job.communicate()
    assert job.returncode == 0 and (node.home / "run/stop").exists()


def test_a_shared_node_keeps_the_ray_of_other_jobs(node: Node) -> None:
    node.start("slurm-shared.sh").communicate()
    starts = [line for line in node.calls().splitlines() if line.startswith("ray start")]
    assert "ray stop" not in node.calls() and "symmetric-run" not in node.calls() and len(starts) == 2
    for option in ("--temp-dir=", "--num-cpus=", "--num-gpus=", "--memory=", "--object-store-memory=", "--block"):
        assert all(option in start for start in starts), option
    for start in starts:  # by Ray's own command line
        given = ray_start.make_context("start", shlex.split(start)[2:]).params
        assert given["block"] and int(given["memory"]) + given["object_store_memory"] <= 64 * 2**30
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in (FOLDER / "slurm-shared.sh").read_text()
    assert "#SBATCH --exclusive" in (FOLDER / "slurm.sh").read_text()


def slurm_answers() -> bool:
    """Whether SLURM is installed and its controller runs."""
    return shutil.which("sbatch") is not None and subprocess.run(["sinfo"], capture_output=True).returncode == 0


@pytest.mark.skipif(not slurm_answers(), reason="no SLURM (Debian's slurm-wlm) runs on this machine")
@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_accepts_the_script(script: str) -> None:
    """With what any cluster has: how many GPUs and nodes there are is not the script's matter."""
    small = ["--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=1M", "--time=1"]
    command = ["sbatch", "--test-only", *small, str(FOLDER / script), "x"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
