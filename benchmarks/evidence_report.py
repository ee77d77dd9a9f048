"""Tables and figure of the experiment so far: `python benchmarks/evidence_report.py --records FOLDER --out FOLDER`.

It reads the records that `evidence.py` writes, from whatever commit, and writes `choices.md` (what the choosing cases
decided), `evidence.md` (arms, comparisons, organs and hours, at each number of updates) and `evidence.png` as far as
there are networks scored on the validation cases.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evidence_design import Record, mean_dsc, weakest_organ

from anatomask.reports.evidence import ArmRun, evidence_markdown
from anatomask.reports.evidence_figure import evidence_figure

PRIMARY = [("AnatoMask", "scratch"), ("AnatoMask", "SparK")]
"""Comparisons whose p values Holm's method corrects."""
OTHERS = [("SparK", "scratch"), ("AnatoMask, permuted", "scratch"), ("AnatoMask", "AnatoMask, permuted")]

Arms = dict[str, list[ArmRun]]


def arm_of(record: Record, usual: int | None = None) -> str:
    """Name an arm in tables by what its networks start from, and the length of a pretraining that is not `usual`."""
    part, _, source = record["init"].rpartition(":")
    if source == "scratch":
        return "scratch"
    name = "SparK" if source.startswith("spark") else "AnatoMask"
    masks = "" if "-body-" in source else ", all patches"
    length = length_of(source)
    longer = f", {length:,} updates" if usual not in (None, length) else ""
    return f"{name}{masks}{longer}{', permuted' if part == 'permuted' else ''}"


def length_of(source: str) -> int | None:
    """Read the updates of a pretraining from its name; None for another start."""
    found = re.fullmatch(r".*-u(\d+)-p\d+", source)
    return int(found[1]) if found else None


def by_arm(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group networks by arm, in the order of their seeds."""
    usual = min((length for r in records if (length := length_of(r["init"])) is not None), default=None)
    found: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record["seed"]):
        found[arm_of(record, usual)].append(record)
    return dict(found)


def arms_of(records: Sequence[Record]) -> Arms:
    """Gather the runs of each arm; the pretraining of a run is the seed at the end of its source's name."""
    return {name: [_run(record) for record in members] for name, members in by_arm(records).items()}


def _run(record: Record) -> ArmRun:
    source = record["init"].rpartition(":")[2]
    return ArmRun.from_organs(
        record["seed"],
        record["dsc"],
        pretraining="" if source == "scratch" else source.rpartition("-")[2],
        nsd={2: record["nsd_2mm"], 3: record["nsd_3mm"]},
        curve=[(float(updates), score) for updates, score in record["curve"]],
    )


def by_updates(records: Sequence[Record]) -> dict[int, list[Record]]:
    """Group the networks with the most frequent number of labels by their number of updates, ascending."""
    scored = [record for record in records if record["split"] == "val"]
    if not scored:
        return {}
    counts: dict[int, int] = defaultdict(int)
    for record in scored:
        counts[record["labels"]] += 1
    labels = max(counts, key=lambda number: counts[number])
    found: dict[int, list[Record]] = defaultdict(list)
    for record in sorted(scored, key=lambda record: record["updates"]):
        if record["labels"] == labels:
            found[record["updates"]].append(record)
    return dict(found)


def main_comparison(records: Sequence[Record]) -> tuple[Arms, dict[int, Arms]]:
    """Find the arms at the smallest number of updates of the most frequent number of labels, and those by labels."""
    budgets = by_updates(records)
    if not budgets:
        return {}, {}
    updates, members = next(iter(budgets.items()))
    at_budget = [record for record in records if record["split"] == "val" and record["updates"] == updates]
    by_labels = {
        number: arms_of([record for record in at_budget if record["labels"] == number])
        for number in sorted({record["labels"] for record in at_budget})
    }
    return by_labels[members[0]["labels"]], by_labels if len(by_labels) > 1 else {}


def evidence(records: Sequence[Record]) -> str:
    """Write the arms and comparisons at each number of updates, the main one first, and what each arm took.

    Holm's correction is over the primary comparisons of the main section alone.
    """
    parts = list[str]()
    for updates, members in by_updates(records).items():
        arms = arms_of(members)
        primary, others = ([pair for pair in pairs if set(pair) <= arms.keys()] for pairs in (PRIMARY, OTHERS))
        if parts:
            parts.append(f"## {updates:,} updates\n")
            primary, others = [], [*primary, *others]
        parts += [evidence_markdown(arms, primary, others), hours_table(members)]
    return "\n".join(parts)


def hours_table(records: Sequence[Record]) -> str:
    """Tabulate the hours of each arm's finetunings."""
    lines = ["| Arm | Networks | Hours of finetuning |", "|---|---:|---:|"]
    for name, members in by_arm(records).items():
        lines.append(f"| {name} | {len(members)} | {sum(record['seconds'] for record in members) / 3600:.1f} |")
    return "\n".join([*lines, "", "Hours of pretraining are in `encoders/*/cost.json` of the experiment."]) + "\n"


def choices(records: Sequence[Record]) -> str:
    """Write a table of the networks that were scored on the choosing cases."""
    lines = [
        "# Networks scored on the ten choosing cases",
        "",
        "Written by `benchmarks/evidence_report.py`; see [evidence.md](../evidence.md).",
        "",
        "| start | labels | updates | lr | seed | DSC [%] | weakest organ [%] | minutes | commit |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    chosen = sorted(
        (record for record in records if record["split"] != "val"),
        key=lambda r: (r["updates"], r["init"], r["labels"], r["rate"], r["seed"]),
    )
    for r in chosen:
        lines.append(
            f"| {r['init']} | {r['labels']} | {r['updates']} | {r['rate']:g} | {r['seed']} | {100 * mean_dsc([r]):.1f} "
            f"| {100 * weakest_organ(r):.1f} | {r['seconds'] / 60:.0f} | {r['commit'][:8]} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the tables and the figure of the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True, help="folder of JSON records")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    records: list[dict[str, Any]] = [json.loads(path.read_text()) for path in sorted(arguments.records.glob("*.json"))]
    if not records:
        raise SystemExit(f"{arguments.records} holds no records: run benchmarks/evidence.py first")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "choices.md").write_text(choices(records))
    arms, by_labels = main_comparison(records)
    if arms:
        (arguments.out / "evidence.md").write_text(evidence(records))
        evidence_figure(arms, arguments.out / "evidence.png", by_labels=by_labels or None)
    print(json.dumps({"records": len(records), "arms": {name: len(runs) for name, runs in arms.items()}}))


if __name__ == "__main__":
    main()
