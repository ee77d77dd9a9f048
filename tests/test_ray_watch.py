"""A Ray that does not answer, and one that dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from anatomask import ray_watch, ray_witness
from anatomask.cluster import on_loopback, running
from anatomask.cluster_settings import ClusterConfig
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.ray_watch import RayGone, connected, probe
from anatomask.training.journal import JOURNAL
from tests.sockets import descendants


def silent(connection: socket.socket) -> None:
    """Say nothing."""


def web(connection: socket.socket) -> None:
    """Answer as a web server that knows no gRPC."""
    with suppress(OSError), connection:
        connection.recv(1024)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[int]:
    """Port of a server on all interfaces that treats its connections as the parameter says."""
    connections = []
    with socket.create_server(("", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connections.append(listener.accept()[0])
                    request.param(connections[-1])

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("server", [silent, web], indirect=True)
def test_a_server_that_is_no_ray_is_refused(server: int, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_watch, "PROBE_SECONDS", 1.0)
    address = f"{scheme}127.0.0.1:{server}"
    with pytest.raises(UserError, match=rf"^--cluster.address {address}: no Ray cluster answers there$"):
        probe(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no.such.host:6379", "127.0.0.1:99999", "auto"]
)
def test_a_dead_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Ray is started, and whatever `auto` finds."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1" if address == "auto" else "")
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("it would try for ever"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(UserError, match=f"--cluster.address {address}: no Ray cluster"),
        running(ClusterConfig(address)),
    ):
        pass


@pytest.mark.ray
def test_a_ray_that_is_there_is_not_refused(ray_session: None) -> None:
    with on_loopback():  # where it is
        probe(ray.get_runtime_context().gcs_address)


class Node:
    """What is watched of Ray: a socket that closes, and processes that die."""

    def __init__(self, folder: Path) -> None:
        self.raylet_socket_name = str(folder / "s")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.raylet_socket_name)
        self._listener.listen()
        self.dead: list[tuple[str, object]] = []
        self.initialized = True

    def accept(self) -> socket.socket:
        return self._listener.accept()[0]

    def die(self) -> None:
        """Close the socket, to all."""
        self._listener.settimeout(0.2)
        with suppress(TimeoutError):
            while True:
                self.accept().close()

    def dead_processes(self) -> list[tuple[str, object]]:
        return self.dead


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Of a Ray that seems to have been started here."""
    node = Node(tmp_path)
    known = SimpleNamespace(worker=SimpleNamespace(_global_node=node))
    fake = SimpleNamespace(_private=known, shutdown=lambda: None, is_initialized=lambda: node.initialized)
    monkeypatch.setattr(ray_watch, "ray", fake)
    monkeypatch.setattr(ray_watch, "_ray_silent", nullcontext)
    return node


def control_service_dies(node: Node) -> None:
    node.dead = [("log_monitor", None), ("gcs_server", None)]


@pytest.mark.parametrize(("die", "name"), [(Node.die, "raylet"), (control_service_dies, "gcs_server")])
def test_the_work_ends_with_one_message_when_ray_dies(node: Node, die: Callable[[Node], None], name: str) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(RayGone, match=rf"\({name}\) on this machine has ended.*the same command goes on$"), connected():
        die(node)
        threading.Event().wait(60)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_ray_that_is_shut_down_has_not_died(node: Node) -> None:
    with connected():
        node.initialized = False
        node.die()
        time.sleep(1)


def witnessed(node: Node) -> subprocess.Popen[bytes]:
    """Start the process that stands beside one that uses a node's Ray."""
    command = [sys.executable, "-I", "-S", ray_witness.__file__, node.raylet_socket_name, "message"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_witness_speaks_for_a_process_that_ray_has_ended(node: Node) -> None:
    witness = witnessed(node)
    node.die()
    time.sleep(0.2)
    assert witness.communicate()[1] == b"message\n"


def test_the_witness_speaks_where_the_scheduler_was_dead_before_it_came(tmp_path: Path, node: Node) -> None:
    (tmp_path / "s").unlink()
    assert witnessed(node).communicate()[1] == b"message\n"


def test_the_witness_is_silent_where_the_process_was_killed(node: Node) -> None:
    """Ray follows it then."""
    witness = witnessed(node)
    connection = node.accept()
    assert witness.stdin is not None and witness.stderr is not None
    witness.stdin.close()
    witness.wait()
    connection.close()
    assert witness.stderr.read() == b""


def test_the_witness_is_silent_where_the_process_has_ended_itself(node: Node) -> None:
    witness = witnessed(node)
    node.die()
    assert witness.communicate(ray_witness.OVER)[1] == b""


def test_no_witness_stays(node: Node, capfd: pytest.CaptureFixture[str]) -> None:
    def witnesses() -> set[int]:
        return {pid for pid in descendants(os.getpid()) if "ray_witness" in Path(f"/proc/{pid}/cmdline").read_text()}

    before = witnesses()  # that of a Ray which other tests share
    with connected():
        assert len(witnesses() - before) == 1
    with pytest.raises(RayGone), connected():
        node.die()
        threading.Event().wait(60)
    assert witnesses() == before
    assert "has ended" not in capfd.readouterr().err, "whoever catches RayGone says it"


def test_what_else_happens_is_let_through(node: Node) -> None:
    """The death of a log monitor is none of Ray; other errors are themselves."""
    node.dead = [("log_monitor", None)]
    with pytest.raises(ZeroDivisionError), connected():
        time.sleep(1)
        raise ZeroDivisionError


PRETRAIN = [
    *["pretrain", "--recipe", "tiny", "--loader.patch-size", "32", "32", "32", "--network.base", "4"],
    *[
        "--method.decoder-width",
        "16",
        "--training.epochs",
        "2",
        "--training.steps-per-epoch",
        "10",
        "--splits",
        "train",
    ],
    *[
        "--optimiser.warmup-epochs",
        "0",
        "--training.checkpoint-every",
        "2",
        "--training.log-every",
        "1",
        "--name",
        "run",
    ],
]


def program(pid: int) -> str:
    """What a process runs; nothing where it has ended."""
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return ""


USES_PLASMA = """
import sys
import numpy as np, ray
from anatomask.cluster import running
from anatomask.cluster_settings import ClusterConfig
from anatomask.errors import UserError
try:
    with running(ClusterConfig()):
        print("uses it", flush=True)
        while True:
            ray.get(ray.put(np.zeros(1 << 20)))
except UserError as error:
    sys.exit(f"anatomask: {error}")
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.137, 0.171])
def test_a_raylet_that_is_killed_while_the_object_store_is_used_is_one_message(seconds: float) -> None:
    """Ray's C++ code ends the process then, without a word of its own."""
    command = [sys.executable, "-c", USES_PLASMA]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as user:
        try:
            assert user.stdout is not None and user.stdout.readline() == "uses it\n"
            (raylet,) = [pid for pid in descendants(user.pid) if program(pid).endswith("raylet/raylet")]
            time.sleep(seconds)
            os.kill(raylet, signal.SIGKILL)
            err = user.communicate(timeout=60)[1]
        finally:
            user.kill()
    assert user.returncode == 1
    (message,) = [line for line in err.splitlines() if line.startswith("anatomask: ")]
    assert "on this machine has ended" in message
    assert "Traceback" not in err


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("process", ["raylet/raylet", "gcs/gcs_server"])
def test_a_training_whose_ray_is_killed_says_so_and_goes_on(
    process: str, prepared: Callable[..., PreparedDataset], tmp_path: Path
) -> None:
    data = prepared(np.random.default_rng(0).integers(-900, 900, (40, 36, 40)).astype(np.int16))
    run = tmp_path / "runs" / "run"
    command = [sys.executable, "-m", "anatomask", *PRETRAIN, "--data", data.path, "--runs", str(run.parent)]
    with (tmp_path / "out").open("w") as out_file, (tmp_path / "err").open("w") as err_file:
        training = subprocess.Popen(command, stdout=out_file, stderr=err_file)
        try:
            while not (run / "checkpoints" / "index.json").exists():
                assert training.poll() is None, (tmp_path / "err").read_text()
                time.sleep(0.05)
            (victim,) = [pid for pid in descendants(training.pid) if program(pid).endswith(process)]
            os.kill(victim, signal.SIGKILL)
            training.wait(200)
        finally:
            training.kill()
    out, err = (tmp_path / "out").read_text(), (tmp_path / "err").read_text()
    assert training.returncode == 1
    assert out == ""
    (message,) = [line for line in err.splitlines() if "Ray" in line]
    assert "on this machine has ended" in message and message.endswith("the same command goes on")
    assert "Traceback" not in err and "(raylet)" not in err.replace("scheduler (raylet)", "")
    assert "stopped: Ray's" in (run / JOURNAL).read_text()
    assert subprocess.run(command).returncode == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 21))
