"""A training whose run lies on object storage: a real S3 protocol server on loopback, and a network that fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.runs.belongings import claim_folder
from anatomask.runs.checkpoint_index import last_step
from anatomask.runs.remote import RunCopy
from anatomask.training import copies
from anatomask.training.copies import Uploads, driver_copy, worker_copy
from anatomask.training.job import TrainingJob
from anatomask.training.journal import JOURNAL
from anatomask.training.parallel import Workers
from anatomask.training.stopping import stop_file
from tests.outages import Network
from tests.training.conftest import LineTask, Points
from tests.training.test_loop import losses, run
from tests.training.witness import job

CPU = torch.device("cpu")


def begun(folder: Path, address: str, max_outage: float = 0.1) -> TrainingJob:
    """A job in a folder of its own, as on a machine of its own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    training = replace(job(folder, ""), storage=Storage(address, max_outage))
    claim_folder(folder)
    return training


def test_a_run_goes_on_exactly_on_another_machine(
    s3: Any, tmp_path: Path, line_task: type[LineTask], points: Points
) -> None:
    expected = run(tmp_path / "whole", line_task(), points)
    first, second = (begun(tmp_path / machine / "x", s3.address("runs/x")) for machine in ("first", "second"))
    with pytest.raises(StopIteration), worker_copy(first, Workers(), CPU) as written:
        run(first.run, line_task(), points, stop_after=12, written=written)
    assert last_step(second.run) == 0
    with worker_copy(second, Workers(), CPU) as written:
        assert last_step(second.run) == 7
        found = run(second.run, line_task(), points, written=written)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(second.run) == losses(tmp_path / "whole")

    driver = RunCopy(tmp_path / "driver" / "x", Storage(s3.address("runs/x")))
    driver.fetch()
    assert last_step(driver.folder) == 20
    assert losses(driver.folder) == losses(tmp_path / "whole")
    assert len(list(driver.folder.glob("events.*"))) == 2
    assert len(list((driver.folder / "checkpoints").glob("step_*"))) == len(
        list((second.run / "checkpoints").glob("step_*"))
    )


def outlived(s3: Any, tmp_path: Path, line_task: type[LineTask], points: Points, seconds: float) -> list[str]:
    """The journal of a training that goes on during an outage, which ends while its end waits for it."""
    network = Network(s3.endpoint)
    training = begun(tmp_path / "x", replace(s3, endpoint=network.endpoint).address("runs/x"), max_outage=2)

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for step, batch in enumerate(points(start), start=start + 1):
            if step == 12:
                network.cut()
                network.mend_later(seconds)
            yield batch

    began = time.monotonic()
    with worker_copy(training, Workers(), CPU) as written:
        run(training.run, line_task(), batches, written=written)
        assert time.monotonic() - began < seconds  # it did not wait
        assert last_step(training.run) == 20
    copy = RunCopy(tmp_path / "other" / "x", Storage(s3.address("runs/x")))
    copy.fetch()
    assert losses(copy.folder) == losses(training.run)
    assert last_step(copy.folder) == 20
    network.cut()
    return (training.run / JOURNAL).read_text().splitlines() if (training.run / JOURNAL).exists() else []


def test_an_outage_delays_the_copy_and_not_the_training(
    s3: Any, tmp_path: Path, line_task: type[LineTask], points: Points
) -> None:
    outlived(s3, tmp_path, line_task, points, 8)


@pytest.mark.slow
def test_half_a_minute_without_storage_costs_nothing(
    s3: Any, tmp_path: Path, line_task: type[LineTask], points: Points
) -> None:
    outlived(s3, tmp_path, line_task, points, 30)


def test_an_outage_that_is_too_long_is_noted_and_made_up_for_by_the_next_checkpoint(
    s3: Any, tmp_path: Path, line_task: type[LineTask], points: Points
) -> None:
    network = Network(s3.endpoint)
    training = begun(tmp_path / "x", replace(s3, endpoint=network.endpoint).address("runs/x"), max_outage=0.02)
    training.copy.upload()
    run(training.run, line_task(), points, until=7)
    uploads = Uploads(training.copy)
    network.cut()
    uploads.request()
    uploads.thread.submit(lambda: None).result()
    (noted,) = [line for line in (training.run / JOURNAL).read_text().splitlines() if "not copied" in line]
    assert "the next checkpoint tries again: s3://bucket/runs/x/" in noted and "hush" not in noted
    network.mend()
    run(training.run, line_task(), points, until=14)
    uploads.request()
    uploads.thread.shutdown()
    copy = RunCopy(tmp_path / "other" / "x", Storage(s3.address("runs/x")))
    copy.fetch()
    assert last_step(copy.folder) == 14 and "not copied" in (copy.folder / JOURNAL).read_text()
    network.cut()
    with pytest.raises(UserError, match="same command uploads what is missing"):
        (training.run / "config.yaml").write_text("later: 1\n")
        training.copy.complete()


def test_a_checkpoint_that_the_training_has_replaced_is_uploaded_whole(
    s3: Any, tmp_path: Path, line_task: type[LineTask], points: Points
) -> None:
    """What was opened stays readable, so a slow upload comes to its end."""
    training = begun(tmp_path / "x", s3.address("runs/x"))
    run(training.run, line_task(), points, until=7)
    opened = training.copy.files_of_checkpoints()
    expected = {path: (training.run / path).read_bytes() for path in opened}
    run(training.run, line_task(), points, until=14)
    assert not all((training.run / path).exists() for path in opened)
    training.copy.upload(opened)
    storage = Storage(s3.address("runs/x"))
    assert {path: storage.read(path) for path in opened} == expected


def test_a_request_to_stop_reaches_a_training_on_another_machine(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "POLL_SECONDS", 0.1)
    address = s3.address("runs/x")
    driver, worker = (begun(tmp_path / machine / "x", address) for machine in ("driver", "worker"))
    driver.copy.upload()
    Storage(address).write("stop", b"")  # of a call that was killed

    def wait_for(file: Path, *, there: bool) -> None:
        until = time.monotonic() + 60
        while file.exists() != there:
            assert time.monotonic() < until
            time.sleep(0.05)

    with driver_copy(driver):
        with worker_copy(worker, Workers(), CPU):
            time.sleep(1)
            assert not stop_file(worker.run).exists()
            (worker.run / "metrics.jsonl").write_text('{"step": 1}\n')
            worker.copy.upload()
            wait_for(driver.run / "metrics.jsonl", there=True)
            stop_file(driver.run).touch()
            wait_for(stop_file(worker.run), there=True)
            assert stop_file(driver.run).exists()
        wait_for(stop_file(driver.run), there=False)
    assert not Storage(address).exists("stop")
