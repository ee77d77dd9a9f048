"""Outages of remote storage: told from faults that stay, and waited out."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

LOG = logging.getLogger(__name__)

MAX_OUTAGE = 15.0
"""Minutes."""

OUTAGE = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT"  # S3
    r"|HTTP status (code: )?(429|5\d\d)"  # S3, GCS
    r"|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL)"  # GCS
    r"|Azure Error: \[[^]]*\] (429|5\d\d|Fail to get a new connection|Error while (sending|polling))"
)
"""What pyarrow's file systems say of a network or a service that fails for a while; all else will fail again."""

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
"""Seconds between two attempts."""

T = TypeVar("T")


def is_outage(error: OSError) -> bool:
    """Whether the same request may be answered later: not where a key is missing, or access is denied."""
    return not isinstance(error, FileNotFoundError | PermissionError) and bool(OUTAGE.search(str(error)))


def waits(place: str) -> Iterator[float]:
    """Seconds to wait before each further attempt: they double, and differ by place, so that readers spread out."""
    rng, longest = random.Random(place), FIRST_WAIT
    while True:
        yield longest * (0.5 + rng.random() / 2)
        longest = min(2 * longest, LONGEST_WAIT)


def outlast(act: Callable[[], T], place: str, minutes: float) -> T:
    """Do `act` again and again while storage has an outage, for so many minutes; the log says so.

    Raises:
        OSError: as `act`, where the fault is none of an outage or the outage is too long.
    """
    began, pauses, failed = time.monotonic(), waits(place), False
    while True:
        try:
            result = act()
        except OSError as error:
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
    """What an error says, in one line."""
    return " ".join(str(error).split())
