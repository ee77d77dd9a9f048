"""Runs on object storage: a real S3 protocol server on loopback, and a network before it that fails."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.runs.belongings import claim_folder, remove_run
from anatomask.runs.checkpoint_index import last_step
from anatomask.runs.remote import RunCopy, is_of_checkpoints, local_folder, run_copy, working_folder
from anatomask.weights.files import find_weights, run_name
from tests.outages import Network

LOG = "2026-01-01 00:00:0"


def checkpoint(folder: Path, step: int, best: int | None = None) -> None:
    """Write the checkpoint of an update in place of the earlier ones, as a training does."""
    name = f"step_{step:08d}"
    path = folder / "checkpoints" / name
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(f"weights after {step}".encode())
    (path / "optimiser.safetensors").write_bytes(f"moments after {step}".encode())
    index = {"last": name, "step": step, **({} if best is None else {"best": f"step_{best:08d}", "best_score": 0.5})}
    (folder / "checkpoints" / "index.json").write_text(json.dumps(index))
    for other in (folder / "checkpoints").glob("step_*"):
        if other.name not in index.values():
            shutil.rmtree(other)


def begun(folder: Path) -> Path:
    """A run with a checkpoint, and files that are not copied."""
    claim_folder(folder)
    checkpoint(folder, 4)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "log.txt").write_text(f"{LOG}0 begins\n")
    (folder / "metrics.jsonl").write_text('{"step": 4}\n')
    (folder / "pictures").mkdir()
    (folder / "pictures" / "mask.png").write_bytes(b"")
    (folder / "ray").mkdir()
    (folder / "ray" / "state").write_text("Ray's own")
    (folder / "stop").touch()
    (folder / ".log.txt.17").touch()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a run, by path, without those that stay where they are."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in files.items() if path[0] != "." and path not in ("stop", "ray/state")}


def requests(s3: Any, kind: str, query: str = "") -> list[str]:
    """Paths below the run of the requests of a kind to the server so far."""
    lines = [line for line in s3.requests if f"{kind} /bucket/runs/x/" in line and query in line]
    return [line.partition("/runs/x/")[2].partition("?")[0].partition(" ")[0] for line in lines]


@pytest.fixture
def copies(s3: Any, tmp_path: Path) -> Callable[[str], RunCopy]:
    """The run at one address, as each machine works on it."""
    return lambda machine: RunCopy(tmp_path / machine / "x", Storage(s3.address("runs/x")))


def test_an_empty_folder_gets_what_was_uploaded_and_later_what_has_changed(copies: Any, s3: Any) -> None:
    first, second = copies("first"), copies("second")
    begun(first.folder)
    first.upload()
    second.fetch()
    assert contents(second.folder) == contents(first.folder)
    assert not (second.folder / "ray").exists() and not (second.folder / "stop").exists()

    s3.requests.clear()
    first.upload()
    first.fetch()
    assert not requests(s3, "PUT") and not requests(s3, "POST")
    assert set(requests(s3, "GET")) == {"checkpoints/index.json"}
    checkpoint(first.folder, 8, best=8)
    (first.folder / "pictures" / "mask.png").unlink()
    s3.requests.clear()
    first.upload()
    assert set(requests(s3, "POST", "?uploads")) == {
        f"checkpoints/{name}"
        for name in ("index.json", "step_00000008/model.safetensors", "step_00000008/optimiser.safetensors")
    }
    second.fetch()
    assert contents(second.folder) == contents(first.folder)
    assert not any("step_00000004" in path for path in Storage(s3.address("runs/x")).stamps())


@pytest.mark.parametrize("allowed", range(7))
def test_wherever_an_upload_is_cut_off_the_index_names_a_whole_checkpoint(
    allowed: int, copies: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each number of requests that change something."""
    first = copies("first")
    begun(first.folder)
    first.upload()
    checkpoint(first.folder, 8)
    for name in ("metrics.jsonl", "log.txt"):
        with (first.folder / name).open("a") as file:
            file.write(f"{LOG}1 more\n")
    left = iter(range(allowed))

    def counted(act: Callable[..., None]) -> Callable[..., None]:
        def limited(*arguments: Any) -> None:
            if next(left, None) is None:
                raise UserError("cut off")
            act(*arguments)

        return limited

    monkeypatch.setattr("anatomask.runs.remote.AT_ONCE", 1)
    for name in ("write", "clear"):
        monkeypatch.setattr(first.storage, name, counted(getattr(first.storage, name)))
    if allowed < 6:  # two files of the checkpoint, two that have grown, the index, the earlier checkpoint
        with pytest.raises(UserError, match="cut off"):
            first.upload()
    else:
        first.upload()
    second = copies("second")
    second.fetch()
    found = contents(second.folder)
    step = json.loads(found["checkpoints/index.json"])["step"]
    assert step == (4 if allowed < 5 else 8)
    assert found[f"checkpoints/step_{step:08d}/model.safetensors"] == f"weights after {step}".encode()
    if step == 8:  # what was recorded before the checkpoint is there, too
        assert found["metrics.jsonl"] == (first.folder / "metrics.jsonl").read_bytes()


def test_what_changed_there_wins_and_the_journal_keeps_the_lines_of_both(copies: Any) -> None:
    first, second = copies("first"), copies("second")
    begun(first.folder)
    first.upload()
    second.fetch()
    checkpoint(second.folder, 6)  # whose upload failed
    for copy, line in ((first, "1 first"), (second, "2 second")):
        with (copy.folder / "log.txt").open("a") as file:
            file.write(f"{LOG}{line}\n")
    second.fetch()
    assert json.loads((second.folder / "checkpoints" / "index.json").read_bytes())["step"] == 6
    second.fetch(is_of_checkpoints, exact=True)  # as a worker that is not the first one
    assert json.loads((second.folder / "checkpoints" / "index.json").read_bytes())["step"] == 4
    checkpoint(first.folder, 8)
    first.upload()
    second.fetch()
    lines = [f"{LOG}{line}" for line in ("0 begins", "1 first", "2 second")]
    assert (second.folder / "log.txt").read_text().splitlines() == lines
    second.upload()
    first.fetch()
    assert (first.folder / "log.txt").read_text().splitlines() == lines
    assert find_weights(first.folder).name == find_weights(second.folder).name == "step_00000008"


def test_a_run_that_began_anew_elsewhere_is_not_gone_on_with_from_a_checkpoint_of_before(copies: Any) -> None:
    first, second = copies("first"), copies("second")
    begun(first.folder)
    first.upload()
    second.fetch()
    checkpoint(second.folder, 6)
    remove_run(first.folder)
    (first.folder / "config.yaml").write_text("seed: 10\n")  # of another size: storage tells times to the second
    first.upload()
    second.fetch()
    assert set(contents(first.folder)) == {"anatomask-run.txt", "config.yaml"}
    assert contents(first.folder).items() <= contents(second.folder).items()
    assert last_step(second.folder) == 0


def test_nothing_is_fetched_into_the_folder_of_a_training(copies: Any) -> None:
    first = copies("first")
    begun(first.folder)
    first.upload()
    first.storage.write("metrics.jsonl", b"stale\n")
    with first.training():
        first.fetch()
        assert (first.folder / "metrics.jsonl").read_text() == '{"step": 4}\n'
    first.fetch()
    assert (first.folder / "metrics.jsonl").read_text() == "stale\n"


def test_where_the_copy_was_deleted_it_is_uploaded_anew(copies: Any) -> None:
    first = copies("first")
    before = contents(begun(first.folder))
    first.upload()
    first.storage.filesystem.delete_dir_contents("bucket/runs")
    first.fetch()
    assert contents(first.folder) == before
    first.upload()
    second = copies("second")
    second.fetch()
    assert contents(second.folder) == before


def test_an_outage_in_the_middle_of_an_upload_is_waited_for(copies: Any, s3: Any, tmp_path: Path) -> None:
    network = Network(s3.endpoint)
    copy = RunCopy(tmp_path / "first" / "x", Storage(replace(s3, endpoint=network.endpoint).address("runs/x")))
    begun(copy.folder)
    with copy.kept(), ThreadPoolExecutor(1) as pool:
        (copy.folder / "large.bin").write_bytes(bytes(40_000_000))
        uploading = pool.submit(copy.upload)
        while not any("large.bin?partNumber" in line for line in s3.requests):
            assert not uploading.done(), uploading.exception()
            time.sleep(0.01)
        network.cut()
        network.mend_later(2)
        uploading.result()
    second = copies("second")
    second.fetch()
    assert contents(second.folder) == contents(copy.folder)
    network.cut()


def test_after_an_outage_that_is_too_long_the_same_command_uploads_what_is_missing(
    copies: Any, s3: Any, tmp_path: Path
) -> None:
    network = Network(s3.endpoint)
    address = replace(s3, endpoint=network.endpoint).address("runs/x")
    copy, second = RunCopy(tmp_path / "first" / "x", Storage(address, max_outage=0.05)), copies("second")
    begun(copy.folder)
    copy.upload()
    checkpoint(copy.folder, 8)
    network.cut()
    with pytest.raises(
        UserError, match=r"not complete, and the same command uploads .*no answer for 0\.05 min"
    ) as told:
        copy.complete()
    assert "hush" not in str(told.value)
    network.mend()
    with copy.kept():
        assert last_step(copy.folder) == 8
    second.fetch()
    assert contents(second.folder) == contents(copy.folder)
    network.cut()


def test_wrong_addresses_are_refused_before_anything_is_done(s3: Any, tmp_path: Path) -> None:
    Storage(s3.address("data")).write("scan.nii.gz", b"somebody's")
    unreachable = s3.address("runs/x").replace(s3.endpoint, "127.0.0.1:1")
    for address, message in (
        (s3.address("runs/x", "nowhere"), r"s3://nowhere/runs/x/anatomask-run\.txt: .*Check the address"),
        (unreachable, r"s3://bucket/runs/x: .*Check the address"),
        (s3.address("data"), r"s3://bucket/data\S* holds files and is not a run's folder"),
    ):
        copy = RunCopy(tmp_path / "x", Storage(address))
        with pytest.raises(UserError, match=message) as caught, copy.kept():
            pytest.fail("it begins")
        assert "hush" not in str(caught.value) and "AKIA" not in str(caught.value)
    assert not (tmp_path / "x" / "scan.nii.gz").exists()


def test_an_address_stands_for_a_run_wherever_one_is_read(
    copies: Any, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    first, address = copies("first"), s3.address("runs/x")
    begun(first.folder)
    first.upload()
    found = find_weights(address)
    assert (found / "model.safetensors").read_bytes() == b"weights after 4"
    assert found.is_relative_to(tmp_path / "home" / ".cache" / "anatomask" / "runs")
    assert found == find_weights(address.replace("AKIAUSER", "AKIAOTHER"))
    other = address.replace(s3.endpoint, "10.0.0.5:9000")
    assert working_folder(other) != working_folder(address) == run_copy(address).folder
    assert run_name(address) == local_folder(address).name == "x"
    assert working_folder("runs/x") == Path("runs/x")
    with pytest.raises(UserError, match=r"^s3://bucket/runs/y\?\S+: there is no run"):
        find_weights(s3.address("runs/y"))
    with pytest.raises(UserError, match="begins with a dot"):
        working_folder("s3://bucket/../x")
