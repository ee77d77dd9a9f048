"""Where the workers of a training listen: two processes join without Ray, and the kernel tells."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anatomask.training.process_group import INTERFACES, interface_of
from tests.sockets import LOOPBACK

NAMESPACES = all(map(shutil.which, ("unshare", "nsenter", "ip")))
ROOT = Path(__file__).parents[2]
WORKER = """
import json, os, sys
import ray, torch, torch.distributed as dist
from anatomask.training.process_group import join_group
from tests.sockets import listening

rank, address, port, own = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
join_group(rank, "gloo", 2, address, port, 60, own)
total = torch.tensor([float(rank + 1)])
dist.all_reduce(total)
found = {number: sorted(where) for number, where in listening([os.getpid()]).items()}
dist.barrier()
dist.destroy_process_group()
print(json.dumps([total.item(), found]))
"""


def outward() -> str | None:
    """Address of this machine on a network, if it is on one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def joined(port: int, addresses: list[str], within: tuple[list[str], list[str]] = ([], [])) -> list[Any]:
    """What the two workers tell, whose nodes have these addresses: their sum, and where they listen."""
    environment = {name: value for name, value in os.environ.items() if name not in INTERFACES}
    workers = [
        subprocess.Popen(
            [*within[rank], sys.executable, "-c", WORKER, str(rank), addresses[0], str(port), own],
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, own in enumerate(addresses)
    ]
    return [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are looked up in Linux's /proc")
@pytest.mark.parametrize("address", ["127.0.0.1", pytest.param(outward(), marks=pytest.mark.slow)])
def test_workers_listen_on_the_address_of_their_node_alone(address: str | None) -> None:
    if address is None:
        pytest.skip("this machine is on no network")
    with socket.create_server((address, 0)) as free:
        port = free.getsockname()[1]
    told = joined(port, [address] * 2)
    for total, found in told:
        assert total == 3
        assert found and {where for places in found.values() for where in places} == {address}
    assert str(port) in told[0][1]  # where rank 0 is found


@pytest.fixture
def two_nodes() -> Iterator[tuple[list[str], list[str]]]:
    """Beginnings of commands in two network namespaces, 10.9.9.1 and 10.9.9.2, which share another network too."""
    if not NAMESPACES or os.geteuid() != 0:
        pytest.skip("network namespaces need root, unshare, nsenter and ip")
    nodes = [subprocess.Popen(["unshare", "--net", "sleep", "240"]) for _ in range(2)]
    within = [["nsenter", "-t", str(node.pid), "-n"] for node in nodes]
    here = Path("/proc/self/ns/net").readlink()
    while any(Path(f"/proc/{node.pid}/ns/net").readlink() == here for node in nodes):
        time.sleep(0.05)
    try:
        for net in (8, 9):
            ends = f"link add a{net} type veth peer name b{net} netns {nodes[1].pid}"
            subprocess.run([*within[0], "ip", *ends.split()], check=True)
            for number, side in enumerate("ab"):
                for change in (
                    f"addr add 10.9.{net}.{number + 1}/24 dev {side}{net}",
                    f"link set {side}{net} up",
                    "link set lo up",
                ):
                    subprocess.run([*within[number], "ip", *change.split()], check=True)
        yield within[0], within[1]
    finally:
        for node in nodes:
            node.kill()
            node.wait()


@pytest.mark.slow
def test_workers_of_two_nodes_listen_on_the_network_of_their_nodes_addresses(
    two_nodes: tuple[list[str], list[str]],
) -> None:
    addresses = ["10.9.9.1", "10.9.9.2"]
    for (total, found), own in zip(joined(29400, addresses, two_nodes), addresses, strict=True):
        assert total == 3
        assert found and {where for places in found.values() for where in places} == {own}


def test_an_interface_is_known_by_its_address() -> None:
    names = {name for _, name in socket.if_nameindex()}
    assert interface_of(LOOPBACK[0]) in names
    assert interface_of("203.0.113.7") is None
