"""cluster.yaml on AWS: Ray's own provider, against moto's EC2 and IAM in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws import utils
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

from anatomask.autoscaling import available_first
from anatomask.cluster_nodes import require_trials
from anatomask.cluster_settings import ClusterConfig
from anatomask.cluster_shares import divide, shapes

ROOT = Path(__file__).parents[1]
REGION = "us-east-1"
ROLES = {"anatomask-head", "anatomask-gpu"}


class Account:
    """AWS account as docs/cluster/aws.md leaves it, and the calls that are made in it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        boto3.setup_default_session(region_name=REGION)
        boto3.DEFAULT_SESSION.events.register("before-call", self._record)
        self.ec2, self.iam = boto3.client("ec2"), boto3.client("iam")
        self.group = self.ec2.create_security_group(GroupName="anatomask", Description="nodes")["GroupId"]
        for role in ROLES:
            self.iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
            self.iam.create_instance_profile(InstanceProfileName=role)
            self.iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        self.image = self.ec2.describe_images()["Images"][0]["ImageId"]
        self.calls.clear()

    def _record(self, model: Any, **event: Any) -> None:
        self.calls.append(f"{model.service_model.endpoint_prefix}:{model.name}")

    def filled(self) -> dict[str, Any]:
        """cluster.yaml with the names of this account, as Ray completes it for `ray up`."""
        text = (ROOT / "cluster.yaml").read_text()
        for before, after in {"ami-REPLACE-ME": self.image, "sg-REPLACE-ME": self.group}.items():
            assert before in text
            text = text.replace(before, after)
        config = bootstrap_aws(prepare_config(yaml.safe_load(text)))
        return AWSNodeProvider.fillout_available_node_types_resources(config)


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    caches = (utils.resource_cache, utils.client_cache)
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # where Ray writes the SSH key
        for cache in caches:
            cache.cache_clear()
        yield Account()
    boto3.DEFAULT_SESSION = None
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(scope="module")
def config(account: Account) -> dict[str, Any]:
    return account.filled()


def test_ray_makes_no_role_of_its_own_and_opens_ssh_to_nobody(account: Account, config: dict[str, Any]) -> None:
    assert {role["RoleName"] for role in account.iam.list_roles()["Roles"]} == ROLES
    groups = account.ec2.describe_security_groups()["SecurityGroups"]
    assert {group["GroupName"] for group in groups} == {"default", "anatomask"}
    assert not [rule for group in groups for rule in group["IpPermissions"] if rule["IpRanges"]]


def test_a_worker_is_spot_a_head_is_not_and_each_has_its_own_role(account: Account, config: dict[str, Any]) -> None:
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    market = {}
    for kind, node in config["available_node_types"].items():
        account.calls.clear()
        (name,) = provider.create_node(node["node_config"], {TAG_RAY_CLUSTER_NAME: config["cluster_name"]}, 1)
        (made,) = provider.non_terminated_nodes({TAG_RAY_CLUSTER_NAME: config["cluster_name"]})
        assert made == name
        described = account.ec2.describe_instances(InstanceIds=[name])["Reservations"][0]["Instances"][0]
        role = "head" if kind == "head" else "gpu"
        assert described["IamInstanceProfile"]["Arn"].endswith(f"/anatomask-{role}")
        assert [group["GroupId"] for group in described["SecurityGroups"]] == [account.group]
        assert described["Placement"]["AvailabilityZone"] == config["provider"]["availability_zone"]
        market[kind] = described.get("InstanceLifecycle")
        provider.set_node_tags(name, {"a": "b"})
        provider.node_tags(name)
        provider.terminate_node(name)
    assert market == {"head": None, "gpu-on-demand": None, "gpu-spot": "spot"}
    policy = json.loads((ROOT / "docs/cluster/aws-head-policy.json").read_text())
    allowed = {action for statement in policy["Statement"] for action in statement["Action"] if ":" in action}
    assert {"ec2:RunInstances", "ec2:TerminateInstances"} <= set(account.calls) <= allowed


def test_the_head_ends_the_machines_of_this_cluster_alone_and_hands_out_one_role() -> None:
    policy = json.loads((ROOT / "docs/cluster/aws-head-policy.json").read_text())
    by_action = {str(statement["Action"]): statement for statement in policy["Statement"]}
    name = yaml.safe_load((ROOT / "cluster.yaml").read_text())["cluster_name"]
    condition = {"StringEquals": {f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}": name}}
    assert by_action["['ec2:TerminateInstances']"]["Condition"] == condition
    assert by_action["iam:PassRole"]["Resource"].endswith(":role/anatomask-gpu")
    assert not [action for action in re.findall(r'"(\w+:[\w*]+)"', json.dumps(policy)) if "*" in action]


def test_the_drivers_of_trials_fit_into_the_memory_of_the_head(config: dict[str, Any]) -> None:
    """Ray offers what its object store (30 %) and the system leave: here, at least 60 %."""
    kind = config["available_node_types"]["head"]["node_config"]["InstanceType"]
    (described,) = boto3.client("ec2").describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
    drivers = config["available_node_types"]["head"]["resources"]["trial_driver"]
    require_trials([{"trial_driver": drivers, "memory": 0.6 * described["MemoryInfo"]["SizeInMiB"] * 2**20}], drivers)


def asked(config: dict[str, Any], workers: int, scorer: Any) -> dict[str, int]:
    """Machines that Ray's autoscaler starts for a training."""
    kinds = config["available_node_types"]
    wanted: list[Any] = shapes(ClusterConfig(address="auto", gpu=True, workers=workers))
    made, left = get_nodes_for(kinds, {"head": 1}, "head", config["max_workers"], wanted, scorer)
    return made if not left else {}


def test_workers_come_as_spot_and_on_demand_while_there_is_none(config: dict[str, Any]) -> None:
    tracker = NodeProviderAvailabilityTracker(timer=lambda: 1000.0, ttl=1800)

    def scorer(node: Any, resources: Any, kind: str) -> Any:
        return available_first(node, resources, kind, node_availability_summary=tracker.summary())

    assert [asked(config, workers, scorer) for workers in (1, 4, 8)] == [{"gpu-spot": n} for n in (1, 1, 2)]
    refusal = NodeLaunchException("InsufficientInstanceCapacity", "no spot", None)
    tracker.update_node_availability("gpu-spot", 1000, refusal)
    assert asked(config, 8, scorer) == {"gpu-on-demand": 2}
    tracker.update_node_availability("gpu-on-demand", 1000, refusal)
    assert asked(config, 8, scorer) == {"gpu-spot": 2}  # neither is there: from the beginning
    tracker.timer = lambda: 3000.0
    assert asked(config, 8, scorer) == {"gpu-spot": 2}


def test_rays_own_choice_would_ask_for_spot_for_ever(config: dict[str, Any]) -> None:
    tracker = NodeProviderAvailabilityTracker(timer=lambda: 1000.0, ttl=1800)
    tracker.update_node_availability("gpu-spot", 1000, NodeLaunchException("InsufficientInstanceCapacity", "", None))

    def scorer(node: Any, resources: Any, kind: str) -> Any:
        return _default_utilization_scorer(node, resources, kind, node_availability_summary=tracker.summary())

    assert asked(config, 8, scorer) == {"gpu-spot": 2}


def test_what_comes_suffices_for_the_training_that_asked(config: dict[str, Any]) -> None:
    one = config["available_node_types"]["gpu-spot"]["resources"]
    divide([one, one], ClusterConfig(address="auto", workers=8))


def test_the_scorer_is_the_one_that_the_file_names(config: dict[str, Any]) -> None:
    (named,) = re.findall(r"RAY_AUTOSCALER_UTILIZATION_SCORER=(\S+)", "\n".join(config["head_start_ray_commands"]))
    module, _, function = named.rpartition(".")
    assert (module, function) == (available_first.__module__, available_first.__name__)
