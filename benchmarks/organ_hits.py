"""Masked patches that touch an organ, by where masks are drawn: `python benchmarks/organ_hits.py --data SHARDS`.

AnatoMask is pretrained from one seed with masks among all patches, among those with body, and among those with
foreground (soft tissue). At each validation the run records, on fixed scans with labels, which share of the random
masks' patches touches an organ, of the self-masks', and of the patches that the teacher finds hard. The table shows the
last, and the figure OUT/organ-hits.png all of them. A finished run is not repeated. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

from matplotlib.figure import Figure
from measure import machine, report

from anatomask.files import replacing
from anatomask.masking import Among
from anatomask.training.journal import METRICS

KINDS = {"random": "random mask", "self": "self-mask", "hard": "hardest patches"}
POINTS = 10
"""Number of validations of a run."""
COLOURS = {"random": "0.5", "self": "tab:blue", "hard": "tab:red"}

Curve = list[tuple[int, float]]


def main() -> None:
    """Pretrain, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared CTs with labels (`anatomask prepare`)")
    parser.add_argument("--out", type=Path, default=Path("organ-hits"), help="folder for runs and figure")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--edge", type=int, default=48, help="edge of a crop in voxels")
    parser.add_argument("--quick", action="store_true", help="a few updates, to see that it runs")
    arguments = parser.parse_args()
    updates = POINTS if arguments.quick else arguments.updates
    found = {among: pretrained(among, arguments, updates // POINTS) for among in get_args(Among)}
    draw(found, arguments.out / "organ-hits.png")
    report(
        f"masked patches that touch an organ [%], last of {POINTS} validations in {updates} updates",
        ["masks among", *KINDS.values()],
        [[among, *(f"{100 * curves[kind][-1][1]:.1f}" for kind in KINDS)] for among, curves in found.items()],
        {"curves": found, "updates": updates, "machine": machine("cpu")},
    )


def pretrained(among: str, arguments: argparse.Namespace, steps: int) -> dict[str, Curve]:
    """Pretrain with masks drawn `among` these patches, and read the shares that the run recorded."""
    name = f"among-{among}-u{steps * POINTS}"
    folder = arguments.out / "runs" / name
    command = [
        *(sys.executable, "-m", "anatomask", "pretrain", "--recipe", "small", "--seed", "0"),
        *("--data", str(arguments.data), "--runs", str(arguments.out / "runs"), "--name", name),
        *("--method.patch", "8", "--method.among", among, "--method.decoder-width", "32"),
        *("--method.ema-decay", "0.98", "--method.ema-decay-final", "0.998"),
        *("--loader.patch-size", *[str(arguments.edge)] * 3),
        *("--training.epochs", str(POINTS), "--training.steps-per-epoch", str(steps)),
        *("--training.validate-every", "1", "--optimiser.warmup-epochs", "1"),
    ]
    done = subprocess.run(command, stdout=sys.stderr)  # resumes, or says that it is finished
    if done.returncode:
        raise SystemExit(f"{name} failed with exit code {done.returncode}")
    rows = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    return {
        kind: [(row["step"], row[f"mask/organs_{kind}"]) for row in rows if f"mask/organs_{kind}" in row]
        for kind in KINDS
    }


def draw(found: dict[str, dict[str, Curve]], path: Path) -> None:
    """Draw a panel for each place of masks, with a curve for each kind of mask."""
    figure = Figure(figsize=(3.6 * len(found), 3.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    for axes, (among, curves) in zip(panels, found.items(), strict=True):
        for kind, curve in curves.items():
            axes.plot(*zip(*curve, strict=True), color=COLOURS[kind], label=KINDS[kind])
        axes.set_title(f"masks among {among}", fontsize=9)
        axes.set_xlabel("updates")
        axes.set_ylim(0, None)
        axes.yaxis.set_major_formatter(lambda share, position: f"{100 * share:.0f} %")
    panels[0].set_ylabel("patches that touch an organ")
    panels[0].legend(frameon=False, fontsize=8)
    with replacing(path) as file:
        figure.savefig(file, format="png")


if __name__ == "__main__":
    main()
