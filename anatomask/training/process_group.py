"""Process group of a training's workers: it listens on the address alone by which Ray knows the node."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train._internal.utils import get_address_and_port
from ray.train.torch.config import TorchConfig, _set_torch_distributed_env_vars, _TorchBackend

INTERFACES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}
"""Environment variables that tell the backends their network interface, and how: = keeps NCCL from those whose names
only begin so. What the user has set stays."""


class ProcessGroupConfig(TorchConfig):
    """Settings of the workers' process group. A single worker needs none, so it opens no port, as Ray's own would."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Class that starts the workers' process group."""
        return _TorchProcessGroup


class _TorchProcessGroup(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        count = len(worker_group)
        if count == 1:
            return
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_set_torch_distributed_env_vars)
        group = (backend_config.backend, count, address, port, backend_config.timeout_s)
        ray.get([worker_group.execute_single_async(rank, join_group_here, rank, *group) for rank in range(count)])


def join_group_here(rank: int, backend: str, count: int, address: str, port: int, seconds: float) -> None:
    """Join the process group from a Ray worker; as `join_group`."""
    join_group(rank, backend, count, address, port, seconds, ray.util.get_node_ip_address())


def join_group(rank: int, backend: str, count: int, address: str, port: int, seconds: float, own: str) -> None:
    """Join the default process group, over the interface alone that has this node's address.

    PyTorch's own rendezvous (`init_method`) listens on all interfaces. Where no interface has the address, as behind a
    translation of addresses, so does this.

    Args:
        rank: rank of this worker. 0 listens for the others.
        backend: backend of the group, gloo or nccl.
        count: number of workers.
        address: address of rank 0.
        port: free port of rank 0.
        seconds: limit of each operation.
        own: address of this worker's node.
    """
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}  # as all that start PyTorch's workers do
    interface = interface_of(own)
    if interface:
        for variable, form in INTERFACES.items():
            os.environ.setdefault(variable, form.format(interface))
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # as Ray Train does: a lost worker ends the others
    listener = None
    if rank == 0 and interface:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, backlog=count).detach()  # the store closes it
    limit = timedelta(seconds=seconds)
    store = dist.TCPStore(address, port, count, rank == 0, limit, master_listen_fd=listener)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=limit)


def interface_of(address: str) -> str | None:
    """Return the name of the network interface that has this address; None: none has it."""
    import psutil  # Ray brings it, and finds it only once Ray is imported

    for name, addresses in psutil.net_if_addrs().items():
        if address in {one.address.partition("%")[0] for one in addresses}:
            return str(name)
    return None
