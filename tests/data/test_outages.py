"""Outages of remote storage: a network that fails for a while before a real S3 protocol server, or for too long."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from anatomask.data.outages import LONGEST_WAIT, is_outage, outlast, waits
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from tests.outages import Network

BYTES = bytes(range(256)) * 12_000


@pytest.fixture
def network(s3: Any) -> Iterator[Network]:
    network = Network(s3.endpoint)
    yield network
    network.cut()


@pytest.fixture
def storage(s3: Any, network: Network) -> Storage:
    """One that has answered, with a file in it."""
    Storage(s3.address("folder")).write("a/x", BYTES)
    storage = Storage(replace(s3, endpoint=network.endpoint).address("folder"))
    assert storage.sizes("a") == {"x": len(BYTES)}
    return pickle.loads(pickle.dumps(storage))  # as another process gets it


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_an_outage_is_waited_for_and_told(storage: Storage, network: Network, caplog: Any, s3: Any) -> None:
    acts: dict[str, Callable[[], Any]] = {
        "a/x": lambda: [bytes(part) for part in storage.read_ranges("a/x", [(300, 5), (1_000_000, 7)])],
        "a": lambda: storage.sizes("a"),
        "b/y": lambda: storage.write("b/y", BYTES[::-1]),
        "a/z": lambda: storage.exists("a/z"),
        "c": lambda: storage.clear("c"),
    }
    network.cut()
    network.mend_later(4)
    with ThreadPoolExecutor() as pool:
        results = [future.result() for future in [pool.submit(act) for act in acts.values()]]
    assert results == [[BYTES[300:305], BYTES[1_000_000:1_000_007]], {"x": len(BYTES)}, None, False, None]
    assert Storage(s3.address("folder")).read("b/y") == BYTES[::-1]
    for path in acts:
        about = f"s3://bucket/folder/{path}: storage "
        stopped, again = [line for line in messages(caplog) if line.startswith(about)]
        assert stopped.startswith(f"{about}does not answer (") and stopped.endswith("; trying for 15 min")
        assert again.startswith(f"{about}answers again after ")
    assert "hush" not in caplog.text and "AKIA" not in caplog.text


def test_a_file_whose_reading_is_cut_is_read_whole(storage: Storage, network: Network, caplog: Any) -> None:
    network.cut_after(len(BYTES) // 2)
    network.mend_later(4)
    assert storage.read("a/x") == BYTES
    assert len(messages(caplog)) == 2


def test_an_outage_that_is_too_long_is_a_message(storage: Storage, network: Network, caplog: Any) -> None:
    storage.max_outage = 0.05
    network.cut()
    with pytest.raises(UserError, match=r"^s3://bucket/folder/a/x: no answer for 0.05 min; .* the same command"):
        storage.read("a/x")
    assert len(messages(caplog)) == 1
    network.mend()


def test_a_fault_that_stays_is_not_waited_for(storage: Storage, s3: Any, network: Network, caplog: Any) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("a/nowhere")
    elsewhere = Storage(replace(s3, endpoint=network.endpoint).address("folder", "nobucket"), answered=True)
    with pytest.raises(UserError, match=r"s3://nobucket/folder/a/x: When initiating.*NO_SUCH_BUCKET"):
        elsewhere.write("a/x", b"1")
    assert messages(caplog) == []


def test_what_came_before_an_outage_does_not_count() -> None:
    """A large file may have been on its way for longer than an outage may last."""
    failures = iter([True, False])

    def act() -> str:
        time.sleep(0.3)
        if next(failures):
            raise OSError("AWS Error SLOW_DOWN during UploadPart operation")
        return "done"

    assert outlast(act, "s3://bucket/large", minutes=0.2 / 60) == "done"


def test_storage_that_never_answered_is_not_waited_for(s3: Any, network: Network, caplog: Any) -> None:
    """Its address may be wrong."""
    storage = Storage(replace(s3, endpoint=network.endpoint).address("folder"))
    network.cut()
    with pytest.raises(UserError, match=r"folder/a/x: When reading .*NETWORK_CONNECTION.*Check the address"):
        storage.read("a/x")
    assert messages(caplog) == []
    network.mend()


@pytest.mark.parametrize(
    ("text", "outage"),
    [
        (
            "When reading x: AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect",
            True,
        ),
        ("When reading x: AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", True),
        ("When reading x: AWS Error SLOW_DOWN during GetObject operation: reduce your rate", True),
        ("When reading x: AWS Error ACCESS_DENIED during HeadObject operation: No response body.", False),
        ("When reading x: AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", False),
        ("When writing x: AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation", False),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of PerformWork()", True),
        ("google::cloud::Status(PERMISSION_DENIED: Permanent error, with a last message of Received HTTP 403", False),
        ("failed. Azure Error: [] Fail to get a new connection for: http://127.0.0.1:1. Could not connect", True),
        ("failed. Azure Error: [ServerBusy] 503 The server is busy.", True),
        ("failed. Azure Error: [] 403 Forbidden", False),
        ("No space left on device", False),
    ],
)
def test_outages_are_told_from_faults_that_stay(text: str, outage: bool) -> None:
    """By what pyarrow 26 said of servers that refused, and answered 503 and 403."""
    assert is_outage(OSError(text)) == outage
    assert not is_outage(PermissionError(text)) and not is_outage(FileNotFoundError(text))


def test_waits_grow_and_are_the_same_again() -> None:
    first = list(islice(waits("s3://bucket/a"), 20))
    assert first == list(islice(waits("s3://bucket/a"), 20)) != list(islice(waits("s3://bucket/b"), 20))
    assert 0 < first[0] < 1 and max(first) <= LONGEST_WAIT and min(first[10:]) >= LONGEST_WAIT / 2
