"""Running the demo with several seeds, and what is read of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import demo
import pytest
from demo import NETWORKS

from anatomask.cli.arguments import parse
from anatomask.recipes import RECIPES
from pipelines.demo import NETWORKS as RUNS
from pipelines.demo import ORGANS, commands


def write_results(folder: Path, pretrained: float, scratch: float) -> None:
    """Write what the demo leaves, by the DSC of its organs."""
    for name, dsc in zip(NETWORKS, (pretrained, scratch), strict=True):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        classes = {organ: {"dsc": {"mean": dsc, "sd": None}} for organ in ORGANS}
        (run / "summary.json").write_text(json.dumps({"classes": classes}))


@pytest.mark.parametrize(
    ("pretrained", "scratch", "says", "kept"),
    [(0.9, 0.8, "yes", 2), (0.8, 0.9, "pretrained is worse", 0), (0.9, 0.7, "an organ is missed", 0)],
)
def test_every_seed_and_number_of_threads_is_a_demo_of_its_own(
    pretrained: float,
    scratch: float,
    says: str,
    kept: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **rest: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[3:])
        write_results(Path(command[3]), pretrained, scratch)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(demo.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--seeds", "0", "1", "--threads", "2", "--out", str(tmp_path)])
    for _ in range(2):  # the second time, both are finished
        demo.main()
        *table, last = capsys.readouterr().out.splitlines()
        assert [line.strip().endswith(says) for line in table[2:]] == [True, True]
        result = json.loads(last)
        assert (result["kept"], result["of"]) == (kept, 2)
        assert result["demos"][1]["dsc"]["scratch"] == dict.fromkeys(ORGANS, 100 * scratch)
    assert asked == [[str(tmp_path / f"seed{n}-threads2"), "--seed", str(n), "--threads", "2"] for n in range(2)]


def test_the_commands_of_the_demo_are_accepted() -> None:
    assert tuple(NETWORKS) == RUNS
    seeds = []
    for verb, *arguments in (*commands("demo"), *commands("demo", seed=3, threads=1, quick=True)):
        if "--init" in arguments:  # there are no such weights yet
            del arguments[arguments.index("--init") :]
        config = parse(verb, arguments, RECIPES).config
        if verb in ("phantom", "pretrain", "finetune"):
            seeds.append(config.seed)
        if verb in ("pretrain", "finetune") and config.seed:
            assert (config.cluster.threads, config.training.epochs, config.training.steps_per_epoch) == (1, 2, 1)
    assert seeds == [0] * 4 + [3] * 4
