"""Nodes of the running cluster: what they offer, and waiting for those that join after the program has started."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import ray
from ray.autoscaler.sdk import request_resources

from anatomask.errors import Note, UserError

POLL_SECONDS = 2.0
"""Seconds between two looks at what a cluster offers."""

Found = TypeVar("Found")


def node_resources() -> list[dict[str, float]]:
    """List the resources of each node that lives, as Ray names them: `CPU`, `GPU`, and `memory` in bytes."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


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
    request_resources(bundles=[dict(need) for need in needs])
    try:
        while True:
            time.sleep(POLL_SECONDS)
            try:
                return find()
            except UserError as refusal:
                if time.monotonic() > end:
                    raise UserError(f"{refusal}; waited {minutes:g} minutes (--cluster.wait-minutes)") from refusal
    finally:
        request_resources(bundles=[])
