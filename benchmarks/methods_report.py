"""Page of the pretraining methods: `python benchmarks/methods_report.py --records FOLDER --out methods.md`.

It reads the records of `methods_evidence.py`, and tabulates all methods against the networks from scratch, then the
scores of each network. The page belongs to docs/results.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from evidence_design import Record

from anatomask.recipes import RECIPES
from anatomask.recipes.parts import NETWORKS
from anatomask.reports.evidence import ArmRun, compare, evidence_markdown, points

SCRATCH = "scratch"

Arms = dict[str, list[ArmRun]]


def recipe_of(init: str) -> tuple[str, int]:
    """Read the recipe and the number of updates from the name of a pretraining."""
    found = re.fullmatch(r"(.+)-u(\d+)-p\d+", init)
    if found is None or found[1] not in RECIPES:
        raise SystemExit(f"a record starts from {init}, which is no pretraining of a recipe of this version")
    return found[1], int(found[2])


def arm_of(init: str) -> str:
    """Name an arm in tables by its method, and the updates of its pretraining."""
    if init == SCRATCH:
        return SCRATCH
    recipe, updates = recipe_of(init)
    return f"{RECIPES[recipe].pretraining().label()}, {updates:,} updates"


def arms_of(records: Sequence[Record]) -> dict[str, Arms]:
    """Group networks by their kind, then by what they start from, scratch first."""
    arms: dict[str, Arms] = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda r: (r["init"] != SCRATCH, r["network"], r["init"], r["seed"])):
        arms[record["network"]][arm_of(record["init"])].append(
            ArmRun.from_organs(
                record["seed"],
                record["dsc"],
                pretraining="" if record["init"] == SCRATCH else record["init"].rpartition("-")[2],
                nsd={2: record["nsd_2mm"], 3: record["nsd_3mm"]},
                curve=[(float(updates), score) for updates, score in record["curve"]],
            )
        )
    return {network: dict(found) for network, found in arms.items()}


def overview(records: Sequence[Record], arms: Mapping[str, Arms]) -> str:
    """Tabulate every method: what it pretrains, for how long, and what it adds to the network from scratch."""
    lines = [
        "| method | network | recipe | updates | seeds | from scratch [DSC] | difference [DSC points] | verdict |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for init, network in dict.fromkeys((r["init"], r["network"]) for r in records if r["init"] != SCRATCH):
        found, arm, (recipe, updates) = arms[network], arm_of(init), recipe_of(init)
        if not {run.seed for run in found[arm]} & {run.seed for run in found.get(SCRATCH, [])}:
            continue
        made = compare(found, (arm, SCRATCH))
        scores = [score for run in found[SCRATCH] for score in run.dsc.values()]
        lines.append(
            f"| {RECIPES[recipe].pretraining().label()} | {NETWORKS[network].label()} | `{recipe}` | {updates:,} "
            f"| {made.interval.seeds} | {100 * sum(scores) / len(scores):.1f} | {points(made.interval.mean)} "
            f"[{points(made.interval.low)}, {points(made.interval.high)}] | {made.verdict} |"
        )
    return "\n".join(lines)


def page(records: Sequence[Record]) -> str:
    """Write the page."""
    arms = arms_of(records)
    labels, updates = ({record[field] for record in records} for field in ("labels", "updates"))
    commits = sorted({record["commit"][:8] for record in records})
    parts = [
        "# Pretraining methods on OpenKBP",
        "Written by `benchmarks/methods_report.py` from the records of `benchmarks/methods_evidence.py`; its `--help` "
        f"tells what was done: {len(records)} networks, finetuned with {_listed(labels)} labels for {_listed(updates)} "
        f"updates, at commit {', '.join(commits)}. Each method has one pretraining, of its small recipe.",
        overview(records, arms),
    ]
    for network, found in arms.items():
        pairs = [(name, SCRATCH) for name in found if name != SCRATCH]
        parts += [f"## {NETWORKS[network].label()}", evidence_markdown(found, pairs).strip()]
    return "\n\n".join(parts) + "\n"


def _listed(numbers: set[int]) -> str:
    return " or ".join(f"{number:,}" for number in sorted(numbers))


def main() -> None:
    """Write the page of the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True, help="folder of JSON records")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    records = [json.loads(path.read_text()) for path in sorted(arguments.records.glob("*.json"))]
    if not records:
        raise SystemExit(f"{arguments.records} holds no records: run benchmarks/methods_evidence.py first")
    arguments.out.write_text(page(records), encoding="utf-8")
    print(json.dumps({"records": len(records), "networks": len(arms_of(records))}))


if __name__ == "__main__":
    main()
