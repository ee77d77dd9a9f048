"""Which sockets processes listen on, by asking the kernel."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path

LISTENING = "0A"
LOOPBACK = ["127.0.0.1", "::1"]


def descendants(pid: int) -> list[int]:
    """Processes below `pid`. What ends meanwhile is left out, here as below."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, task.read_text().split())
    return children + [below for child in children for below in descendants(child)]


def sockets(pid: int) -> set[str]:
    """Inodes of a process's sockets."""
    found = set()
    with suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                kind, _, inode = str(file.readlink()).partition(":")
                if kind == "socket":
                    found.add(inode.strip("[]"))
    return found


def listening(pids: list[int]) -> dict[int, set[str]]:
    """Port -> addresses on which one of the processes listens there."""
    inodes = {inode for pid in pids for inode in sockets(pid)}
    found: dict[int, set[str]] = {}
    for table in filter(Path.exists, (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))):
        for line in table.read_text().splitlines()[1:]:
            _, local, _, state, *fields = line.split()
            if state == LISTENING and fields[5] in inodes:
                words, _, port = local.partition(":")
                raw = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
                address = ip_address(raw)
                mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
                found.setdefault(int(port, 16), set()).add(str(mapped or address))
    return found
