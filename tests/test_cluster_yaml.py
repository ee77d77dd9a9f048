"""cluster.yaml: valid by Ray's own check, and in step with what the programs ask of a cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config, with_envs
from ray.dashboard.modules.job.job_supervisor import JobSupervisor

from anatomask.cluster_nodes import DRIVERS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_ray_would_refuse_an_unknown_field(cluster: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="gpus"):
        validate_config(prepare_config({**cluster, "gpus": 8}))


def test_ray_starts_on_the_head_with_what_the_file_says(cluster: dict[str, Any], tmp_path: Path) -> None:
    """Through a `ray` that shows its environment; what `ray up` says of the autoscaler comes before it."""
    (tmp_path / "ray").write_text("#!/bin/sh\nenv\n")
    (tmp_path / "ray").chmod(0o755)
    start = list(with_envs(cluster["head_start_ray_commands"], {"RAY_enable_autoscaler_v2": "1"}))[-1]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shown = subprocess.run(["bash", "-c", start], env=environment, capture_output=True, text=True, check=True).stdout
    found = dict(line.split("=", 1) for line in shown.splitlines() if line.startswith("RAY_"))
    assert found["RAY_enable_autoscaler_v2"] == "0"
    assert int(found["RAY_JOB_STOP_WAIT_TIME_S"]) >= 300 > JobSupervisor.DEFAULT_RAY_JOB_STOP_WAIT_TIME_S


def test_sweeps_find_their_drivers_and_trainings_their_workers(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"][DRIVERS] >= 8
    workers = [types[kind] for kind in types if kind != cluster["head_node_type"]]
    assert [worker["min_workers"] for worker in workers] == [0, 0]  # they come when a training asks
    assert all(worker["max_workers"] >= cluster["max_workers"] for worker in workers)


def test_the_repository_reaches_every_node_and_is_installed_with_exact_versions(cluster: dict[str, Any]) -> None:
    mounts = cluster["file_mounts"]
    root = "/home/ubuntu/anatomask-src"
    for name in ("anatomask", "pipelines", "tune_spaces", "pyproject.toml", "constraints.txt", "LICENSE"):
        assert mounts[f"{root}/{name}"] == name and (ROOT / name).exists()
    setup = "\n".join(cluster["setup_commands"])
    assert "-c constraints.txt" in setup and 'PATH="$HOME/anatomask-src/.venv/bin:$PATH"' in setup


def test_nothing_but_ssh_is_open(cluster: dict[str, Any]) -> None:
    head = "\n".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head and "--ray-client-server-port" not in head
    assert "/home/ubuntu/.ray/auth_token" in cluster["file_mounts"]
    assert any("RAY_AUTH_MODE=token" in command for command in cluster["setup_commands"])
