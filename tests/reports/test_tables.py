from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from anatomask.reports.paper import published, published_note
from anatomask.reports.tables import (
    Row,
    best_runs,
    by_dataset,
    csv_table,
    in_what_differ,
    markdown_table,
    notes,
    terminal_table,
    verdict,
)


def row(run: str, dsc: float | None, nsd: float | None = 0.5, **changes: Any) -> Row:
    summary = {
        "run": run,
        "method": "AnatoMask",
        "initialisation": f"pretrain-{run}",
        "network": "STU-Net-B",
        "train_fraction": 1.0,
        "dataset": "FLARE22",
        "split": "test",
        "cases": 10,
        "dsc": {"mean": dsc, "sd": None if dsc is None else 0.0125},
        "nsd": {"mean": nsd, "sd": 0.2},
        "nsd_tolerance_mm": {"liver": 5.0, "spleen": 3.0},
        "failed": {},
    }
    return Row.from_summary(summary | changes)


def rendered(rows: list[Row], width: int) -> str:
    out = io.StringIO()
    Console(width=width, file=out, color_system=None).print(terminal_table(rows))
    return out.getvalue()


def test_the_terminal_table_fits_80_columns_and_keeps_the_order() -> None:
    rows = [row(name, 0.7, initialisation="pretrain-" + name * 12) for name in ("zeta", "alpha", "mid")]
    lines = rendered(rows, 80).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "70.0 ± 1.2" in text and "DSC [%]" in text  # 1.25 rounds half to even
    positions = [text.index(f"pretrain-{name}") for name in ("zeta", "alpha", "mid")]
    assert positions == sorted(positions)


def test_the_best_of_each_data_set_is_bold_ties_included() -> None:
    rows = [
        row("a", 0.81234, 0.5),
        row("b", 0.81249, 0.6),  # the same as shown
        row("c", 0.7, 0.9),
        row("d", 0.1, 0.1, dataset="AMOS22"),
        row("e", 0.05, None, dataset="AMOS22"),
        row("alone", 0.99, 0.99, dataset="other"),
    ]
    assert best_runs(rows) == {"dsc": {0, 1, 3}, "nsd": {2, 3}}
    lines = markdown_table(rows).splitlines()
    assert "**81.2 ± 1.2**" in lines[2] and "**81.2 ± 1.2**" in lines[3]
    assert "**90.0 ± 20.0**" in lines[4]
    assert "**" not in lines[7]


def test_markdown_has_one_cell_per_title() -> None:
    lines = markdown_table([row("a", None, method="a|b")]).splitlines()
    assert lines[2].replace("\\|", "").count("|") == lines[0].count("|") == lines[1].count("|")
    assert "| – |" in lines[2]


def test_the_csv_holds_fractions() -> None:
    table = list(csv.DictReader(io.StringIO(csv_table([row("a", 0.123456789), row("b", None)]))))
    assert float(table[0]["dsc_mean_fraction"]) == 0.123456789
    assert table[1]["dsc_mean_fraction"] == ""


def test_notes_tell_tolerances_and_what_differs() -> None:
    text = " ".join(notes([row("a", 0.5), row("b", 0.6, cases=9, failed={"s1": "corrupt"})]))
    assert "liver 5, spleen 3 mm" in text
    assert "FLARE22: runs differ in cases" in text
    assert "b (1)" in text
    assert "differ" not in " ".join(notes([row("a", 0.5), row("b", 0.6), row("c", 0.6, dataset="x", cases=3)]))


def test_the_share_of_labels_is_told_where_it_differs() -> None:
    assert "labels" not in rendered([row("a", 0.5), row("b", 0.5)], 120)
    assert "10 % of labels" in rendered([row("a", 0.5), row("b", 0.5, train_fraction=0.1)], 120)


def test_scores_of_cases_that_were_trained_on_are_marked() -> None:
    seen = "train is for training on; its scores say nothing of new scans."
    assert f"FLARE22: {seen}" in notes([row("a", 0.5, split="train"), row("b", 0.5)])
    assert seen not in " ".join(notes([row("a", 0.5), row("b", 0.5, split="val")]))


def test_the_papers_numbers_stand_beside_the_same_method_network_and_data_set() -> None:
    assert len(list(published())) == 72
    assert published_note("AnatoMask", "STU-Net-B", "FLARE22") == (
        "The paper has DSC 94.0 ± 1.3, NSD 97.3 ± 1.5 for AnatoMask with STU-Net-B on FLARE22."
    )
    assert published_note("AnatoMask", "STU-Net (base 8, depth 1)", "FLARE22") is None
    assert published_note("scratch", "STU-Net-B", "FLARE22") is None
    assert "The paper has" in " ".join(notes([row("a", 0.5)]))


@pytest.mark.parametrize("values", [(3.0, 3.0), (2.0, 2.0)])
def test_one_tolerance_is_told_once(values: tuple[float, float]) -> None:
    tolerances = dict(zip(("liver", "spleen"), values, strict=True))
    assert f"NSD at {values[0]:g} mm" in " ".join(notes([row("a", 0.5, nsd_tolerance_mm=tolerances)]))


def test_runs_that_were_scored_otherwise_are_told_and_none_is_best() -> None:
    def with_cases(run: str, dsc: float, cases: str, **changes: Any) -> Row:
        return replace(row(run, dsc, **changes), case_names=frozenset(cases))

    same = [with_cases("a", 0.5, "xy"), with_cases("b", 0.6, "xy")]
    assert best_runs(same)["dsc"] == {1}
    assert "differ" not in " ".join(notes(same))
    for other, what in (
        (with_cases("b", 0.6, "xz"), "cases"),
        (with_cases("b", 0.6, "xy", classes={"liver": {}}), "classes"),
        (with_cases("b", 0.6, "xy", nsd_tolerance_mm={"liver": 1.0}), "NSD tolerances"),
        (with_cases("b", 0.6, "xy", split="val"), "splits"),
    ):
        rows = [same[0], other]
        assert best_runs(rows) == {"dsc": set(), "nsd": set()}
        assert f"FLARE22: runs differ in {what}; compare with care." in notes(rows)
        assert "**" not in markdown_table(rows)


def test_runs_that_were_predicted_otherwise_are_told() -> None:
    """A run of an older version does not say how: nobody knows."""
    known = [{"mirror": mirror, "overlap": 0.5} for mirror in (True, False)]
    mirrored, plain, unknown = (row("a", 0.5, inference=inference) for inference in (*known, None))
    assert in_what_differ([mirrored, plain]) == ["windows or mirroring"]
    assert in_what_differ([mirrored, unknown]) == []


def test_two_folders_of_one_name_are_two_data_sets() -> None:
    rows = [row("a", 0.5, data="/one"), row("b", 0.6, data="/two", cases=3)]
    assert best_runs(rows) == {"dsc": set(), "nsd": set()}
    text = " ".join(notes(rows))
    assert "FLARE22 (/one): NSD" in text and "FLARE22 (/two): NSD" in text and "differ" not in text
    assert by_dataset([("d", "/one"), ("e", "/x"), ("d", "/one")]) == {"d": [0, 2], "e": [1]}


def test_the_verdict_without_any_class_present() -> None:
    nothing = {"mean": None, "sd": None}
    summary: dict[str, Any] = {
        "run": "r", "dataset": "d", "split": "test", "cases": 0, "failed": {}, "dsc": nothing, "nsd": nothing
    }  # fmt: skip
    assert verdict(summary) == "r on d (test): DSC – %, NSD – %, 0 cases"
    summary |= {"dsc": {"mean": 0.5, "sd": 0.01}, "nsd": {"mean": 0.25, "sd": None}, "cases": 2}
    assert verdict(summary) == "r on d (test): DSC 50.0 ± 1.0 %, NSD 25.0 %, 2 cases"
