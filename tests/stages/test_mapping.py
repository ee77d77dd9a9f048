"""Mapping over cases: no task takes more memory than there is, and large cases come after the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from anatomask.cluster_shares import divide_memory
from anatomask.data.memory import TooLarge
from anatomask.stages import mapping

NODES = st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 64), "memory": st.integers(10**9, 10**12)}))


@given(NODES, st.integers(1, 100))
def test_what_runs_at_once_on_a_node_fits_into_it(nodes: list[dict[str, float]], tasks: int) -> None:
    share, most = divide_memory(nodes, tasks)
    working = [node for node in nodes if node["CPU"] >= 1]
    assert all(share * min(tasks, node["CPU"]) <= node["memory"] for node in working)
    assert most == max((node["memory"] for node in working), default=0)
    assert share <= most


def test_one_task_has_a_node_to_itself_and_a_node_without_cpus_none() -> None:
    nodes = [{"CPU": 8.0, "memory": 80.0}, {"CPU": 4.0, "memory": 20.0}, {"memory": 1e9}]
    assert divide_memory(nodes, 100) == (5, 80)
    assert divide_memory(nodes[:1], 2) == (40, 80)
    assert divide_memory([], 3) == (0, 0)


def test_large_items_come_last_with_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[list[int], int]] = []

    def in_turn(progress: Progress, title: str, items: Sequence[int], work: Any, memory: int = 0) -> Iterator[Any]:
        passes.append((list(items), memory))
        yield from map(work, items)

    def work(item: int, memory: int) -> str:
        if item > memory:
            raise TooLarge(f"item {item}", item, memory)
        return f"{item} within {memory}"

    monkeypatch.setattr(mapping, "mapped", in_turn)
    monkeypatch.setattr(mapping, "memory_of_tasks", lambda tasks: (10, 40))
    refused = lambda item, error: str(error).partition(";")[0]  # noqa: E731
    found = list(mapping.mapped_within_memory(Progress(), "", [1, 30, 50, 10, 20], work, refused))
    assert found == [
        "1 within 10",
        "10 within 10",
        "item 50: that takes 50 bytes of memory, and 40 bytes are there",
        "30 within 40",
        "20 within 40",
    ]
    assert passes == [([1, 30, 50, 10, 20], 0), ([30, 20], 30)]
