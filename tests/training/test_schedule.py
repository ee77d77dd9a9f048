from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatomask.cluster_settings import ClusterConfig
from anatomask.config import check_training
from anatomask.training.schedule import SCHEDULES, learning_rate, progress_of_update, rate_of_update, weight_decay
from anatomask.training.settings import OptimiserConfig, TrainingConfig

EPOCHS = 1000


def rates(config: OptimiserConfig, epochs: int = EPOCHS, **group: Any) -> list[float]:
    """Learning rates of all epochs; 0 where the group does not learn."""
    return [learning_rate(epoch, epochs, config, **group) or 0.0 for epoch in range(epochs)]


def test_warm_up_then_cosine_as_published() -> None:
    found = rates(OptimiserConfig())
    assert found[0] == 1e-6
    assert found[10] == pytest.approx((1e-6 + 1e-4) / 2)
    assert found[20] == pytest.approx(1e-4)
    assert found[510] == pytest.approx(5e-5)
    assert 0 < found[-1] < 1e-9
    assert all(a < b for a, b in pairwise(found[:21]))
    assert all(a > b for a, b in pairwise(found[20:]))


def test_a_rate_of_every_update_counts_epochs_in_fractions() -> None:
    """As the authors of SelfMedMAE do: lr · t/w, then half a cosine over the rest."""
    config = OptimiserConfig(lr=2.0, warmup_lr=0.0, warmup_epochs=3, rate_every="update")
    for update in range(40):
        epoch = update / 4
        expected = 2 * epoch / 3 if epoch < 3 else 1 + math.cos(math.pi * (epoch - 3) / 7)
        assert rate_of_update(update, 4, 10, config) == pytest.approx(expected)
    by_epoch = replace(config, rate_every="epoch")
    assert all(
        rate_of_update(update, 4, 10, by_epoch) == rate_of_update(update // 4 * 4, 4, 10, config)
        for update in range(40)
    )


def test_schedules_of_samples_hardly_move_within_an_epoch_then_jump() -> None:
    config = OptimiserConfig(
        lr=1.0, lr_end=0.1, warmup_lr=0.0, warmup_epochs=2, rate_every="sample", weight_decay=0.04, weight_decay_end=0.4
    )
    per_epoch, epochs, batch = 3, 6, 10
    progress = [progress_of_update(update, per_epoch, epochs, config, batch) for update in range(per_epoch * epochs)]
    assert progress == pytest.approx([(30 * epoch + update) / 180 for epoch in range(6) for update in range(3)])
    found = [rate_of_update(update, per_epoch, epochs, config, batch=batch) or 0.0 for update in range(18)]
    assert found[:6] == pytest.approx([update / 59 for update in (0, 1, 2, 30, 31, 32)])
    assert found[6] == 1.0 and found[17] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 92 / 120)))
    assert weight_decay(0, config) == pytest.approx(0.04) and weight_decay(1, config) == pytest.approx(0.4)
    usual = OptimiserConfig()
    assert progress_of_update(7, 5, 2, usual, batch) == 7 / 10 and weight_decay(0.7, usual) == usual.weight_decay


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("weight_decay_end must not be negative", {"weight_decay_end": -1.0}),
        ("weight_decay positive beside it", {"weight_decay_end": 0.1, "weight_decay": 0.0}),
        ("rate_every sample needs decay cosine", {"rate_every": "sample", "decay": "poly"}),
        ("lr_end must not be negative", {"lr_end": -1.0}),
    ],
)
def test_schedules_that_mean_nothing_are_refused(message: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        OptimiserConfig(**fields)


def test_without_warm_up_the_first_epoch_has_the_peak() -> None:
    assert learning_rate(0, 10, OptimiserConfig(lr=0.1, warmup_epochs=0)) == 0.1


def test_poly_is_that_of_nnu_net() -> None:
    found = rates(SCHEDULES["nnunet"](EPOCHS))
    assert found[0] == 1e-2
    assert found[500] == pytest.approx(1e-2 * 0.5**0.9)
    assert found[999] == pytest.approx(1e-2 * 0.001**0.9)


def test_the_sawtooth_rises_and_falls_twice() -> None:
    """25 + 25 epochs of the decoder alone, 50 of warm-up, then poly over the 900 that are left."""
    config = SCHEDULES["sawtooth"](EPOCHS)
    decoder, encoder = rates(config), rates(config, start=config.encoder_start, factor=1.0)
    by_hand = {0: 1e-6, 5: 1e-6 + 0.2 * (1e-3 - 1e-6), 25: 1e-3, 35: 1e-3 * 0.6**0.9, 49: 1e-3 * 0.04**0.9}
    by_hand |= {50: 1e-6, 75: 1e-6 + 0.5 * (1e-3 - 1e-6), 100: 1e-3, 550: 1e-3 * 0.5**0.9, 999: 1e-3 * (1 / 900) ** 0.9}
    assert {epoch: decoder[epoch] for epoch in by_hand} == pytest.approx(by_hand)
    assert encoder[:50] == [0.0] * 50 and encoder[50:] == decoder[50:]


@pytest.mark.parametrize(
    ("epochs", "warmup", "alone"), [(1000, 50, (25, 25)), (150, 15, (7, 8)), (20, 2, (1, 1)), (4, 1, (1, 1))]
)
def test_lengths_of_presets_are_openminds_and_scale(epochs: int, warmup: int, alone: tuple[int, int]) -> None:
    assert SCHEDULES["warmup"](epochs).warmup_epochs == warmup
    sawtooth = SCHEDULES["sawtooth"](epochs)
    assert (sawtooth.warmup_epochs, sawtooth.decoder_first) == (warmup, alone)
    assert sawtooth.encoder_start == sum(alone)


def test_presets_are_those_of_their_sources() -> None:
    presets = {name: make(EPOCHS) for name, make in SCHEDULES.items()}
    assert {name: (c.name, c.lr, c.weight_decay, c.decay) for name, c in presets.items()} == {
        "published": ("adamw", 1e-4, 1e-5, "cosine"),
        "warmup": ("sgd", 1e-3, 3e-5, "poly"),
        "sawtooth": ("sgd", 1e-3, 3e-5, "poly"),
        "nnunet": ("sgd", 1e-2, 3e-5, "poly"),
    }
    assert presets["published"].eps == 1e-4
    assert all(c.momentum == 0.99 and c.clip == 12 for c in presets.values())


@st.composite
def schedules(draw: st.DrawFn) -> tuple[OptimiserConfig, int]:
    """A schedule that fits into its epochs."""
    warmup, decay, later = (draw(st.integers(0, 8)) for _ in range(3))
    epochs = warmup + decay + later + draw(st.integers(1, 20))
    config = OptimiserConfig(
        lr=draw(st.floats(1e-5, 1)),
        warmup_lr=draw(st.floats(0, 1e-5)),
        warmup_epochs=later,
        decay=draw(st.sampled_from(["cosine", "poly"])),
        decoder_first=(warmup, decay),
        freeze=draw(st.integers(0, epochs)),
    )
    check_training(TrainingConfig(epochs=epochs), config, ClusterConfig(), 0)
    return config, epochs


@given(schedules(), st.floats(0.01, 2))
def test_rates_lie_between_zero_and_the_peak_and_groups_are_multiples(
    schedule: tuple[OptimiserConfig, int], factor: float
) -> None:
    config, epochs = schedule
    found = rates(config, epochs)
    assert all(0 <= rate <= config.lr and math.isfinite(rate) for rate in found)
    alone, (warmup, decay) = sum(config.decoder_first), config.decoder_first
    assert found[alone + config.warmup_epochs] == config.lr
    if decay:
        assert found[warmup] == config.lr  # decay begins where warm-up ends
    teeth = found[:warmup], found[warmup:alone], found[alone:], found[alone + config.warmup_epochs :]
    assert all(a <= b for a, b in pairwise(teeth[0])) and all(a >= b for a, b in pairwise(teeth[1]))
    assert all(a >= b for a, b in pairwise(teeth[3]))
    if warmup + decay:  # the second tooth is the schedule of a training that is so much shorter
        rest = OptimiserConfig(
            lr=config.lr, warmup_lr=config.warmup_lr, warmup_epochs=config.warmup_epochs, decay=config.decay
        )
        assert teeth[2] == rates(rest, epochs - alone)
    slower = [learning_rate(epoch, epochs, config, config.encoder_start, factor) for epoch in range(epochs)]
    start = config.encoder_start
    assert slower == [None] * min(start, epochs) + [factor * rate for rate in found[start:]]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"warmup_epochs": 10}, "warmup_epochs 10 must be fewer than training.epochs 10"),
        ({"warmup_epochs": 3, "decoder_first": (3, 4)}, r"decoder_first 3 \+ 4 and optimiser.warmup_epochs 3 must tog"),
        ({"warmup_epochs": 0, "freeze": 11}, "freeze 11 must be at most training.epochs 10"),
    ],
)
def test_phases_that_do_not_fit_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_training(TrainingConfig(epochs=10), OptimiserConfig(**settings), ClusterConfig(), 0)
