"""Where an embedded Ray can be reached: by asking the kernel which sockets its processes listen on."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import ray
from ray._private import ray_constants

from anatomask.cluster import ClusterConfig, on_loopback, running
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
    assert int(ray._private.worker._global_node.webui_url.rpartition(":")[2]) in found  # the dashboard
    assert int(ray.get_runtime_context().gcs_address.rpartition(":")[2]) in found
    assert {port: at for port, at in found.items() if not at <= set(LOOPBACK)} == {}
    assert 10001 not in found  # no server for Ray's clients
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}  # by which the driver goes too


@pytest.mark.ray
def test_the_dashboard_asks_for_a_token(ray_session: None) -> None:
    with pytest.raises(HTTPError, match="401"):
        urlopen(f"http://{ray._private.worker._global_node.webui_url}/api/jobs/")


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
