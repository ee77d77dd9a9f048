"""Tables and figure of the experiment so far: `python benchmarks/evidence_report.py --records FOLDER --out FOLDER`.

It reads the records that `evidence.py` writes, from whatever commit, and writes `choices.md` (what the choosing cases
decided), `evidence.md` (arms, comparisons, organs) and `evidence.png` as far as there are networks scored on the
validation cases.
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


def arms_of(records: Sequence[Record]) -> Arms:
    """Group networks by arm; the pretraining of a run is the seed at the end of its source's name."""
    arms: Arms = defaultdict(list)
    lengths = [length for record in records if (length := length_of(record["init"])) is not None]
    for record in sorted(records, key=lambda record: record["seed"]):
        source = record["init"].rpartition(":")[2]
        arms[arm_of(record, min(lengths, default=None))].append(
            ArmRun.from_organs(
                record["seed"],
                record["dsc"],
                pretraining="" if source == "scratch" else source.rpartition("-")[2],
                nsd={2: record["nsd_2mm"], 3: record["nsd_3mm"]},
                curve=[(float(updates), score) for updates, score in record["curve"]],
            )
        )
    return dict(arms)


def main_comparison(records: Sequence[Record]) -> tuple[Arms, dict[int, Arms]]:
    """Find the arms at the smallest number of updates of the most frequent number of labels, and those by labels."""
    scored = [record for record in records if record["split"] == "val"]
    if not scored:
        return {}, {}
    counts: dict[int, int] = defaultdict(int)
    for record in scored:
        counts[record["labels"]] += 1
    labels = max(counts, key=lambda number: counts[number])
    updates = min(record["updates"] for record in scored if record["labels"] == labels)
    at_budget = [record for record in scored if record["updates"] == updates]
    by_labels = {
        number: arms_of([record for record in at_budget if record["labels"] == number])
        for number in sorted({record["labels"] for record in at_budget})
    }
    return by_labels[labels], by_labels if len(by_labels) > 1 else {}


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
        present = [pair for pair in PRIMARY if set(pair) <= arms.keys()]
        others = [pair for pair in OTHERS if set(pair) <= arms.keys()]
        (arguments.out / "evidence.md").write_text(evidence_markdown(arms, present, others))
        evidence_figure(arms, arguments.out / "evidence.png", by_labels=by_labels or None)
    print(json.dumps({"records": len(records), "arms": {name: len(runs) for name, runs in arms.items()}}))


if __name__ == "__main__":
    main()
