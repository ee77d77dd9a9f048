"""The paper's tables with our scores in their cells."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anatomask.cli.arguments import parse
from anatomask.evaluation.results import CaseScore, summarise
from anatomask.evaluation.statistics import difference_interval
from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.nested import plain
from anatomask.recipes import RECIPES
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.reports.paper import ABLATIONS, COMPARISONS, published
from anatomask.reports.paper_candidates import Candidate, Place, candidates
from anatomask.reports.paper_tables import RECIPE_OF, PaperTable, paper_tables
from anatomask.reports.paper_text import page_table, paper_csv, paper_markdown
from anatomask.reports.provenance import Training, lineage
from anatomask.reports.seeds import by_seed
from tests.reports.test_provenance import write_training

CLASSES = {"TotalSegmentator": 104, "FLARE22": 13, "AMOS22": 15, "AutoPETII": 1, "openkbp": 5}
ALL = ABLATIONS + COMPARISONS


def evaluated(
    name: str,
    dsc: list[float],
    *,
    method: str = "AnatoMask",
    network: str = "STU-Net-B",
    dataset: str = "TotalSegmentator",
    seed: int = 0,
    **changes: Any,
) -> EvaluatedRun:
    """A run whose cases have these scores."""
    names = [f"organ{number}" for number in range(CLASSES[dataset])]
    scores = [
        CaseScore(name, dataset, f"case{case}", number, organ, value, value / 2, 9)
        for case, value in enumerate(dsc)
        for number, organ in enumerate(names, 1)
    ]
    summary = {
        "run": name, "method": method, "initialisation": "pre", "network": network, "dataset": dataset,
        "data": f"data/{dataset}", "split": "test", "train_fraction": 1.0, **summarise(scores),
        "training": {"seed": seed, "seeds": f"{name}-{seed}", "starts": f"{dataset}-{network}"}, **changes,
    }  # fmt: skip
    return EvaluatedRun(Path("runs") / name, summary, {f"case{i}": value for i, value in enumerate(dsc)}, scores)


def pretrained(seed: int = 0, **method: Any) -> Training:
    settings = {"seed": seed, "data": "data/TotalSegmentator", "method": plain(AnatoMaskConfig(**method))}
    return Training(Path("runs/pre"), "pretrain", settings, "")


def found(*members: tuple[EvaluatedRun, Training | Sequence[Training]]) -> list[Candidate]:
    arms = by_seed([run for run, _ in members])
    origins = {id(run): [came] if isinstance(came, Training) else came for run, came in members}
    return candidates(arms, [origins[id(arm[0])] for arm in arms])


def cells(table: PaperTable) -> dict[str, list[str]]:
    laid_out = page_table(table)
    count = len(table.titles)
    return {", ".join(cell.text for cell in row[:count]): [cell.text for cell in row[count:]] for row in laid_out.rows}


def only(number: str, *members: tuple[EvaluatedRun, Training | Sequence[Training]]) -> PaperTable:
    (table,) = paper_tables(found(*members), [number])
    return table


def test_every_published_score_stands_in_its_table() -> None:
    tables = paper_tables([], ALL)
    assert [table.number for table in tables] == list(ALL)
    rows = list(csv.DictReader(io.StringIO(paper_csv(tables))))
    assert [float(row["paper_mean_percent"]) for row in rows] == [score.mean for score in published(ALL)]
    assert not any(row["mean_fraction"] or row["difference_fraction"] for row in rows)
    assert all(row["commands"] for row in rows)
    text = paper_markdown(tables)
    assert "| Tang et al. (Swin UNETR SSL) | SwinUNETR (Swin UNETR) | 91.2 ± 2.1 | – (1) |" in text


def test_every_command_for_a_missing_cell_is_one_that_exists() -> None:
    lines = {row["commands"] for row in csv.DictReader(io.StringIO(paper_csv(paper_tables([], ALL))))}
    commands = {command for line in lines for command in line.split(" && ")}
    assert len(commands) == 3 + 9 + 4 * 9 + 4 * 9  # sweeps, pretrainings, finetunings, evaluations
    for command in commands:
        program, verb, *flags = shlex.split(command)
        if "--init" in flags:  # weights that an earlier command makes
            del flags[flags.index("--init") : flags.index("--init") + 2]
        assert program == "anatomask" and parse(verb, flags, RECIPES).config


def test_recipes_have_the_names_of_their_rows() -> None:
    assert set(RECIPE_OF) == {(score.method, score.network) for score in published()}
    for (method, network), recipe in RECIPE_OF.items():
        assert (RECIPES[recipe].pretraining().label(), RECIPES[recipe].backbone().label()) == (method, network)


def test_a_score_stands_beside_the_published_one_with_difference_interval_and_seeds() -> None:
    scores = [[0.80, 0.90, 0.85, 0.95], [0.82, 0.90, 0.83, 0.97]]
    runs = [(evaluated(f"r{seed}", one, seed=seed), pretrained(seed)) for seed, one in enumerate(scores)]
    table = only("4", *runs)
    interval = difference_interval(np.array(scores) - 0.843)
    low, high = (f"{'−' if value < 0 else '+'}{abs(100 * value):.1f}" for value in (interval.low, interval.high))
    row = cells(table)["AnatoMask, STU-Net-B"]
    sd = 100 * np.std(np.mean(scores, axis=0), ddof=1)
    assert row == ["84.3 ± 9.9", f"87.8 ± {sd:.1f}", f"+3.5 [{low}, {high}]", "87.8 ± 11.8", row[4], row[5], "2"]
    assert row[4].startswith("43.9") and row[5].startswith("−43.9 [")
    assert not table.rows[6].commands and len(page_table(table).commands) == 8
    assert paper_tables(found(*runs))[0].number == "1" and "test cases are not the paper's" in " ".join(table.notes)


def test_runs_that_share_a_pretraining_are_its_group(tmp_path: Path) -> None:
    """Two of one pretraining, and one of another seed of it."""
    for seed in (0, 1):
        write_training(tmp_path / f"pre-{seed}", {"method": plain(AnatoMaskConfig()), "seed": seed})
    scores = [[0.80, 0.90, 0.85, 0.95], [0.82, 0.90, 0.83, 0.97], [0.90, 0.92, 0.99, 0.95]]
    members: list[tuple[EvaluatedRun, Sequence[Training]]] = []
    for seed, (dsc, source) in enumerate(zip(scores, ("pre-0", "pre-0", "pre-1"), strict=True)):
        folder = write_training(tmp_path / f"r{seed}", {"init": str(tmp_path / source), "seed": seed})
        members.append((replace(evaluated(f"r{seed}", dsc, seed=seed), folder=folder), lineage(folder)))
    table = only("4", *members)
    interval = difference_interval(np.array(scores) - 0.843, [0, 0, 1])
    low, high = (f"{'−' if value < 0 else '+'}{abs(100 * value):.1f}" for value in (interval.low, interval.high))
    assert cells(table)["AnatoMask, STU-Net-B"][2] == f"+{100 * interval.mean:.1f} [{low}, {high}]"
    assert "the interval holds for these pretrainings" in " ".join(table.notes)
    row = next(row for row in csv.DictReader(io.StringIO(paper_csv([table]))) if row["mean_fraction"])
    assert float(row["difference_fraction"]) == pytest.approx(interval.mean)
    assert "these pretrainings" not in " ".join(only("4", *members[1:]).notes)


def test_networks_that_started_as_the_papers_did_come_before_others() -> None:
    """Of one method: two seeds directly from the pretraining, and one via the first data set."""
    direct = [(evaluated(f"d{seed}", [0.2, 0.4], dataset="FLARE22", seed=seed), pretrained(seed)) for seed in (0, 1)]
    via = evaluated("v", [0.8, 0.9], dataset="FLARE22", via="TotalSegmentator", training=None)
    assert cells(only("5", *direct))["AnatoMask, STU-Net-B"][1] == "30.0 ± 14.1"
    assert cells(only("5", *direct, (via, pretrained())))["AnatoMask, STU-Net-B"][1] == "85.0 ± 7.1"


def test_a_variant_stands_in_every_row_of_its_settings() -> None:
    variants: dict[str, dict[str, Any]] = {
        "default": {},
        "random": {"masking": "random"},
        "frozen": {"teacher": "frozen"},
    }
    members = [
        (evaluated(name, [0.5, value], method="SparK" if name == "random" else "AnatoMask"), pretrained(**fields))
        for value, (name, fields) in zip((0.6, 0.7, 0.8), variants.items(), strict=True)
    ]
    first, second, third = (cells(only(number, *members)) for number in ABLATIONS)
    assert (
        first["hierarchical, anatomask"][1] == second["yes, high, easy-to-hard"][1] == third["0.6"][1] == "55.0 ± 7.1"
    )
    assert first["hierarchical, random"][1] == second["no, none, none"][1] == "60.0 ± 14.1"
    assert second["no, high, easy-to-hard"][1] == "65.0 ± 21.2"
    assert first["simple, random"][1].startswith("– (") and third["0.9"][1].startswith("– (")
    methods = cells(only("4", *members))
    assert methods["AnatoMask, STU-Net-B"][1] == "55.0 ± 7.1"  # not the frozen teacher's
    assert methods["SparK, STU-Net-B"][1] == "60.0 ± 14.1"


def test_controls_and_early_checkpoints_stand_in_no_row_of_the_paper_and_the_longest_pretraining_does(
    tmp_path: Path,
) -> None:
    """Of two seeds from the shorter pretraining, and one of each other start."""
    for name, epochs in (("long", 10), ("short", 5)):
        training = {"epochs": epochs, "steps_per_epoch": 1, "batch_size": 4}
        write_training(tmp_path / name, {"method": plain(AnatoMaskConfig()), "training": training}, updates=epochs)
    long, short = str(tmp_path / "long"), str(tmp_path / "short")
    starts = {
        "control": (f"permuted:{long}", "AnatoMask, permuted", 0),
        "early": (f"{long}/checkpoints/step_00000004", "AnatoMask", 0),
        "short-0": (short, "AnatoMask", 0),
        "short-1": (short, "AnatoMask", 1),
        "whole": (long, "AnatoMask", 0),
    }
    members = {}
    for number, (name, (init, method, seed)) in enumerate(starts.items(), 1):
        run = evaluated(name, [number / 10, number / 10], method=method, seed=seed)
        members[name] = (run, lineage(write_training(tmp_path / name, {"init": init, "seed": seed})))
    first, fourth = only("1", *members.values()), only("4", *members.values())
    assert cells(first)["hierarchical, anatomask"][1] == cells(fourth)["AnatoMask, STU-Net-B"][1] == "50.0 ± 0.0"
    assert cells(fourth)["AnatoMask, permuted, STU-Net-B"][1] == "10.0 ± 0.0"
    for table in (first, fourth):
        text = " ".join(table.notes)
        assert "stands in a cell, of equals the one with most seeds: long (10 epochs), not short (5 epochs)." in text
        assert "a checkpoint before the end of their pretraining: early." in text
    controls = only("1", members["control"], members["early"])
    assert cells(controls)["hierarchical, anatomask"][1].startswith("– (")
    assert "Of several" not in " ".join(only("1", members["short-0"], members["short-1"]).notes)


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"dataset": "openkbp"}, "openkbp"),
        ({"split": "val"}, "TotalSegmentator, split val"),
        ({"train_fraction": 0.1}, "TotalSegmentator, 10 % of labels"),
        ({"folds": [0, 1], "fold": {"of": 5}, "split": "fold_0, fold_1"}, "TotalSegmentator, 2 of 5 folds"),
    ],
)
def test_scores_of_other_data_or_conditions_have_no_difference(changes: dict[str, Any], title: str) -> None:
    member = (evaluated("run", [0.5, 0.7], **changes), pretrained())
    for number in ("1", "4"):
        table = only(number, member)
        row = cells(table)["hierarchical, anatomask" if number == "1" else "AnatoMask, STU-Net-B"]
        assert row[1].startswith("– (") and row[2] == "–" and "60.0 ± 14.1" in row[3:]
        assert table.places[-1].title.replace(", STU-Net-B", "") == title and "no difference" in " ".join(table.notes)
    assert paper_tables(found(member)) == []
    assert "openkbp" not in "".join(place.title for place in only("5", member).places)


def test_another_network_is_a_row_without_a_published_score() -> None:
    small = "STU-Net (base 8, depth 1)"
    table = only("4", (evaluated("run", [0.5, 0.7], network=small), pretrained()))
    assert cells(table)[f"AnatoMask, {small}"][:3] == ["–", "60.0 ± 14.1", "–"]
    ablation = only("1", (evaluated("run", [0.5, 0.7], network=small), pretrained()))
    assert ablation.places[1] == Place("TotalSegmentator", small)


def test_what_there_is_already_is_not_made_again() -> None:
    table = only("5", (evaluated("ts", [0.5, 0.7]), pretrained()))
    row = next(row for row in table.rows if row.names == ("AnatoMask", "STU-Net-B"))
    commands = row.commands[Place("FLARE22")]
    assert [shlex.split(command)[1] for command in commands] == ["finetune", "evaluate"]
    assert "--init runs/ts" in commands[0]


def test_pretrainings_that_differ_in_more_than_their_seed_are_not_pooled() -> None:
    one = (evaluated("a", [0.5, 0.7]), pretrained())
    other = (evaluated("b", [0.6, 0.8], seed=1), pretrained(1, ema_decay=0.9))
    assert [candidate.ours.seeds for candidate in found(one, other)] == [1, 1]
    assert [candidate.ours.seeds for candidate in found(one, (evaluated("b", [0.6, 0.8], seed=1), pretrained(1)))] == [
        2
    ]


def test_one_case_has_a_difference_without_an_interval() -> None:
    assert cells(only("4", (evaluated("run", [0.9]), pretrained())))["AnatoMask, STU-Net-B"][1:3] == ["90.0", "+5.7"]
