"""Learning rates over the epochs of a training, and published finetuning schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from anatomask.training.settings import OptimiserConfig

POLY_EXPONENT = 0.9
"""Exponent of the polynomial decay, as in nnU-Net."""
PHASE_SHARE, LONGEST_PHASE = 0.1, 50
"""Length of a preset's phases: a tenth of the epochs, at most 50 (OpenMind's are 15 of 150 and 50 of 1000)."""


def rate_of_update(
    update: int,
    per_epoch: int,
    epochs: int,
    config: OptimiserConfig,
    start: int = 0,
    factor: float = 1.0,
    batch: int = 1,
) -> float | None:
    """Return the learning rate of an `update` (from 0), of which an epoch has `per_epoch`; else as `learning_rate`.

    It is that of the update's epoch; where the rate changes more often, epochs count in fractions. Where the schedule
    has a step per sample, of which an update has `batch`, the warm-up's last step has the full rate.
    """
    if config.warmup_updates is not None:
        return learning_rate(update / per_epoch, epochs, config, start, factor, config.warmup_updates / per_epoch)
    if config.rate_every == "sample":
        epoch, last = _samples_position(update, per_epoch, batch), config.warmup_epochs - 1 / (per_epoch * batch)
        return learning_rate(epoch, epochs, config, start, factor, full=last)
    epoch = update / per_epoch if config.rate_every == "update" else update // per_epoch
    return learning_rate(epoch, epochs, config, start, factor)


def progress_of_update(update: int, per_epoch: int, epochs: int, config: OptimiserConfig, batch: int) -> float:
    """Return how far the schedules are in an `update` (from 0): the share of all updates, or of all samples' steps."""
    if config.rate_every == "sample":
        return _samples_position(update, per_epoch, batch) / epochs
    return update / (epochs * per_epoch)


def _samples_position(update: int, per_epoch: int, batch: int) -> float:
    """Return the position in epochs where an epoch has a step per sample, and each of its updates takes one."""
    return update // per_epoch + update % per_epoch / (per_epoch * batch)


def weight_decay(progress: float, config: OptimiserConfig) -> float:
    """Return the weight decay at `progress`, which a schedule may change by half a cosine."""
    if config.weight_decay_end is None:
        return config.weight_decay
    return half_cosine(config.weight_decay, config.weight_decay_end, progress, 1)


def half_cosine(first: float, last: float, done: float, of: float) -> float:
    """Return the value after `done` of the steps `of` from `first` to `last`."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done / of))


def learning_rate(
    epoch: float,
    epochs: int,
    config: OptimiserConfig,
    start: int = 0,
    factor: float = 1.0,
    warmup: float | None = None,
    full: float | None = None,
) -> float | None:
    """Return the learning rate in `epoch` (from 0) of parameters that learn from epoch `start` on, times `factor`.

    `warmup` is the number of epochs of warm-up. Default: `warmup_epochs`. `full` is the epoch in which it reaches `lr`.
    Default: its end.

    Return None where they do not learn yet. The rate rises linearly from `warmup_lr` to `lr`, then decays so that it
    would reach 0, or `lr_end`, in the epoch after the last. Where the decoder learns first, the rate does so twice:
    over the epochs of `decoder_first`, then, with `warmup_epochs`, over all remaining epochs (the sawtooth of OpenMind,
    arXiv 2412.17041).
    """
    if epoch < start:
        return None
    alone = sum(config.decoder_first)
    rise: float = config.warmup_epochs if warmup is None else warmup
    done, decay = epoch - alone, epochs - alone - rise
    if epoch < alone:
        done, (rise, decay) = epoch, config.decoder_first
    if done < rise:
        rate = config.warmup_lr + (config.lr - config.warmup_lr) * done / (full or rise)
    elif config.decay == "cosine":
        rate = half_cosine(config.lr, config.lr_end, done - rise, decay or 1)
    else:
        rate = config.lr * (1 - (done - rise) / (decay or 1)) ** POLY_EXPONENT
    return factor * rate


def published(epochs: int) -> OptimiserConfig:
    """Return the finetuning schedule of the AnatoMask code: AdamW at 1e-4, cosine without warm-up."""
    return OptimiserConfig(eps=1e-4, warmup_epochs=0)


def nnunet(epochs: int) -> OptimiserConfig:
    """Return nnU-Net's own schedule: SGD at 1e-2, polynomial decay without warm-up."""
    return OptimiserConfig("sgd", lr=1e-2, weight_decay=3e-5, decay="poly", warmup_epochs=0)


def warmup(epochs: int) -> OptimiserConfig:
    """Return OpenMind's best schedule: SGD at 1e-3, a phase of warm-up, polynomial decay."""
    return OptimiserConfig("sgd", lr=1e-3, weight_decay=3e-5, decay="poly", warmup_epochs=phase(epochs))


def sawtooth(epochs: int) -> OptimiserConfig:
    """Return OpenMind's sawtooth: a phase in which only the decoder learns, half of it warm-up; then as `warmup`."""
    alone = max(2, phase(epochs))
    return OptimiserConfig(
        "sgd",
        lr=1e-3,
        weight_decay=3e-5,
        decay="poly",
        warmup_epochs=phase(epochs),
        decoder_first=(alone // 2, alone - alone // 2),
    )


def phase(epochs: int) -> int:
    """Return the epochs of a preset's phase in a training of `epochs`: a tenth of them, from 1 to 50."""
    return min(LONGEST_PHASE, max(1, round(PHASE_SHARE * epochs)))


SCHEDULES: Mapping[str, Callable[[int], OptimiserConfig]] = {
    "published": published,
    "warmup": warmup,
    "sawtooth": sawtooth,
    "nnunet": nnunet,
}
"""Functions from the number of epochs to a finetuning's optimiser section, by the name for `--schedule`."""
