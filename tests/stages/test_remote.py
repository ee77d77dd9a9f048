"""Whole verbs on shards in object storage: an S3 protocol server on loopback, and an address with credentials."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import ray

from anatomask.cli.arguments import parse
from anatomask.cli.main import main
from anatomask.data.addresses import address_below
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.recipes import RECIPES
from anatomask.runs import remote
from anatomask.runs.checkpoint_index import last_step
from anatomask.stages.pretrain import build_job
from anatomask.weights.files import find_weights

TINY = ["--recipe", "tiny", "--loader.patch-size", "32", "32", "32"]


@pytest.fixture
def source(real_data: Path, tmp_path: Path) -> Path:
    """Four real head-and-neck CTs."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for path in sorted((real_data / "openkbp").rglob("imagesUnlabeled/*.nii.gz"))[:4]:
        shutil.copy(path, folder)
    return folder


def holds(folder: Path, secret: bytes) -> list[Path]:
    """The files below a folder that hold the secret."""
    return [path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_a_run_has_the_same_name_wherever_it_lies(s3: Any, head_scan: PreparedDataset) -> None:
    argv = [*TINY, "--splits", "train", "--data", head_scan.path, "--runs"]
    here, there = (build_job(parse("pretrain", [*argv, runs], RECIPES).config) for runs in ("runs", s3.address("runs")))
    assert here.run.name == there.run.name and here.storage is None
    assert there.copy.shown == f"s3://bucket/runs/{here.run.name}?scheme=http&endpoint_override={s3.endpoint}"


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_prepare_and_pretrain_on_object_storage(
    source: Path,
    tmp_path: Path,
    s3: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ray_session: None,
) -> None:
    monkeypatch.setattr(remote, "WORKING_FOLDERS", tmp_path / "work")
    address, runs = s3.address("shards/kbp"), s3.address("runs")
    argv = ["prepare", "--recipe", "tiny", "--source", str(source), "--out", address]
    assert main(argv) == 0
    uploads = [line.partition("kbp/")[2].partition("?")[0] for line in s3.requests if "?uploads" in line]
    assert uploads[0] == "prepare.json" and uploads[-1] == "dataset.json"
    assert len([name for name in uploads if name.startswith("cases/")]) == 4
    s3.requests.clear()
    assert main(argv) == 0  # goes on, and has nothing to do
    assert not any("?uploads" in line and "prepare.json" not in line for line in s3.requests)
    assert len(PreparedDataset.open(address).records) == 4

    pretrain = [
        "pretrain",
        *TINY,
        "--data",
        address,
        "--runs",
        runs,
        "--optimiser.warmup-epochs",
        "0",
    ]
    pretrain += ["--training.epochs", "1", "--training.steps-per-epoch", "1", "--training.batch-size", "1"]
    assert main([*pretrain, "--dry-run"]) == 0
    s3.requests.clear()
    assert main(pretrain) == 0
    assert any("GET" in line and ".parquet" in line for line in s3.requests)
    (run,) = remote.working_folder(runs).glob("pretrain-kbp-*")
    uploaded = Storage(address_below(runs, run.name))
    assert {"config.yaml", "metrics.jsonl", "checkpoints/index.json"} <= uploaded.stamps().keys()
    assert uploaded.read("log.txt").decode().splitlines()[-1].endswith("update 1 of 1: the end")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("train/loss" in row for row in rows)

    assert (
        f"data: s3://bucket/shards/kbp?scheme=http&endpoint_override={s3.endpoint}\n"
        in (run / "config.yaml").read_text()
    )
    assert main(["evaluate", "--run", str(run), "--data", address]) == 1  # a message: no finetuned run
    shown = capsys.readouterr()
    node: Any = ray._private.worker._global_node
    session = Path(node.get_session_dir_path())
    job = build_job(parse("pretrain", pretrain[1:], RECIPES).config)
    known_to_ray = f"{job} {job.data}"  # its dashboard shows the text of what its workers are given
    assert str(run.parent) in known_to_ray and "bucket/shards/kbp" in known_to_ray
    for name in ("metrics.jsonl", "environment.json", "events.*", "ray/*"):
        assert list(run.glob(name)), name  # so there is something to look through
    assert len(list((session / "logs").rglob("*.*"))) > 5
    for secret in (s3.secret, quote(s3.secret, safe=""), "AKIAUSER"):
        assert secret not in shown.out + shown.err
        assert secret not in known_to_ray
        assert not holds(run, secret.encode())
        assert not holds(session / "logs", secret.encode())
    assert not holds(run.parent, s3.secret.encode())

    shutil.rmtree(run)
    assert main(pretrain) == 0  # finished: it is fetched, and has nothing to do
    assert last_step(run) == 1 and find_weights(address_below(runs, run.name)).is_relative_to(run)
