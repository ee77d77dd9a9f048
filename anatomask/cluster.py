"""Starting or joining Ray."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import AuthenticationError

from anatomask.cluster_nodes import DRIVERS
from anatomask.cluster_settings import ClusterConfig
from anatomask.errors import Note, Stopped, UserError
from anatomask.plugins import worker_setup
from anatomask.ray_watch import connected, probe
from anatomask.signals import stopped_by_signals

TOKENS = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
"""Environment variables that give Ray a token, or the path of one."""

OTHER_VERSIONS = "Version mismatch"
"""Beginning of Ray's refusal of a cluster that runs on another Python or Ray; the refusal has no type of its own."""

LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes of the path of a Unix socket at most."""
SOCKET_BYTES = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead")
"""Bytes that Ray's longest socket adds to the path of its temporary folder."""


@contextmanager
def running(config: ClusterConfig) -> Iterator[None]:
    """Start or join Ray, unless it already runs in this process; what was started here ends with the block.

    A Ray that is started here listens on loopback only. Its dashboard stays on: without it, a trial that Tune stops
    never releases its workers.

    Raises:
        UserError: no cluster answers at the address within seconds, the cluster has other versions of Python or Ray or
            asks for a token that is not here, or Ray's processes of this machine died meanwhile, or while they started.
        Stopped: a signal came that ends a program in order.
    """
    if ray.is_initialized():
        yield
        return
    tell_threads(config)
    local = config.address == "local"
    options: dict[str, Any] = {"dashboard_host": "127.0.0.1", "resources": {DRIVERS: 16}} if local else {}
    if config.temporary_folder:
        options["_temp_dir"] = str(private_folder(Path(config.temporary_folder)))
    if (setup := worker_setup()) is not None:
        options["runtime_env"] = {"worker_process_setup_hook": setup}
    if not local:
        probe(config.address)
    with own_token() if local else nullcontext(), rays_exit_as_stop():
        try:
            with on_loopback() if local else nullcontext():
                ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except ConnectionError as error:
            raise UserError(f"--cluster.address {config.address}: no Ray cluster answers there") from error
        except AuthenticationError as error:
            raise UserError(
                f"--cluster.address {config.address}: the cluster asks for its token; copy it from the head's "
                "~/.ray/auth_token to this machine's, or set RAY_AUTH_TOKEN_PATH"
            ) from error
        except RuntimeError as error:
            if not str(error).startswith(OTHER_VERSIONS):
                raise
            raise UserError(
                f"--cluster.address {config.address}: Ray and Python must have the same versions here and there, "
                "down to Python's patch version: install those of the cluster, or run this on its nodes (ray submit, "
                f"ray job submit). {' '.join(str(error).split())}"
            ) from error
        except Exception as error:
            if type(error) is not Exception:  # which Ray raises where one of its processes died while it started
                raise
            raise UserError(f"Ray did not start: {error} The same command goes on where it stopped.") from error
        with stopped_by_signals(), connected():  # after Ray's start, which sets a handler of its own
            yield


@contextmanager
def rays_exit_as_stop() -> Iterator[None]:
    """Turn the exit by which Ray answers SIGTERM while it starts into the exception of our own handler.

    Raises:
        Stopped: SIGTERM came after Ray had set its handler, and before ours was set.
    """
    try:
        yield
    except SystemExit as ending:
        if ending.code != signal.SIGTERM:
            raise
        raise Stopped(signal.SIGTERM) from None


def tell_threads(config: ClusterConfig) -> None:
    """Warn with a `Note` where OMP_NUM_THREADS is set, which nothing reads: Ray sets it for its workers.

    On a cluster it may be Ray's own too: `ray submit` sets it to 1.
    """
    own = os.environ.get("OMP_NUM_THREADS")
    if own and config.threads is None and config.address == "local":
        text = f"OMP_NUM_THREADS={own} is not read: --cluster.threads sets the threads of a worker"
        warnings.warn(Note(text), stacklevel=2)


@contextmanager
def own_token() -> Iterator[None]:
    """Give a Ray that starts within the block its own token, if the home folder neither holds nor can hold one.

    Ray demands a token from those who join it; it makes the token at its first start and stores it below the home
    folder.
    """
    if TOKENS & os.environ.keys() or _keeps_token():
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]


def _keeps_token() -> bool:
    """Return whether the home folder holds Ray's token, or can store it."""
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: this account has no home folder
        return False
    return os.access(folder / "auth_token", os.R_OK) or os.access(folder, os.W_OK | os.X_OK)


def private_folder(folder: Path) -> Path:
    """Make a folder for Ray's temporary files that other accounts cannot enter.

    Ray lets all accounts write into the folder that it is given, so it gets a folder inside the private one.

    Returns:
        The folder for Ray.

    Raises:
        UserError: the path is too long for the sockets in it, or the folder exists and is open to others.
        OSError: the folder cannot be made.
    """
    folder = folder.absolute()
    within = folder / "ray"
    length = len(os.fsencode(within)) + SOCKET_BYTES
    if length > LONGEST_SOCKET:
        raise UserError(
            f"--cluster.temporary-folder {folder} is {length - LONGEST_SOCKET} bytes too long: the sockets in it may "
            f"have paths of {LONGEST_SOCKET} bytes; choose a shorter one"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UserError(
            f"--cluster.temporary-folder {folder} is open to other accounts: name one that is not there yet, or close "
            f"it with chmod 700 {folder}"
        )
    return within


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let a Ray that starts within the block, and all its processes, listen on 127.0.0.1 only.

    On macOS and Windows that is Ray's default. On Linux it has no option: `ray.init` replaces a given 127.0.0.1 by the
    machine's own address. So, while Ray starts, the constant that enables clusters has the value of those systems.
    """
    variable, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    inherited = os.environ.get(variable)
    os.environ[variable], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(variable)
        if inherited is not None:
            os.environ[variable] = inherited
