from __future__ import annotations

from itertools import pairwise

import pytest

from anatomask.training.optimiser import OptimiserConfig, learning_rate


def test_warm_up_then_cosine_as_published() -> None:
    config = OptimiserConfig()
    rates = [learning_rate(epoch, 1000, config) for epoch in range(1000)]
    assert rates[0] == 1e-6
    assert rates[10] == pytest.approx((1e-6 + 1e-4) / 2)
    assert rates[20] == pytest.approx(1e-4)
    assert rates[510] == pytest.approx(5e-5)
    assert 0 < rates[-1] < 1e-9
    assert all(a < b for a, b in pairwise(rates[:21]))
    assert all(a > b for a, b in pairwise(rates[20:]))


def test_without_warm_up_the_first_epoch_has_the_peak() -> None:
    assert learning_rate(0, 10, OptimiserConfig(lr=0.1, warmup_epochs=0)) == 0.1
