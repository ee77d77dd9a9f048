"""Nodes of the running cluster: what they offer, and waiting for those that join after the program has started."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.accelerators import accelerators

from anatomask.errors import Note, UserError

DRIVERS = "trial_driver"
"""Name of the custom resource that a Tune trial holds, one unit for each training that it runs at the same time, while
its trainers hold the CPUs and GPUs."""
DRIVER_BYTES = 1_200_000_000
"""Bytes of memory that go with a unit: those that a running trial takes of the node with its driver, the controller of
a training included. For several side by side, which share the driver, it is more than they take."""

GPU_TYPE = "accelerator_type:"
"""Beginning of the name of the resource by which Ray tells the type of a node's GPUs."""
TYPE_SHARE = 0.001
"""Amount of that resource that Ray takes for each worker."""

POLL_SECONDS = 2.0
"""Seconds between two looks at what a cluster offers."""

Found = TypeVar("Found")


def node_resources() -> list[dict[str, float]]:
    """List the resources of each node that lives, as Ray names them: `CPU`, `GPU`, and `memory` in bytes."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def of_gpu_type(nodes: Sequence[Mapping[str, float]], kind: str) -> Sequence[Mapping[str, float]]:
    """Return the nodes with GPUs of a type, as H100; all nodes where it is empty.

    Raises:
        UserError: no node has such GPUs; the message says which there are.
    """
    found = [node for node in nodes if f"{GPU_TYPE}{kind}" in node] if kind else nodes
    if kind and not found:
        there = ", ".join(_types(nodes)) or "none whose type Ray knows"
        raise UserError(f"{_asked(kind)}: no node of the cluster has such GPUs; there are {there}")
    return found


def require_known_type(nodes: Sequence[Mapping[str, float]], kind: str) -> None:
    """Check that a type of GPUs exists, so that nobody waits for machines that cannot come.

    Raises:
        UserError: neither a node has GPUs of that type, nor does Ray know it.
    """
    known = {value for name, value in vars(accelerators).items() if name.isupper() and isinstance(value, str)}
    if kind and kind not in known | set(_types(nodes)):
        names = ", ".join(sorted(value for name, value in vars(accelerators).items() if name.startswith("NVIDIA_")))
        raise UserError(f"{_asked(kind)}: Ray knows no such GPUs; of NVIDIA's, it knows {names}")


def _asked(kind: str) -> str:
    return f"GPUs of type {kind} (--cluster.gpu-type, for a sweep's finetunings --finetune-gpu-type)"


def _types(nodes: Sequence[Mapping[str, float]]) -> list[str]:
    return sorted({name.removeprefix(GPU_TYPE) for node in nodes for name in node if name.startswith(GPU_TYPE)})


def nodes_beside_trials() -> list[dict[str, float]]:
    """List the resources of each node without the memory that running trials hold, so that no task waits for it.

    Which of the nodes that offer drivers a trial runs on does not matter: all that run are taken off each.
    """
    running = ray.cluster_resources().get(DRIVERS, 0.0) - ray.available_resources().get(DRIVERS, 0.0)
    return [
        node | {"memory": max(0.0, node.get("memory", 0.0) - DRIVER_BYTES * min(running, node.get(DRIVERS, 0.0)))}
        for node in node_resources()
    ]


def trial_holds(side_by_side: int) -> dict[str, float]:
    """Return what a trial of `side_by_side` trainings at the same time holds of its node."""
    return {DRIVERS: float(side_by_side), "memory": float(side_by_side * DRIVER_BYTES)}


def require_trials(nodes: Sequence[Mapping[str, float]], concurrent: int, side_by_side: int = 1) -> None:
    """Check that so many trials of a sweep can run at once: by the drivers and the memory of the nodes that offer them.

    Raises:
        UserError: fewer can.
    """
    holds = trial_holds(side_by_side)
    offering = [node for node in nodes if node.get(DRIVERS, 0) >= 1]
    room = sum(min(int(node.get(kind, 0) // amount) for kind, amount in holds.items()) for node in offering)
    if concurrent > room:
        drivers, memory = (sum(node.get(kind, 0) for node in offering) for kind in (DRIVERS, "memory"))
        several = side_by_side > 1
        each = f" × {side_by_side} finetunings side by side" * several
        raise UserError(
            f"{concurrent} trials at once{each} need {concurrent * side_by_side} of the resource {DRIVERS}, and "
            f"{DRIVER_BYTES / 1e9:g} GB of memory each where it is; the cluster has {drivers:g}, with "
            f"{memory / 1e9:.1f} GB: start a node with more memory, ray start --resources='{{\"{DRIVERS}\": 16}}', or "
            f"lower --concurrent{' or --finetunings-at-once' * several}"
        )


def awaited(find: Callable[[], Found], minutes: float, needs: Sequence[Mapping[str, float]]) -> Found:
    """Call `find` until it is not refused, while an autoscaler, where the cluster has one, is asked for `needs`.

    The autoscaler keeps what it has started for its idle time, although it is no longer asked at the end.

    Args:
        find: function that looks at what the cluster offers, and raises a UserError where that is too little.
        minutes: minutes for which it is called again; 0: it is called once.
        needs: resources that are needed, each on one node.

    Raises:
        UserError: `find` was refused to the end; the reason is its last.
    """
    end = time.monotonic() + 60 * minutes
    try:
        return find()
    except UserError as refusal:
        if not minutes:
            raise
        text = f"waiting for machines to join the cluster, for {minutes:g} minutes at most: {refusal}"
        warnings.warn(Note(text), stacklevel=2)
    try:
        while True:
            # The request is one for the whole cluster, which Ray Data's coordinators overwrite every 20 seconds.
            request_resources(bundles=[dict(need) for need in needs])
            time.sleep(POLL_SECONDS)
            try:
                return find()
            except UserError as refusal:
                if time.monotonic() > end:
                    raise UserError(f"{refusal}; waited {minutes:g} minutes (--cluster.wait-minutes)") from refusal
    finally:
        request_resources(bundles=[])
