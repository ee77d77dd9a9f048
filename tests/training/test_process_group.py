"""Where the workers of a training listen: two processes join without Ray, and the kernel tells."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from anatomask.training.process_group import INTERFACES, interface_of
from tests.sockets import LOOPBACK

ROOT = Path(__file__).parents[2]
WORKER = """
import json, os, sys
import ray, torch, torch.distributed as dist
from anatomask.training.process_group import join_group
from tests.sockets import listening

rank, count, address, port = int(sys.argv[1]), 2, sys.argv[2], int(sys.argv[3])
join_group(rank, "gloo", count, address, port, 60, address)
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


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are looked up in Linux's /proc")
@pytest.mark.parametrize("address", ["127.0.0.1", pytest.param(outward(), marks=pytest.mark.slow)])
def test_workers_listen_on_the_address_of_their_node_alone(address: str | None) -> None:
    if address is None:
        pytest.skip("this machine is on no network")
    with socket.create_server((address, 0)) as free:
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in INTERFACES}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), address, str(port)],
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    told = [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]
    for total, found in told:
        assert total == 3
        assert found and {where for places in found.values() for where in places} == {address}
    assert str(port) in told[0][1]  # where rank 0 is found


def test_an_interface_is_known_by_its_address() -> None:
    names = {name for _, name in socket.if_nameindex()}
    assert interface_of(LOOPBACK[0]) in names
    assert interface_of("203.0.113.7") is None
