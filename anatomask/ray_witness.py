"""Program that prints a message when Ray's scheduler has died and has ended, without a word, the process it served.

Ray's C++ code ends a process at once that reads or writes the object store of a dead scheduler (raylet): no code of
that process can say why. `ray_watch.py` starts this program beside it, with no import that takes time.
"""

import os
import select
import socket
import sys

OVER = b"."
"""Byte that says on standard input that the served process needs no message."""


def main(raylet_address: str, message: str) -> None:
    """Wait for the end of standard input; print the message to stderr if the raylet had ended before.

    Args:
        raylet_address: path of the raylet's socket.
        message: line to print.
    """
    served = sys.stdin.fileno()
    with socket.socket(socket.AF_UNIX) as raylet:
        ended = raylet.connect_ex(raylet_address) != 0
        readable: list[object] = []
        while served not in readable:
            # The order counts: a raylet that was started by the served process ends soon after it.
            readable, _, _ = select.select([served] if ended else [served, raylet], [], [])
            ended = ended or raylet in readable
    if ended and os.read(served, 1) != OVER:
        print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
