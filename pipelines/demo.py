"""Demo: the whole chain on phantoms in a few minutes, which `make demo` runs.

It calls the verbs' own programs with the recipe `tiny`, one after another on one embedded Ray, and prints what they
print. Started again, it resumes where it was; a finished demo is only reported again.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from anatomask.cli.main import main as anatomask
from anatomask.cluster import running
from anatomask.cluster_settings import ClusterConfig

FOLDER = "demo"

ORGANS = ("liver", "lung_lower_lobe_left", "lung_lower_lobe_right")

NETWORKS = ("anatomask", "scratch")
"""Names of the finetuned runs: from pretrained weights, and from random ones."""


def commands(folder: str, seed: int = 0, threads: int | None = None, *, quick: bool = False) -> list[list[str]]:
    """Return the commands of the chain as a user would type them: each a verb and its arguments.

    Args:
        folder: where everything is written.
        seed: of the phantoms, and of the trainings.
        threads: CPU threads of a training. Default: all cores'.
        quick: train for two updates only.
    """
    tiny = ["--recipe", "tiny"]
    seeded = ["--seed", str(seed)] if seed else []
    runs = f"{folder}/runs"
    coarse = ["--preprocess.spacing", "7", "7", "7"]  # else the 1.5 mm of TotalSegmentator, whose layout phantoms have
    scans = ["--cases", "14", "--size", "64", "--spacing", "4.5"]
    prepared = [*coarse, "--source", f"{folder}/scans", "--out", f"{folder}/shards", "--name", "phantoms"]
    trained = [*tiny, *seeded, "--data", f"{folder}/shards", "--runs", runs]
    trained += ["--cluster.threads", str(threads)] if threads else []
    trained += ["--training.epochs", "2", "--training.steps-per-epoch", "1"] if quick else []
    pretrained, scratch = (f"{runs}/{name}" for name in NETWORKS)
    return [
        ["phantom", *tiny, *seeded, *scans, "--out", f"{folder}/scans"],
        ["prepare", *tiny, *prepared, "--preprocess.classes", *ORGANS],
        ["pretrain", *trained, "--name", "pretrained"],
        ["finetune", *trained, "--name", NETWORKS[0], "--init", f"{runs}/pretrained"],
        ["finetune", *trained, "--name", NETWORKS[1]],
        ["evaluate", *tiny, "--run", pretrained],
        ["evaluate", *tiny, "--run", scratch],
        ["report", *tiny, "--runs", pretrained, scratch, "--out", f"{folder}/report"],
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chain; return the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=FOLDER, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the phantoms and of the trainings")
    parser.add_argument("--threads", type=int, help="CPU threads of a training; default: all cores'")
    parser.add_argument("--quick", action="store_true", help="two updates each, to see that it runs")
    arguments = parser.parse_args(argv)
    folder = arguments.folder
    console = Console()
    with running(ClusterConfig()):
        steps = commands(folder, arguments.seed, arguments.threads, quick=arguments.quick)
        for number, command in enumerate(steps, start=1):
            console.rule(f"{number}/{len(steps)} {command[0]}", align="left", style="dim")
            console.print(f"anatomask {shlex.join(command)}", style="bold", highlight=False)
            code = anatomask(command)
            if code:
                return code
    console.rule("what the demo left", align="left", style="dim")
    for picture in sorted(Path(folder).glob("report/*.png")) + sorted(Path(folder).glob("runs/*/pictures/*.png")):
        console.print(f"picture      {picture}", highlight=False, soft_wrap=True)
    console.print(f"TensorBoard  .venv/bin/tensorboard --logdir {folder}/runs", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
