"""Files in docs/cluster/, by Ray's own checks; cluster.yaml and SLURM have tests of their own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.local.config import LOCAL_CLUSTER_NODE_TYPE
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

from anatomask.cli.arguments import parse
from anatomask.cluster_nodes import DRIVERS, require_trials
from anatomask.cluster_shares import shapes
from anatomask.recipes import RECIPES
from tests.test_packaging import pins

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "cluster"


def read(name: str) -> dict[str, Any]:
    """One of the files."""
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.mark.parametrize("name", ["gcp.yaml", "machines.yaml"])
def test_ray_accepts_it(name: str) -> None:
    validate_config(prepare_config(read(name)))
    with pytest.raises(Exception, match="gpus"):
        validate_config(prepare_config({**read(name), "gpus": 8}))


@pytest.mark.parametrize("name", ["gcp.yaml", "machines.yaml"])
def test_it_installs_and_starts_what_cluster_yaml_does(name: str) -> None:
    one, aws = read(name), yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert list(one["file_mounts"].values()) == list(aws["file_mounts"].values())
    assert {Path(path).name for path in one["file_mounts"]} == {Path(path).name for path in aws["file_mounts"]}
    setup, start = "\n".join(one["setup_commands"]), "\n".join(one["head_start_ray_commands"])
    assert "-c constraints.txt" in setup and "RAY_AUTH_MODE=token" in setup
    assert "--dashboard-host=127.0.0.1" in start and "RAY_enable_autoscaler_v2=0" in start
    assert "RAY_JOB_STOP_WAIT_TIME_S=300" in start
    assert one["worker_start_ray_commands"] == aws["worker_start_ray_commands"]


@pytest.mark.parametrize("path", [ROOT / "cluster.yaml", FOLDER / "gcp.yaml", FOLDER / "machines.yaml"])
def test_rays_command_line_accepts_how_it_is_started(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    for kind in ("head", "worker"):
        (started,) = (
            re.findall(r"ray start (.*)", command)[0]
            for command in config[f"{kind}_start_ray_commands"]
            if "ray start" in command
        )
        assert ray_start.make_context("start", shlex.split(started)).params["head"] == (kind == "head")


def test_machines_of_ones_own_join_at_once_and_the_head_runs_trials() -> None:
    config = prepare_config(read("machines.yaml"))
    assert config["available_node_types"][LOCAL_CLUSTER_NODE_TYPE]["min_workers"] == 2
    assert f"--resources='{{\"{DRIVERS}\": 16}}'" in "\n".join(config["head_start_ray_commands"])


def added(kinds: dict[str, Any], head: str, workers: int) -> dict[str, int]:
    """Machines that Ray's autoscaler starts for a training on so many GPUs."""
    argv = ["--cluster.workers", str(workers), "--cluster.gpu", "True", "--cluster.address", "auto", "--data", "x"]
    wanted: list[Any] = shapes(
        parse("pretrain", ["--recipe", "paper-b", *argv, "--training.batch-size", "8"], RECIPES).config.cluster
    )

    def score(node: Any, resources: Any, kind: str) -> Any:
        return _default_utilization_scorer(node, resources, kind, node_availability_summary=NodeAvailabilitySummary({}))

    made, left = get_nodes_for(kinds, {head: 1}, head, 2, wanted, score)
    assert not left
    return dict(made)


def test_workers_on_google_cloud_come_when_a_training_asks() -> None:
    config = read("gcp.yaml")
    assert [added(config["available_node_types"], "head", workers) for workers in (1, 8)] == [{"gpu": 1}, {"gpu": 2}]
    assert "scheduling" not in config["available_node_types"]["head"]["node_config"]  # never spot


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return read("kuberay.yaml")["spec"]


@pytest.fixture(scope="module")
def derived(job: dict[str, Any]) -> dict[str, Any]:
    """Settings of Ray's autoscaler in the head's pod."""
    resource = {"metadata": {"name": "x", "namespace": "default"}, "spec": job["rayClusterSpec"]}
    return _derive_autoscaling_config_from_ray_cr(resource)


def test_rays_autoscaler_reads_the_pods_of_the_job(derived: dict[str, Any]) -> None:
    head, gpu = (derived["available_node_types"][name] for name in (derived["head_node_type"], "gpu"))
    assert head["resources"][DRIVERS] == 16 and "GPU" not in head["resources"]
    assert (gpu["min_workers"], gpu["max_workers"], gpu["resources"]["GPU"]) == (0, 2, 4)
    require_trials([{DRIVERS: 16, "memory": 0.6 * head["resources"]["memory"]}], 16)
    assert [added(derived["available_node_types"], derived["head_node_type"], n) for n in (4, 8)] == [
        {"gpu": 1},
        {"gpu": 2},
    ]


def test_the_job_asks_for_what_its_cluster_can_give_and_is_guarded_by_a_token(job: dict[str, Any]) -> None:
    program, verb, *argv = job["entrypoint"].split()
    cluster = parse(verb, argv, RECIPES).config.cluster
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert program == "anatomask" and cluster.workers <= group["maxReplicas"] * gpus and cluster.wait_minutes > 0
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert job["rayClusterSpec"]["rayVersion"] == str(pins()["ray"].specifier).removeprefix("==")


def test_the_image_is_built_from_files_that_are_there_with_exact_versions() -> None:
    text = (FOLDER / "Containerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()}
    assert {"pyproject.toml", "constraints.txt", "anatomask", "tune_spaces", "README.md", "LICENSE"} == copied
    assert all((ROOT / name).exists() for name in copied)
    assert "-c constraints.txt" in text
    assert re.search(r"^USER \d+$", text, re.MULTILINE), "Kubernetes does not know of a name that it is not root"
