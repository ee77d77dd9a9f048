"""Demo: the whole chain on phantoms in a few minutes, which `make demo` runs.

It calls the verbs' own programs with the recipe `tiny`, one after another on one embedded Ray, and prints what they
print. Started again, it resumes where it was; a finished demo is only reported again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from anatomask.cli.main import main as anatomask
from anatomask.cluster import running
from anatomask.cluster_settings import ClusterConfig

FOLDER = "demo"

ORGANS = ("liver", "spleen", "stomach", "aorta")


def commands(folder: str) -> list[tuple[str, list[str]]]:
    """Return the verbs of the chain and their arguments, as a user would type them."""
    tiny = ["--recipe", "tiny"]
    runs = f"{folder}/runs"
    coarse = ["--preprocess.spacing", "4", "4", "4"]  # else the 1.5 mm of TotalSegmentator, whose layout phantoms have
    organs = ["--preprocess.classes", *ORGANS]
    init = ["--init", f"{runs}/pretrained"]
    return [
        ("phantom", [*tiny, "--out", f"{folder}/scans"]),
        (
            "prepare",
            [*tiny, *coarse, "--source", f"{folder}/scans", "--out", f"{folder}/shards", "--name", "phantoms", *organs],
        ),
        ("pretrain", [*tiny, "--data", f"{folder}/shards", "--runs", runs, "--name", "pretrained"]),
        ("finetune", [*tiny, "--data", f"{folder}/shards", "--runs", runs, "--name", "anatomask", *init]),
        ("finetune", [*tiny, "--data", f"{folder}/shards", "--runs", runs, "--name", "scratch"]),
        ("evaluate", [*tiny, "--run", f"{runs}/anatomask"]),
        ("evaluate", [*tiny, "--run", f"{runs}/scratch"]),
        ("report", [*tiny, "--runs", f"{runs}/anatomask", f"{runs}/scratch", "--out", f"{folder}/report"]),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chain in the folder of the first argument (default `demo`); return the first exit code that is not 0."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    folder = arguments[0] if arguments else FOLDER
    console = Console()
    with running(ClusterConfig()):
        for number, (verb, options) in enumerate(steps := commands(folder), start=1):
            console.rule(f"{number}/{len(steps)} {verb}", align="left", style="dim")
            console.print(f"anatomask {verb} {' '.join(options)}", style="bold", highlight=False)
            code = anatomask([verb, *options])
            if code:
                return code
    console.rule("what the demo left", align="left", style="dim")
    for picture in sorted(Path(folder).glob("report/*.png")) + sorted(Path(folder).glob("runs/*/pictures/*.png")):
        console.print(f"picture      {picture}", highlight=False, soft_wrap=True)
    console.print(f"TensorBoard  .venv/bin/tensorboard --logdir {folder}/runs", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
