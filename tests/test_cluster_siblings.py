"""Files in docs/cluster/, by Ray's own checks; cluster.yaml and SLURM have tests of their own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
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


TEXT: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
SWITCH: dict[str, Any] = {"type": "boolean"}


def closed(required: str = "", **fields: Any) -> dict[str, Any]:
    """Schema of an object that has these fields and no others."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def each(schema: dict[str, Any]) -> dict[str, Any]:
    """Schema of a list."""
    return {"type": "array", "items": schema, "minItems": 1}


AMOUNTS = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^\d+(Gi|Mi|m)?$"}}
CONTAINER = closed(
    "name image resources",
    name=TEXT,
    image=TEXT,
    env=each(closed("name value", name=TEXT, value=TEXT)),
    resources=closed("limits", requests=AMOUNTS, limits=AMOUNTS),
    securityContext=closed(
        runAsNonRoot=SWITCH, allowPrivilegeEscalation=SWITCH, capabilities=closed(drop={"const": ["ALL"]})
    ),
    volumeMounts=each(closed("name mountPath", name=TEXT, mountPath=TEXT)),
)
VOLUME = closed(
    "name",
    name=TEXT,
    persistentVolumeClaim=closed("claimName", claimName=TEXT),
    emptyDir=closed(medium={"enum": ["Memory", ""]}, sizeLimit=TEXT),
)
GROUP = {
    "rayStartParams": {"type": "object", "additionalProperties": TEXT},
    "template": closed("spec", spec=closed("containers", containers=each(CONTAINER), volumes=each(VOLUME))),
}
RAY_JOB = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed("name", name={"type": "string", "pattern": r"^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"}),
    spec=closed(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        backoffLimit=COUNT,
        shutdownAfterJobFinishes=SWITCH,
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=closed(
            "headGroupSpec workerGroupSpecs",
            rayVersion=TEXT,
            authOptions=closed("mode", mode={"enum": ["token", "disabled"]}),
            enableInTreeAutoscaling=SWITCH,
            autoscalerOptions=closed(idleTimeoutSeconds=COUNT),
            headGroupSpec=closed("template", **GROUP),
            workerGroupSpecs=each(
                closed(
                    "groupName template minReplicas maxReplicas",
                    **GROUP,
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                )
            ),
        ),
    ),
)
"""The part of KubeRay's RayJob and of a pod that the file uses, by their API references: no package of PyPI or npm that
was found has KubeRay's own schema. The names of a RayJob are also those that dagster-ray 0.4.8 writes."""


def test_the_job_has_only_fields_and_types_that_kubernetes_and_kuberay_have() -> None:
    job = read("kuberay.yaml")
    jsonschema.validate(job, RAY_JOB)
    mounts, volumes = set[str](), set[str]()
    for group in (job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounts |= {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        volumes |= {volume["name"] for volume in pod["volumes"]}
    assert mounts == volumes


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.rayClusterSpec.workerGroupSpecs.0.minReplica", 0),
        ("spec.rayClusterSpec.enableInTreeAutoScaling", True),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 4),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.env.0.value", 300),
        ("spec.ttlSecondsAfterFinished", "600"),
    ],
)
def test_a_field_that_kubernetes_would_refuse_is_found(path: str, value: object) -> None:
    job = read("kuberay.yaml")
    place: Any = job
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, RAY_JOB)


def test_the_image_is_built_from_files_that_are_there_with_exact_versions() -> None:
    text = (FOLDER / "Containerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()}
    assert {"pyproject.toml", "constraints.txt", "anatomask", "tune_spaces", "README.md", "LICENSE"} == copied
    assert all((ROOT / name).exists() for name in copied)
    assert "-c constraints.txt" in text
    assert re.search(r"^USER \d+$", text, re.MULTILINE), "Kubernetes does not know of a name that it is not root"
