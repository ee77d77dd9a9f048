"""Reading and drawing the shares of masked patches that touch an organ."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import organ_hits
import pytest
from organ_hits import KINDS, POINTS, draw, pretrained

from anatomask.training.journal import METRICS


def test_the_shares_of_a_run_are_read_where_it_recorded_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **rest: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(organ_hits.subprocess, "run", run)
    folder = tmp_path / "runs" / f"among-body-u{4 * POINTS}"
    folder.mkdir(parents=True)
    rows = [
        {"step": 4, "train/loss": 1.0},
        *({"step": s, **{f"mask/organs_{k}": s / 10 for k in KINDS}} for s in (4, 8)),
    ]
    (folder / METRICS).write_text("\n".join(map(json.dumps, rows)) + "\n")
    arguments = argparse.Namespace(data=tmp_path, out=tmp_path, edge=48)
    curves = pretrained("body", arguments, 4)
    assert curves == {kind: [(4, 0.4), (8, 0.8)] for kind in KINDS}
    (command,) = asked
    assert command[command.index("--method.among") + 1] == "body"
    draw({"all": curves, "body": curves}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(organ_hits.subprocess, "run", lambda command, **rest: subprocess.CompletedProcess(command, 3))
    with pytest.raises(SystemExit, match="among-all-u40 failed with exit code 3"):
        pretrained("all", argparse.Namespace(data=tmp_path, out=tmp_path, edge=48), 4)
