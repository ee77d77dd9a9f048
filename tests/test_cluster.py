"""Where an embedded Ray can be reached: by asking the kernel which sockets its processes listen on."""

from __future__ import annotations

import os
import platform
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import ray
from ray._private import ray_constants
from ray._private.utils import check_version_info
from ray.exceptions import AuthenticationError

from anatomask.cluster import LONGEST_SOCKET, SOCKET_BYTES, on_loopback, private_folder, running, tell_threads
from anatomask.cluster_settings import ClusterConfig
from anatomask.errors import Stopped, UserError
from tests.sockets import LOOPBACK, descendants, listening


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are looked up in Linux's /proc")
def test_listening_sockets_are_found() -> None:
    with socket.create_server(("0.0.0.0", 0)) as everywhere, socket.create_server(("127.0.0.1", 0)) as here:
        found = listening([os.getpid()])
        assert found[everywhere.getsockname()[1]] == {"0.0.0.0"}
        assert found[here.getsockname()[1]] == {"127.0.0.1"}


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are looked up in Linux's /proc")
def test_an_embedded_ray_listens_on_loopback_alone(ray_session: None) -> None:
    assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()  # a worker is up
    found = listening(descendants(os.getpid()))
    node: Any = ray._private.worker._global_node
    assert int(node.webui_url.rpartition(":")[2]) in found  # the dashboard
    assert int(ray.get_runtime_context().gcs_address.rpartition(":")[2]) in found
    assert {port: at for port, at in found.items() if not at <= set(LOOPBACK)} == {}
    assert 10001 not in found  # no server for Ray's clients
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}  # by which the driver goes too


@pytest.mark.ray
def test_the_dashboard_asks_for_a_token(ray_session: None) -> None:
    node: Any = ray._private.worker._global_node
    with pytest.raises(HTTPError, match="401"):
        urlopen(f"http://{node.webui_url}/api/jobs/")


@pytest.mark.parametrize("inherited", [None, "1"])
def test_what_ray_is_told_holds_for_its_start_alone(monkeypatch: pytest.MonkeyPatch, inherited: str | None) -> None:
    variable, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    monkeypatch.delenv(variable, raising=False)
    if inherited is not None:
        monkeypatch.setenv(variable, inherited)
    with pytest.raises(ZeroDivisionError), on_loopback():
        assert os.environ[variable] == "0"
        raise ZeroDivisionError
    assert (os.environ.get(variable), ray_constants.ENABLE_RAY_CLUSTER) == (inherited, before)


@pytest.mark.ray
def test_a_ray_that_runs_is_left_running(ray_session: None) -> None:
    with running(ClusterConfig()):
        pass
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("own", "threads", "address", "told"),
    [("1", None, "local", True), ("1", 2, "local", False), ("", None, "local", False), ("1", None, "auto", False)],
)
def test_threads_that_nobody_reads_are_told(
    own: str, threads: int | None, address: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", own)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tell_threads(ClusterConfig(threads=threads, address=address))
    assert [str(one.message) for one in caught] == [
        "OMP_NUM_THREADS=1 is not read: --cluster.threads sets the threads of a worker"
    ] * told


def refusing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> ClusterConfig:
    """A cluster that answers, and that `ray.init` then refuses."""

    def init(**options: Any) -> None:
        raise error

    monkeypatch.setattr("anatomask.cluster.probe", lambda address: None)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests of this process may have started it
    return ClusterConfig(address="10.0.0.1:6379")


@pytest.mark.parametrize("other", [{"python_version": "3.11.99"}, {"ray_version": "2.59.0"}])
def test_a_cluster_with_other_versions_is_refused(other: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another patch version of Python is one; the words are those of Ray's own check."""
    here = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    check_version_info(here, "this node")
    with pytest.raises(RuntimeError) as caught:
        check_version_info(here | other, "this node")
    config = refusing(caught.value, monkeypatch)
    with (
        pytest.raises(UserError, match=rf"^--cluster.address 10.0.0.1:6379: .*{next(iter(other.values()))}"),
        running(config),
    ):
        raise AssertionError("it was joined")


def test_what_else_ray_says_at_its_start_is_no_matter_of_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    config = refusing(RuntimeError("out of file descriptors"), monkeypatch)
    with pytest.raises(RuntimeError, match=r"^out of file descriptors$"), running(config):
        raise AssertionError("it was joined")


def test_a_cluster_whose_token_is_not_here_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    config = refusing(AuthenticationError("Token authentication is enabled but no token was found."), monkeypatch)
    said = r"^--cluster.address 10.0.0.1:6379: the cluster asks for its token; copy it from the head's ~/.ray/auth_t"
    with pytest.raises(UserError, match=said), running(config):
        raise AssertionError("it was joined")


def test_a_start_that_fails_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a user, or the kernel, kills the raylet while Ray starts (found by a kill in `make test-slow`)."""
    config = refusing(Exception("The current node timed out during startup."), monkeypatch)
    said = r"^Ray did not start: The current .* goes on where it stopped\.$"
    with pytest.raises(UserError, match=said), running(config):
        raise AssertionError("it started")


def test_sigterm_while_ray_starts_stops_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's handler, set while it starts, exits with the signal's number (found by a kill of `make test-kills`)."""
    config = refusing(SystemExit(signal.SIGTERM), monkeypatch)
    with pytest.raises(Stopped) as caught, running(config):
        raise AssertionError("it started")
    assert caught.value.exit_code == 143
    config = refusing(SystemExit(3), monkeypatch)
    with pytest.raises(SystemExit, match="3"), running(config):
        raise AssertionError("it started")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for sockets."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        yield Path(folder)


def test_a_temporary_folder_is_made_for_its_owner_alone(short_folder: Path) -> None:
    assert private_folder(short_folder / "a" / "b") == short_folder / "a" / "b" / "ray"
    assert stat.S_IMODE((short_folder / "a" / "b").stat().st_mode) == 0o700
    private_folder(short_folder / "a" / "b")


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o710])
def test_a_temporary_folder_that_others_may_enter_is_refused_and_left_as_it_is(mode: int, short_folder: Path) -> None:
    short_folder.chmod(mode)
    with pytest.raises(UserError, match=rf"{short_folder} is open to other accounts: .* chmod 700"):
        private_folder(short_folder)
    assert stat.S_IMODE(short_folder.stat().st_mode) == mode and list(short_folder.iterdir()) == []


@pytest.mark.parametrize("letter", ["x", "ä"])
def test_a_temporary_folder_is_as_long_as_its_sockets_let_it(letter: str, short_folder: Path) -> None:
    room = LONGEST_SOCKET - SOCKET_BYTES - len("/ray") - len(str(short_folder)) - len("/")
    fitting = letter * (room // len(letter.encode()))
    private_folder(short_folder / fitting)
    with pytest.raises(UserError, match=r"\d bytes too long: the sockets in it may have paths of 10[37] bytes"):
        private_folder(short_folder / (fitting + "x" * len(letter.encode())))
    with pytest.raises(ValueError, match="temporary_folder is of an embedded Ray"):
        ClusterConfig(address="auto", temporary_folder="x")


@pytest.mark.slow
@pytest.mark.ray
def test_ray_keeps_its_files_where_no_other_account_looks(short_folder: Path) -> None:
    script = (
        "import ray, sys\nfrom pathlib import Path\nfrom anatomask.cluster import ClusterConfig, running\n"
        "with running(ClusterConfig(temporary_folder=sys.argv[1])):\n"
        "    ray.get(ray.remote(lambda: 1).remote())\n"
        "    print(*(path for path in Path(sys.argv[1]).rglob('*') if path.is_socket()), sep='\\n')\n"
        "    print(ray._private.worker._global_node.get_session_dir_path())\n"
    )
    folder = short_folder / "tmp"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    *sockets, session = done.stdout.splitlines()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert Path(session).parent == folder / "ray"
    longest = max(len(path) for path in sockets)
    assert 0 < longest - len(str(folder / "ray")) <= SOCKET_BYTES
