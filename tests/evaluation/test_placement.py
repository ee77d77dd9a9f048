"""Where an evaluation's tasks run, and how much memory each takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.placement import TASK_BYTES, Need, largest_need, place

GIB = 2**30
NODES = [{"CPU": 8.0, "memory": 10.0 * GIB}, {"CPU": 2.0, "GPU": 1.0, "memory": 4.0 * GIB}]


def test_the_memory_is_that_of_the_case_that_needs_most(
    make_dataset: Callable[..., PreparedDataset], blobs: Callable[..., np.ndarray]
) -> None:
    dataset = make_dataset({"small": blobs((8, 8, 8)), "large": blobs((40, 30, 20))})
    memory, case = largest_need(dataset, ["small", "large"], (32, 32, 32))
    assert case == "large"
    padded, source = 40 * 32 * 32, 40 * 30 * 20
    assert memory == TASK_BYTES + padded * (4 * 3 + 4 + 6) + source * 15


def test_a_case_that_fits_no_node_is_refused_with_its_need() -> None:
    assert place(NODES, 2, Need(9 * GIB, "s1"), gpu=False) == (4, False)
    with pytest.raises(UserError, match=r"case s1 needs 11\.0 GiB of memory .* 10\.0 GiB for Ray"):
        place(NODES, 2, Need(11 * GIB, "s1"), gpu=False)
    with pytest.raises(UserError, match=r"case s1 needs 9\.0 GiB .* 4\.0 GiB for Ray"):
        place(NODES, 2, Need(9 * GIB, "s1"))


def test_threads_and_gpu_are_those_asked_for_where_a_node_has_them() -> None:
    need = Need(GIB, "s1")
    assert place(NODES, 100, need) == (2, True)
    assert place(NODES, 100, need, gpu=False) == (1, False)
    assert place(NODES, 100, need, threads=7, gpu=False) == (7, False)
    with pytest.raises(UserError, match=r"cluster\.threads: no node has 9 CPUs, the largest has 8"):
        place(NODES, 100, need, threads=9, gpu=False)
    with pytest.raises(UserError, match=r"cluster\.gpu: the cluster has no GPU"):
        place(NODES[:1], 1, need, gpu=True)
