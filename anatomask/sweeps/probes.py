"""Probes of a trial: short finetunings, with their scoring, after shares of its pretraining, by which it is pruned.

A pretraining's loss says nothing of another's: it depends on what is hidden. So trials are compared by DSC alone, each
probe with the probes of other trials after the same share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import FrozenTrial, TrialState

from anatomask.config import SCRATCH, FinetuneConfig
from anatomask.sweeps.graph import Stage
from anatomask.sweeps.settings import ProbeConfig
from anatomask.sweeps.study import first_number, latest_trials


@dataclass(frozen=True)
class Probe:
    """Probe after a share of a pretraining."""

    step: int
    """Share as a multiple of that of the first probe: by which pruners know which probes to compare."""
    weights: Stage
    """Pretraining up to there, which keeps a copy of its weights."""
    finetuning: Stage
    scoring: Stage

    @property
    def stages(self) -> Mapping[str, Stage]:
        """Stages by the names of their links in a trial's folder, each after those that it needs."""
        return {f"{self.prefix}-pretrain": self.weights, **self.stages_after}

    @property
    def stages_after(self) -> Mapping[str, Stage]:
        """Stages that need the weights, likewise."""
        return {f"{self.prefix}-finetune": self.finetuning, f"{self.prefix}-evaluate": self.scoring}

    @property
    def prefix(self) -> str:
        """Beginning of the names of its links."""
        return f"probe{self.step}"


def probes_of(config: ProbeConfig, stages: Mapping[str, Stage]) -> list[Probe]:
    """Return the probes of a trial: of its first pretraining, on the first data set.

    A trial without a pretraining has none, nor has an epoch that an earlier probe has.

    Args:
        config: settings of probes.
        stages: stages of the trial by the names of their links.
    """
    scoring = next(one for one in stages.values() if one.verb == "evaluate")
    finetuning = scoring.needs["run"]
    pretraining = finetuning.needs.get("init")
    if pretraining is None or finetuning.config.init == SCRATCH:
        return []
    found = dict[int, Probe]()
    for number, share in enumerate(config.shares):
        epochs = pretraining.config.training.epochs
        until = round(share * epochs)
        if 0 < until < epochs and until not in found:
            weights = replace(pretraining, until=until)
            short = replace(finetuning, config=shortened(finetuning.config, config.epochs), needs={"init": weights})
            found[until] = Probe(config.factor**number, weights, short, replace(scoring, needs={"run": short}))
    return list(found.values())


def shortened(config: FinetuneConfig, epochs: int) -> FinetuneConfig:
    """Return the settings of a finetuning with fewer epochs: all parameters learn, after a tenth of warm-up."""
    optimiser = replace(
        config.optimiser, warmup_epochs=epochs // 10, warmup_updates=None, decoder_first=(0, 0), freeze=0
    )
    return replace(config, optimiser=optimiser, training=replace(config.training, epochs=epochs))


@dataclass(frozen=True)
class AshaPruner(BasePruner):
    """Asynchronous successive halving (Li et al., MLSys 2020) by what the study holds alone.

    Optuna's own pruner keeps which rungs a trial has passed beside the values, so after a kill amid a decision it lets
    the trial go on; it counts the failed tries of a trial that was retried; and it takes the first value that a trial
    reports for one of every share before.
    """

    factor: int
    """Share of the trials that go on after a probe: one in so many, and at least the best."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial's last probe is not among the best of all trials' after the same share."""
        if (step := trial.last_step) is None:
            return False
        own = trial.intermediate_values[step]
        values = [own, *values_after(step, others_of(study, trial))]
        going_on = max(1, len(values) // self.factor)
        return own < sorted(values)[-going_on]


@dataclass(frozen=True)
class MedianPruner(BasePruner):
    """Median stopping rule (Golovin et al., KDD 2017) by the last probe alone.

    Optuna's own pruner takes the best of a trial's probes, so one that was good after a smaller share would go on.
    """

    startup: int
    """Number of other trials that must be complete before a trial is pruned."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial's last probe is below the median of the other trials' after the same share."""
        if (step := trial.last_step) is None:
            return False
        others = others_of(study, trial)
        values = values_after(step, others)
        started = sum(one.state == TrialState.COMPLETE for one in others) >= self.startup
        return started and bool(values) and trial.intermediate_values[step] < median(values)


def others_of(study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
    """List the last tries of all other trials."""
    first = first_number(trial)
    return [one for one in latest_trials(study) if first_number(one) != first]


def values_after(step: int, trials: Sequence[FrozenTrial]) -> list[float]:
    """List the values of trials' probes after one share."""
    return [one.intermediate_values[step] for one in trials if step in one.intermediate_values]


def pruner_of(config: ProbeConfig) -> BasePruner:
    """Return the pruner of a sweep."""
    if config.prune == "asha":
        return AshaPruner(config.factor)
    return MedianPruner(config.startup) if config.prune == "median" else NopPruner()
