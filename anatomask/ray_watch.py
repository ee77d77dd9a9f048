"""Detection of a Ray that does not answer or has died; Ray's own functions would wait minutes without a message."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import grpc
import ray
from ray._private.gcs_utils import create_gcs_channel
from ray._private.services import canonicalize_bootstrap_address
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from anatomask import ray_witness
from anatomask.errors import UserError

PROBE_SECONDS = 8.0
"""Seconds within which a cluster has to answer."""

POLL_SECONDS = 0.5
GRACE_SECONDS = 12.0
"""Seconds for the work and Ray to end once Ray has died; soon after, Ray would end this process silently."""

GONE = (
    "Ray's {process} on this machine has ended: it was killed, by hand or for want of memory, crashed, or lost the "
    "head of its cluster. What was finished is kept, trainings up to their last checkpoint; the same command goes on"
)


SCHEDULER = "scheduler (raylet)"


class RayGone(UserError):
    """Error that Ray's processes of this machine have died."""


def probe(address: str) -> None:
    """Check that a Ray cluster answers at an address (`auto`, `HOST:PORT`, `ray://HOST:PORT`).

    `ray.init` would wait for ever.

    Raises:
        UserError: no Ray answers within seconds.
    """
    client = address.startswith("ray://")
    # A cluster that asks for a token has answered, and so has the server for Ray's clients, which lacks this call.
    answers = {grpc.StatusCode.UNAUTHENTICATED} | ({grpc.StatusCode.UNIMPLEMENTED} if client else set())
    try:
        place = address.removeprefix("ray://") if client else canonicalize_bootstrap_address(address) or ""
        with create_gcs_channel(place) as channel:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=PROBE_SECONDS)
    except (OSError, ValueError, grpc.RpcError) as error:
        if isinstance(error, grpc.RpcError) and error.code() in answers:
            return
        where = "; name its address, or start one with ray start --head" if address == "auto" else ""
        raise UserError(f"--cluster.address {address}: no Ray cluster answers there{where}") from error


@contextmanager
def connected() -> Iterator[None]:
    """Yield with Ray started or joined; leave it at the end of the block, and end it if it was started here.

    Ray's death is noticed only if this is the main thread.

    Raises:
        RayGone: its scheduler or, where it was started here, its control service has died, whatever then became of
            the work.
    """
    node: Any = ray._private.worker._global_node
    if node is None or threading.current_thread() is not threading.main_thread():
        try:
            yield
        finally:
            ray.shutdown()
        return
    watch = Watch(node)
    try:
        try:
            yield
        finally:
            watch.stop()
    except BaseException:
        if name := watch.gone or watch.look(0):
            raise RayGone(GONE.format(process=name)) from None
        raise
    finally:
        try:
            ray.shutdown()
        finally:  # also where a signal interrupts that
            watch.end()


class _Interruption(KeyboardInterrupt):
    """Exception that ends the work of the main thread; Ray's functions pass no other on."""


class Watch:
    """Watch that interrupts the main thread when Ray's scheduler (raylet) or a GCS that was started here has died.

    The raylet's socket closes when it dies, whoever started it. Where Ray then ends this process before it can say so,
    a process beside it does (`ray_witness.py`).
    """

    def __init__(self, node: Any) -> None:
        self.gone = ""
        """Name of the process that has died; empty while all live."""
        self._node = node
        self._stopped, self._over = threading.Event(), threading.Event()
        self._raylet = socket.socket(socket.AF_UNIX)
        self._raylet.connect(node.raylet_socket_name)
        self._witness = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", ray_witness.__file__),
                *(node.raylet_socket_name, f"anatomask: {GONE.format(process=SCHEDULER)}"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C in a terminal is not for it
        )
        self._before = signal.signal(signal.SIGUSR1, self._interrupt)
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        signal.signal(signal.SIGUSR1, self._before)

    def end(self) -> None:
        """Note that the main thread has ended its work, so that the process need not be killed for hanging."""
        self._over.set()
        self._raylet.close()
        self._dismiss_witness()

    def look(self, seconds: float) -> str:
        """Wait for `seconds`, and name the process that has died; empty if all live or `ray.shutdown` ended them."""
        readable, _, _ = select.select([self._raylet], [], [], seconds)
        if not ray.is_initialized():
            return ""
        if readable:
            return SCHEDULER
        dead = [kind for kind, _ in self._node.dead_processes()]
        return "control service (gcs_server)" if "gcs_server" in dead else ""

    def _watch(self) -> None:
        while not (self._stopped.is_set() or self.gone) and ray.is_initialized():
            self.gone = self.look(POLL_SECONDS)
        if not self.gone or self._stopped.is_set():
            return
        with _ray_silent():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            if not self._over.wait(GRACE_SECONDS):
                self._dismiss_witness()
                print(f"anatomask: {GONE.format(process=self.gone)}", file=sys.stderr, flush=True)
                os._exit(1)

    def _dismiss_witness(self) -> None:
        """Tell the process beside this one that it need not speak, and wait for its end."""
        with suppress(BrokenPipeError):
            self._witness.communicate(ray_witness.OVER)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.gone and not self._stopped.is_set():
            raise _Interruption


@contextmanager
def _ray_silent() -> Iterator[None]:
    """Keep the dozens of lines that Ray prints about its death out of the terminal; its own logs have them."""
    logging.disable(logging.CRITICAL)
    worker: Any = ray._private.worker.global_worker
    worker.threads_stopped.set()
    worker.gcs_error_subscriber.close()
    yield
    logging.disable(logging.NOTSET)
