"""Choice of the autoscaler among types of machines: spot first, another type while there is no spot."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer

Score = tuple[bool, tuple[bool, int, float, float]]
"""Score of a type of machine: whether its last start succeeded, then how well the work fits it."""


def available_first(
    node_resources: dict[str, Any],
    resources: list[dict[str, Any]],
    node_type: str,
    *,
    node_availability_summary: NodeAvailabilitySummary,
) -> Score | None:
    """Score a type of machine as Ray does, but put those last that could not be started within the last half hour.

    Ray's own score (autoscaler v1) knows which could not, and does not use it: it would ask for the same spot machines
    for ever. `cluster.yaml` names this function to Ray by `RAY_AUTOSCALER_UTILIZATION_SCORER`. Of types with equal
    scores Ray takes the one whose name comes last in the alphabet.

    Args:
        node_resources: resources of a machine of this type.
        resources: what has to be placed.
        node_type: name of the type in the YAML file.
        node_availability_summary: outcomes of the last starts; Ray forgets them after half an hour.

    Returns:
        The score, of which Ray takes the highest; None: nothing fits such a machine.
    """
    fit = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    last = node_availability_summary.node_availabilities.get(node_type)
    return None if fit is None else (last is None or last.is_available, fit)
