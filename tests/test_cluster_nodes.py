"""Waiting for nodes, with a cluster that is told what to answer; the last test has a real one that grows."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from anatomask import cluster_nodes
from anatomask.cluster_nodes import DRIVER_BYTES, DRIVERS, nodes_beside_trials, require_trials
from anatomask.cluster_settings import AtOnce, ClusterConfig
from anatomask.cluster_shares import divide, training_resources, trial_resources
from anatomask.errors import Note, UserError
from anatomask.stages import cases

HEAD = {"CPU": 8.0, "memory": 22e9, DRIVERS: 16.0}
GROWN = HEAD | {"CPU": 56.0, "GPU": 4.0}
WAITING = ClusterConfig(address="auto", workers=4, gpu=True, wait_minutes=5)


class Cluster:
    """Cluster that offers, after each sleep, the next of what it is told; at last the last for ever."""

    def __init__(self, *offers: Mapping[str, float]) -> None:
        self.offers = [dict(offer) for offer in offers]
        self.asked: list[list[dict[str, float]]] = []
        self.seconds = 0.0

    def resources(self) -> dict[str, float]:
        """What `ray.cluster_resources` says."""
        return self.offers[0]

    def clock(self) -> float:
        """The seconds that have passed."""
        return self.seconds

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds
        if len(self.offers) > 1:
            self.offers.pop(0)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    told = Cluster(HEAD)
    monkeypatch.setattr(ray, "cluster_resources", told.resources)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": told.resources()}])
    monkeypatch.setattr("anatomask.cluster_nodes.request_resources", lambda bundles: told.asked.append(bundles))
    monkeypatch.setattr("anatomask.cluster_nodes.time", SimpleNamespace(sleep=told.sleep, monotonic=told.clock))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield told
    assert [one.category for one in caught] == ([Note] if told.asked else [])


def test_workers_that_join_later_are_waited_for_and_an_autoscaler_is_asked_for_them(cluster: Cluster) -> None:
    cluster.offers = [HEAD] * 30 + [GROWN]
    found = training_resources(WAITING)
    assert found == divide([GROWN], WAITING) and found.gpu
    assert cluster.asked.pop() == [] and all(
        asked == [{"CPU": 2.0, "GPU": 1.0}] * 4 for asked in cluster.asked
    )  # for a GPU each, and then for nothing more
    assert 30 < cluster.seconds < 90 and len(cluster.asked) == 30, "it is repeated, since others overwrite it"


def test_trials_of_a_sweep_wait_for_the_workers_of_all_of_them(cluster: Cluster) -> None:
    cluster.offers = [HEAD] * 3 + [GROWN] * 3 + [GROWN | {"GPU": 8.0}]
    found = trial_resources(WAITING, AtOnce(2, None, 4))
    assert (
        found.pretraining == found.finetuning == divide([GROWN | {"GPU": 8.0}], WAITING, 2) and found.side_by_side == 1
    )
    assert cluster.asked.pop() == [] and all(asked == [{"CPU": 2.0, "GPU": 1.0}] * 8 for asked in cluster.asked)


def test_finetunings_side_by_side_are_waited_for_as_they_are_asked_for(cluster: Cluster) -> None:
    cluster.offers = [GROWN | {"GPU": 8.0}] * 3 + [GROWN | {"GPU": 24.0, "CPU": 99.0}]
    found = trial_resources(WAITING, AtOnce(2, 5, 3))
    assert found.finetuning == divide([GROWN | {"GPU": 24.0, "CPU": 99.0}], WAITING, 2, 3) and found.side_by_side == 3
    assert cluster.asked.pop() == [] and all(asked == [{"CPU": 2.0, "GPU": 1.0}] * 24 for asked in cluster.asked)


def test_who_does_not_come_in_time_is_refused_with_the_reason(cluster: Cluster) -> None:
    with pytest.raises(UserError, match=r"4 need 4 GPUs, and there are 0; .*; waited 5 minutes \(--cluster.wait-min"):
        training_resources(WAITING)
    assert 300 <= cluster.seconds < 310 and cluster.asked[-1] == []


@pytest.mark.parametrize("minutes", [0.0, 5.0])
def test_a_training_begins_with_fewer_workers_where_it_may(minutes: float, cluster: Cluster) -> None:
    """Started again after nodes were lost: at once, or after the wait; Ray Train asks for all of them from then on."""
    eight = replace(WAITING, workers=8, min_workers=2, wait_minutes=minutes)
    cluster.offers = [GROWN]
    with pytest.warns(Note, match=r"begins with 4 of 8 workers \(--cluster.min-workers 2\)"):
        found = training_resources(eight)
    assert (found.workers, found.min_workers, found.gpu) == (8, 2, True)
    assert replace(found, workers=4) == divide([GROWN], replace(eight, workers=4))
    assert 60 * minutes <= cluster.seconds < 60 * minutes + 10


def test_a_training_waits_for_all_its_workers_first(cluster: Cluster) -> None:
    eight = replace(WAITING, workers=8, min_workers=2)
    cluster.offers = [GROWN] * 3 + [GROWN | {"GPU": 8.0}]
    assert training_resources(eight) == divide([GROWN | {"GPU": 8.0}], eight)


def test_a_training_begins_with_no_fewer_workers_than_it_may(cluster: Cluster) -> None:
    cluster.offers = [GROWN]
    with pytest.raises(UserError, match=r"8 need 8 GPUs, .*; lower --cluster.workers; 5 would do \(--cluster.min-work"):
        training_resources(replace(WAITING, workers=8, min_workers=5, wait_minutes=0))
    cluster.offers = [{"CPU": 64.0}]  # where Ray would start two for each CPU that is left, with no room for readers
    with pytest.raises(UserError, match=r"^--cluster.min-workers 1 is for workers with GPUs: .*; leave it out$"):
        training_resources(ClusterConfig(address="auto", workers=8, min_workers=1))


@pytest.mark.parametrize("offer", [HEAD, GROWN])
def test_nothing_is_waited_for_that_is_there_or_that_nobody_said_would_come(
    offer: Mapping[str, float], cluster: Cluster
) -> None:
    cluster.offers = [dict(offer)]
    if offer is GROWN:
        training_resources(WAITING)
    else:
        with pytest.raises(UserError, match=r"4 GPUs, and there are 0; lower --cluster.workers$"):
            training_resources(ClusterConfig(address="auto", workers=4, gpu=True))
    assert cluster.asked == [] and cluster.seconds == 0


def test_who_stops_waiting_leaves_no_request_behind(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster_nodes.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training_resources(WAITING)
    assert cluster.asked[-1] == []


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("readers", [1, 9, 10, 40])
def test_what_is_asked_for_suffices(readers: int, gpu: bool, cluster: Cluster) -> None:
    """An autoscaler that gives exactly this gives enough."""
    config = ClusterConfig(address="auto", workers=3, readers=readers, gpu=gpu, wait_minutes=1)
    cluster.offers = [{"CPU": 0.1}]
    with pytest.raises(UserError):
        training_resources(config)
    divide(cluster.asked[0], config)  # on a node each
    divide([{kind: 3 * amount for kind, amount in cluster.asked[0][0].items()}], config)  # all on one


def test_no_machine_joins_an_embedded_ray() -> None:
    with pytest.raises(ValueError, match="wait_minutes is for a cluster"):
        ClusterConfig(wait_minutes=1)


@pytest.mark.parametrize(
    ("nodes", "room"),
    [
        ([HEAD], 16),  # as many as there are drivers
        ([HEAD | {"memory": 5e9}], 4),  # 4.8 GB
        ([HEAD | {"memory": 1e9}], 0),
        ([HEAD | {"memory": 5e9}, {"CPU": 64.0, "memory": 500e9}], 4),  # a node without drivers runs none
        ([HEAD | {"memory": 5e9}, HEAD | {"memory": 4e9}], 7),
        ([{"CPU": 64.0, "memory": 500e9}], 0),
    ],
)
def test_as_many_trials_run_as_the_nodes_of_their_drivers_have_memory_for(
    nodes: list[Mapping[str, float]], room: int
) -> None:
    if room:
        require_trials(nodes, room)
    with pytest.raises(UserError, match=rf"^{room + 1} trials at once .*trial_driver.* or lower --concurrent$"):
        require_trials(nodes, room + 1)
    for beside in (2, 3):  # side by side, on one node each
        possible = sum(min(16, int(node["memory"] / 1.2e9)) // beside for node in nodes if DRIVERS in node)
        if possible:
            require_trials(nodes, possible, beside)
        with pytest.raises(UserError, match=rf" × {beside} finetunings side by side need {beside * (possible + 1)} of"):
            require_trials(nodes, possible + 1, beside)


@given(running=st.integers(0, 16), memory=st.floats(1e9, 1e12))
def test_no_task_reckons_with_memory_that_a_running_trial_holds(running: int, memory: float) -> None:
    head, worker, lost = HEAD | {"memory": memory}, {"CPU": 48.0, "memory": 500e9}, {"CPU": 1.0, "memory": 1e13}
    nodes = [{"Alive": node is not lost, "Resources": node} for node in (head, worker, lost)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "nodes", lambda: nodes)
        patch.setattr(ray, "cluster_resources", lambda: {DRIVERS: 16.0})
        patch.setattr(ray, "available_resources", lambda: {DRIVERS: 16.0 - running} if running < 16 else {})
        beside = nodes_beside_trials()
    assert beside == [head | {"memory": max(0, memory - running * DRIVER_BYTES)}, worker]


LARGE = {"CPU": 96.0, "GPU": 8.0, "memory": 1e12, "accelerator_type:H100": 1.0}
SMALL = {"CPU": 48.0, "GPU": 4.0, "memory": 2e12, "accelerator_type:A10G": 1.0}


@pytest.fixture
def mixed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A head, a node with large GPUs, one with small ones."""
    cluster.offers = [{"CPU": 152.0, "GPU": 12.0, "memory": 3e12}]
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in (HEAD, LARGE, SMALL)])
    monkeypatch.setattr(ray, "available_resources", dict)
    return cluster


@pytest.mark.parametrize(("kind", "count"), [("H100", 8), ("A10G", 4)])
def test_a_training_takes_gpus_of_its_type_alone(kind: str, count: int, mixed: Cluster) -> None:
    found = training_resources(ClusterConfig(address="auto", workers=count, gpu_type=kind))
    assert found.gpu and (found.workers, found.gpu_type) == (count, kind)
    with pytest.raises(UserError, match=rf"need {count + 1} GPUs of type {kind}, and there are {count}; lower"):
        training_resources(ClusterConfig(address="auto", workers=count + 1, gpu_type=kind))


def test_a_sweep_pretrains_and_finetunes_on_gpus_of_their_types(mixed: Cluster) -> None:
    large, small = (ClusterConfig(address="auto", workers=2, gpu_type=kind) for kind in ("H100", "A10G"))
    found = trial_resources(large, AtOnce(1, None, 5), small)
    assert (found.pretraining.gpu_type, found.finetuning.gpu_type) == ("H100", "A10G")
    assert found.side_by_side == 2  # as many as there are small GPUs for
    assert trial_resources(large, AtOnce(1, None, 5)).side_by_side == 4
    with pytest.raises(UserError, match=r"3 trials at once .* need 6 GPUs of type A10G, and there are 4"):
        trial_resources(large, AtOnce(3, 1, 5), small)
    with pytest.raises(UserError, match=r"5 trials at once .* need 10 GPUs of type H100, and there are 8"):
        trial_resources(large, AtOnce(5, 1, 5))


def test_gpus_that_no_node_has_are_refused_with_those_there_are(mixed: Cluster) -> None:
    with pytest.raises(UserError, match=r"^GPUs of type L4 .*: no node .* has such GPUs; there are A10G, H100$"):
        training_resources(ClusterConfig(address="auto", gpu_type="L4"))


def test_an_autoscaler_is_asked_for_the_type_and_nobody_for_one_that_there_is_not(cluster: Cluster) -> None:
    with pytest.raises(UserError, match=r"of type H-100 \(--cluster.gpu-type, .*: Ray knows no such GPUs; .* H100, .*"):
        training_resources(replace(WAITING, gpu_type="H-100"))
    assert cluster.asked == [] and cluster.seconds == 0
    with pytest.raises(UserError, match=r"no node of the cluster has such GPUs; there are none .*; waited 5 minutes"):
        training_resources(replace(WAITING, gpu_type="H100"))
    assert cluster.asked.pop() == [] and all(
        asked == [{"CPU": 2.0, "GPU": 1.0, "accelerator_type:H100": 0.001}] * 4 for asked in cluster.asked
    )


@pytest.mark.parametrize(("kind", "failed"), [("", 0), ("A10G", 0), ("H100", 1)])
def test_a_case_goes_to_a_node_with_its_type(
    kind: str, failed: int, mixed: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case that only the node with small GPUs has memory for."""
    asked: list[dict[str, object]] = []

    def options(**given: object) -> SimpleNamespace:
        asked.append(given)
        return SimpleNamespace(remote=lambda *arguments: "task")

    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(cases._one_case, "options", options)
    monkeypatch.setattr(cases, "_completed", lambda title, tasks: [(case, None) for case in tasks.values()])
    config = ClusterConfig(address="auto", gpu_type=kind)
    failures = cases.map_cases("", SimpleNamespace(), None, {"large": int(1.5e12)}, config)
    assert len(failures) == failed
    assert [(one["num_gpus"], one["accelerator_type"]) for one in asked] == ([] if failed else [(1, kind or None)])


def test_the_plan_says_who_goes_where() -> None:
    assert ClusterConfig().places() == "1 worker on a GPU, if there are any; 1 reader on free CPUs of any node"
    large = ClusterConfig(address="auto", workers=4, readers=2, gpu_type="H100")
    assert large.places() == "4 workers, each on a GPU of type H100; 8 readers on free CPUs of any node"
    assert ClusterConfig(workers=2, gpu=False).places().startswith("2 workers, each on CPUs;")


GROWING = """
import subprocess, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20})
program = subprocess.Popen([sys.executable, "-c", sys.argv[1], cluster.address], stderr=subprocess.PIPE, text=True)
line = program.stderr.readline()  # it waits
cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
print(line, program.communicate()[1], file=sys.stderr)
sys.exit(program.returncode)
"""
PROGRAM = """
import sys
from anatomask.cluster import running
from anatomask.cluster_shares import training_resources
from anatomask.cluster_settings import ClusterConfig

config = ClusterConfig(address=sys.argv[1], workers=2, wait_minutes=2)
with running(config):
    print(training_resources(config).workers)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_node_that_joins_a_real_cluster_is_seen(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {
        "PYTHONPATH": str(Path(__file__).parents[1])
    }
    done = subprocess.run(
        [sys.executable, "-c", GROWING, PROGRAM], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and done.stdout.split()[-1:] == ["2"], done.stderr
    assert "waiting for machines to join the cluster" in done.stderr
