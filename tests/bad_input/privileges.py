"""Root without the right to pass over permissions: the owner's bits hold for it as for any user."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

VERSION = 0x20080522
"""Version 3 of Linux's interface for capabilities: two words of 32 bits each."""
PASSES_PERMISSIONS = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7))."""


@contextmanager
def permissions_hold() -> Iterator[None]:
    """Let this thread, and those that it starts, do with files only what their permissions say.

    Skips the test where root's capabilities cannot be taken.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, words = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    if not hasattr(libc, "capset") or libc.capget(header, words):
        pytest.skip("root's capabilities cannot be read here")
    effective = words[0]
    words[0] = effective & ~PASSES_PERMISSIONS
    if libc.capset(header, words):
        pytest.skip("root's capabilities cannot be taken here")
    try:
        yield
    finally:
        words[0] = effective
        libc.capset(header, words)
