"""Steps of the experiment: which trainings run, one decision after the other, whatever runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from evidence_design import Finetuning, Pretraining, Record, Scale, mean_dsc, weakest_organ


class Trainings(Protocol):
    """Something that trains and scores networks, and keeps what it made."""

    scale: Scale

    def prepare(self) -> None:
        """Prepare the scans, once."""

    def pretrain(self, runs: Sequence[Pretraining]) -> None:
        """Run the pretrainings that are missing."""

    def scores(self, runs: Sequence[Finetuning]) -> list[Record]:
        """Train and score the networks that have no record yet; return the records of all."""

    def seconds(self, run: Pretraining) -> float:
        """Return the seconds that a pretraining took."""

    def updates_in(self, seconds: float) -> int:
        """Return the number of updates that a finetuning does in that time."""


FULL = Scale(
    budgets=(1000, 2000, 4000),
    rates=(7e-4, 2e-3, 6e-3),
    pretraining=10_000,
    pairs=8,
    fewer_pairs=3,
    few_labels=(10, 5, 3),
    other_labels=(5, 10, 25, 89),
    scans=None,
)
QUICK = Scale(
    budgets=(4,),
    rates=(2e-3,),
    pretraining=4,
    pairs=2,
    fewer_pairs=1,
    few_labels=(1,),
    other_labels=(2,),
    scans=2,
)

FOUND = 0.30
"""DSC from which an organ counts as found."""
GAIN_OF_LABELS = 0.03
"""DSC by which all labels must be better than few, which then are few enough to show what labels are worth."""
GAIN_OF_CONTROL = 0.05
"""DSC by which the positive control must be better than scratch; less means that transfer is broken."""


def choose_budget(experiment: Trainings) -> int:
    """Find the shortest budget at which scratch finds every organ with the most of few labels; else the longest."""
    scale = experiment.scale
    labels = scale.few_labels[0]
    for updates in scale.budgets:
        few = experiment.scores([scratch(scale, labels, updates, seed) for seed in (0, 1)])
        found = min(weakest_organ(record) for record in few)
        print(f"{updates} updates, {labels} labels: DSC {mean_dsc(few):.3f}, weakest organ {found:.3f}")
        if found > FOUND:
            return updates
    return scale.budgets[-1]


def choose_labels(experiment: Trainings, updates: int) -> int:
    """Find the most of few labels that all labels beat clearly, with both seeds together; else the fewest."""
    scale = experiment.scale

    def score(labels: int) -> float:
        dsc = mean_dsc(experiment.scores([scratch(scale, labels, updates, seed) for seed in (0, 1)]))
        print(f"{updates} updates, {labels} labels: DSC {dsc:.3f}")
        return dsc

    full = score(scale.all_labels)
    return next((few for few in scale.few_labels if full - score(few) >= GAIN_OF_LABELS), scale.few_labels[-1])


def scratch(scale: Scale, labels: int, updates: int, seed: int) -> Finetuning:
    """Describe a network from scratch with the middle learning rate, scored on the cases that choose."""
    return Finetuning("scratch", labels, updates, scale.rates[len(scale.rates) // 2], seed, "budget")


def choose_rate(experiment: Trainings, inits: Sequence[str], labels: int, updates: int) -> float:
    """Find the learning rate with the best mean DSC on the cases that choose, of one seed from each of `inits`."""
    scale = experiment.scale
    runs = [Finetuning(init, labels, updates, rate, 0, "budget") for rate in scale.rates for init in inits]
    records = experiment.scores(runs)
    scores = {rate: mean_dsc([record for record in records if record["rate"] == rate]) for rate in scale.rates}
    best = max(scores, key=lambda rate: scores[rate])
    shown = ", ".join(f"lr {rate:g} DSC {score:.3f}" for rate, score in scores.items())
    print(f"{' and '.join(inits)}: {shown} -> {best:g}")
    return best


def choose_rates(experiment: Trainings, sources: Sequence[Pretraining], labels: int, updates: int) -> dict[str, float]:
    """Choose one learning rate for all of these pretrainings, whose arms then differ in the initial weights alone."""
    rate = choose_rate(experiment, [source.name for source in sources], labels, updates)
    return {source.arm: rate for source in sources}


def positive_control(experiment: Trainings, labels: int, updates: int, rate: float) -> None:
    """Finetune the encoder of a network that was trained with all labels, with few; half of the seeds.

    All labels may be worth less than the margin, so half of what they are worth suffices.
    """
    scale = experiment.scale
    source = scratch(scale, scale.all_labels, updates, 0)
    (trained,) = experiment.scores([source])

    def networks(init: str) -> list[Finetuning]:
        return [Finetuning(init, labels, updates, rate, seed, "budget") for seed in range(scale.pairs // 2)]

    plain = mean_dsc(experiment.scores(networks("scratch")))
    control = mean_dsc(experiment.scores([source, *networks(f"encoder:{source.name}")])[1:])
    margin = min(GAIN_OF_CONTROL, max(0.0, mean_dsc([trained]) - plain) / 2)
    verdict = "transfer works" if control - plain >= margin else f"below {margin:.3f}: is transfer broken?"
    print(f"positive control: DSC {control:.3f}, scratch {plain:.3f}: {verdict}")


def pretrainings(scale: Scale, seed: int, among: str = "body") -> list[Pretraining]:
    """SparK and AnatoMask of one seed; they differ in self-masking alone."""
    return [Pretraining(masking, among, seed, scale.pretraining) for masking in ("random", "anatomask")]


def compare(
    experiment: Trainings, sources: list[Pretraining], labels: int, updates: int, seeds: range, rates: dict[str, float]
) -> None:
    """Finetune from each pretraining and from scratch, with the same seeds, and score on the validation cases."""
    inits = {"scratch": "scratch"} | {source.arm: source.name for source in sources}
    experiment.scores(
        [Finetuning(init, labels, updates, rates[arm], seed, "val") for seed in seeds for arm, init in inits.items()]
    )


def run_steps(experiment: Trainings, last: int) -> None:
    """Run steps 1 to `last`."""
    scale = experiment.scale
    experiment.prepare()
    budget = choose_budget(experiment)
    few = choose_labels(experiment, budget)
    rates = {"scratch": choose_rate(experiment, ["scratch"], few, budget)}
    positive_control(experiment, few, budget, rates["scratch"])
    if last < 2:
        return
    half = scale.pairs // 2
    first = pretrainings(scale, 0)
    experiment.pretrain(first)
    rates |= choose_rates(experiment, first, few, budget)
    compare(experiment, first, few, budget, range(half), rates)
    experiment.scores(
        [Finetuning("scratch", few, budget, rates["scratch"], s, "val") for s in range(half, scale.pairs)]
    )
    permuted = f"permuted:{first[1].name}"
    experiment.scores([Finetuning(permuted, few, budget, rates[first[1].arm], seed, "val") for seed in range(half)])
    if last < 3:
        return
    second = pretrainings(scale, 1)
    experiment.pretrain(second)
    compare(experiment, second, few, budget, range(half, scale.pairs), rates)
    if last < 4:
        return
    for labels in sorted({*scale.other_labels} - {few}):
        compare(experiment, first, labels, budget, range(scale.fewer_pairs), rates)
    if last < 5:
        return
    longer = {"scratch": choose_rate(experiment, ["scratch"], few, 2 * budget)} | choose_rates(
        experiment, first, few, 2 * budget
    )
    compare(experiment, first, few, 2 * budget, range(scale.fewer_pairs), longer)
    twice = [Pretraining(source.masking, source.among, 0, 2 * scale.pretraining) for source in first]
    experiment.pretrain(twice)
    rates |= {long.arm: rates[short.arm] for long, short in zip(twice, first, strict=True)}
    compare(experiment, twice, few, budget, range(scale.fewer_pairs), rates)
    if last < 6:
        return
    everywhere = pretrainings(scale, 0, among="all")
    experiment.pretrain(everywhere)
    rates |= choose_rates(experiment, everywhere, few, budget)
    compare(experiment, everywhere, few, budget, range(half), rates)
    extra = experiment.updates_in(experiment.seconds(first[1]))
    experiment.scores(
        [Finetuning("scratch", few, budget + extra, rates["scratch"], seed, "val") for seed in range(scale.fewer_pairs)]
    )
