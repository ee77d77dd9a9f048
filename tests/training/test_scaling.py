"""Arithmetic of what several devices exchange, against rings that are walked step by step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomask.training.scaling import BACKWARD_SHARE, Exchange, LinkConfig, all_reduce_seconds, step_time

LINKS = LinkConfig(devices_per_machine=8, inside=300, between=40, hop=4)


def walked(size: float, workers: int, links: LinkConfig) -> float:
    """Sum up the steps: chunks go round within the machines, the devices' parts between them."""
    inside, machines = min(workers, links.devices_per_machine), max(1, workers // links.devices_per_machine)
    seconds = 0.0
    for _ in range(2 * (inside - 1)):
        seconds += size / inside / (links.inside * 1e9)
    part = size / inside
    for _ in range(2 * (machines - 1)):
        seconds += part / machines / (links.between * 1e9)
    depth = 0
    while 2**depth < workers:
        depth += 1
    return seconds + 2 * depth * links.hop / 1e6


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.floats(0, 1e10), st.sampled_from([1, 4, 8]), st.floats(1, 1000), st.floats(0, 100))
def test_an_all_reduce_takes_as_long_as_its_steps(
    doublings: int, size: float, per_machine: int, speed: float, hop: float
) -> None:
    links = LinkConfig(devices_per_machine=per_machine, inside=speed, between=speed / 3, hop=hop)
    workers = 2**doublings
    assert all_reduce_seconds(size, workers, links) == pytest.approx(walked(size, workers, links))


def test_one_device_exchanges_nothing() -> None:
    alone = step_time(0.5, Exchange(10**9, 40, 10**4), 1, LINKS)
    assert alone.seconds == 0.5 and alone.efficiency == 1


def test_the_backward_pass_hides_gradients_but_the_last_and_no_sums() -> None:
    exchange = Exchange(gradient_bytes=10**9, sums=40, sum_bytes=0)
    slow, fast = (step_time(computing, exchange, 64, LINKS) for computing in (1.0, 0.001))
    assert slow.sums == fast.sums == pytest.approx(40 * 2 * 6 * 4e-6)
    assert slow.gradients == fast.gradients > 0.01
    assert 0 < slow.exposed < 0.1 * slow.gradients
    assert fast.exposed == pytest.approx(fast.gradients - BACKWARD_SHARE * 0.001)
    assert slow.efficiency > 0.99 and fast.efficiency < 0.1


@pytest.mark.parametrize("field", ["inside", "between"])
def test_a_slower_link_never_helps(field: str) -> None:
    exchange = Exchange(3 * 10**9, 40, 60_000)
    slower = replace(LINKS, **{field: getattr(LINKS, field) / 10})
    seconds = [step_time(0.2, exchange, 64, links).seconds for links in (LINKS, slower)]
    assert seconds[0] < seconds[1] and not math.isclose(*seconds)


@pytest.mark.parametrize("field", [{"inside": 0.0}, {"between": -1.0}, {"hop": -1.0}, {"devices_per_machine": 0}])
def test_impossible_links_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        LinkConfig(**field)  # type: ignore[arg-type]
