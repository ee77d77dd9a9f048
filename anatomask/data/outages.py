"""Outages of remote storage: distinguished from permanent faults, and waited out."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

LOG = logging.getLogger(__name__)

MAX_OUTAGE = 15.0
"""Minutes that an outage may last by default."""

OUTAGE = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT"  # S3
    r"|HTTP status (code: )?(429|5\d\d)"  # S3, GCS
    r"|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL)"  # GCS
    r"|Azure Error: \[[^]]*\] (429|5\d\d|Fail to get a new connection|Error while (sending|polling))"
)
"""Pattern of pyarrow's messages for a network or service that fails temporarily; other faults are permanent."""

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
"""Seconds between two attempts at most."""

T = TypeVar("T")


def is_outage(error: OSError) -> bool:
    """Return whether the same request may succeed later; False where a key is missing or access is denied."""
    return not isinstance(error, FileNotFoundError | PermissionError) and bool(OUTAGE.search(str(error)))


def waits(place: str) -> Iterator[float]:
    """Yield the seconds before each further attempt: they double, and vary by place to spread out the readers."""
    rng, longest = random.Random(place), FIRST_WAIT
    while True:
        yield longest * (0.5 + rng.random() / 2)
        longest = min(2 * longest, LONGEST_WAIT)


def outlast(act: Callable[[], T], place: str, minutes: float) -> T:
    """Repeat `act` while storage has an outage, for at most `minutes`, and log each wait.

    Raises:
        OSError: as `act`, where the fault is no outage or the outage lasts too long.
    """
    pauses, failed = waits(place), False
    began = 0.0
    while True:
        try:
            result = act()
        except OSError as error:
            began = began if failed else time.monotonic()  # before, a large file may have been on its way for long
            left = began + 60 * minutes - time.monotonic()
            if not is_outage(error) or left <= 0:
                raise
            if not failed:
                LOG.warning("%s: storage does not answer (%s); trying for %g min", place, one_line(error), minutes)
            failed = True
        else:
            if failed:
                LOG.warning("%s: storage answers again after %.0f s", place, time.monotonic() - began)
            return result
        time.sleep(min(next(pauses), left))


def one_line(error: BaseException) -> str:
    """Format an error's message in one line."""
    return " ".join(str(error).split())
