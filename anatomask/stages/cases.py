"""Ray tasks that use a network, one per case, on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

import ray
import torch

from anatomask.cluster_nodes import (
    GPU_TYPE,
    TYPE_SHARE,
    awaited,
    nodes_beside_trials,
    of_gpu_type,
    require_known_type,
)
from anatomask.cluster_settings import ClusterConfig
from anatomask.errors import in_words, reason
from anatomask.evaluation.placement import Placement, place, too_large
from anatomask.terminal.progress import progress_shown

Networks = TypeVar("Networks", contravariant=True)
"""Weights of one network, or of several."""


class CaseWork(Protocol[Networks]):
    """Work on each case, apart from the weights."""

    def finish(self, weights: Networks, case: str, device: torch.device) -> None:
        """Work on one case, and write the results."""


def map_cases(
    title: str, work: CaseWork[Networks], weights: Networks, needs: Mapping[str, int], cluster: ClusterConfig
) -> dict[str, str]:
    """Call `work.finish(weights, case, device)` for each case, in a Ray task of its own.

    Ray must run. A case that needs more memory than any node has is not begun.

    Args:
        title: title of the progress.
        work: work of all tasks.
        weights: weights of all tasks.
        needs: bytes of main memory that each case reserves.
        cluster: CPU threads of a task, and whether it takes a GPU, and of which type.

    Returns:
        The reason of each case that failed.
    """
    task = {"CPU": float(cluster.threads or 1), **({"GPU": 1.0} if cluster.wants_gpu else {})}
    if cluster.gpu_type:
        task[f"{GPU_TYPE}{cluster.gpu_type}"] = TYPE_SHARE
    require_known_type(nodes_beside_trials(), cluster.gpu_type)

    def find() -> Placement:
        nodes = of_gpu_type(nodes_beside_trials(), cluster.gpu_type)
        return place(nodes, len(needs), cluster.threads, cluster.wants_gpu)

    threads, gpu, room = awaited(find, cluster.wait_minutes, [task])
    failures = too_large(needs, room)
    shared = ray.put(work), ray.put(weights)
    tasks = {
        # DEFAULT: inside a trial of a sweep, tasks would else be confined to the trial's reservation, which has no CPU.
        _one_case.options(
            num_cpus=threads,
            num_gpus=int(gpu),
            memory=need,
            accelerator_type=cluster.gpu_type or None,
            scheduling_strategy="DEFAULT",
        ).remote(*shared, case, threads, gpu): case
        for case, need in needs.items()
        if case not in failures
    }
    failures |= {case: error for case, error in _completed(title, tasks) if error is not None}
    return {case: failures[case] for case in needs if case in failures}


def _completed(title: str, tasks: dict[ray.ObjectRef, str]) -> Iterator[tuple[str, str | None]]:
    """Yield each case as its task ends, with the reason if it failed; show progress and the time left."""
    with progress_shown() as progress:
        bar = progress.add_task(title, total=len(tasks), detail="cases")
        pending = list(tasks)
        while pending:
            (done,), pending = ray.wait(pending, num_returns=1)
            progress.advance(bar)
            try:
                ray.get(done)
                yield tasks[done], None
            except ray.exceptions.RayError as error:
                yield tasks[done], _reason(error)


@ray.remote
def _one_case(work: CaseWork[Any], weights: Any, case: str, threads: int, gpu: bool) -> None:
    torch.set_num_threads(threads)
    work.finish(weights, case, torch.device("cuda" if gpu else "cpu"))


def _reason(error: ray.exceptions.RayError) -> str:
    cause = getattr(error, "cause", None) or error
    return in_words(error) or f"{type(cause).__name__}: {reason(cause)}"
