"""Addresses of folders that are not on this machine, and what may be shown of them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

SECRET = re.compile("key|secret|token|password|sig", re.IGNORECASE)
"""Pattern of the options of an address whose values must not be shown."""


def is_address(path: str) -> bool:
    """Return whether `root` is an address (s3://…) rather than a local path."""
    return "://" in path


def public_address(address: str) -> str:
    """Remove user, password and secret options from an address, to show it and write it down.

    What stands before it, as in `encoder:s3://…`, stays.
    """
    if not is_address(address):
        return address
    before, colon, scheme = address.partition("://")[0].rpartition(":")
    try:
        parts = urlsplit(address.removeprefix(before + colon))
    except ValueError:
        return f"{before}{colon}{scheme}://***"
    user, _, host = parts.netloc.rpartition("@")
    if parts.scheme.startswith("abfs") and (container := user.partition(":")[0]):
        host = f"{container}@{host}"  # Azure's user is the container
    options = [option for option in parts.query.split("&") if not SECRET.search(option.partition("=")[0])]
    return before + colon + urlunsplit((parts.scheme, host, parts.path, "&".join(options), ""))


def folder_path(path: str) -> Path:
    """Return a local path, or that of an address within its bucket."""
    return Path(urlsplit(public_address(path)).path if is_address(path) else path)


def folder_name(path: str) -> str:
    """Return the last part of a local path or of an address."""
    return folder_path(path).name


def address_below(address: str, name: str) -> str:
    """Return the address of a folder within that of another, with the same options."""
    folder, question, options = address.partition("?")
    return f"{folder.rstrip('/')}/{name}{question}{options}"


def cannot_open(address: str, error: BaseException) -> str:
    """Describe an address that pyarrow refuses, which may be too malformed to tell where its credentials end."""
    scheme, _, rest = address.partition("://")
    credentials, _, place = rest.rpartition("@")
    said = " ".join(str(error).split())
    why = "" if place != rest and any(part in said for part in credentials.split(":")) else f" ({said})"
    return (
        f"{public_address(f'{scheme}://{place}')} cannot be opened{why}; see docs/scale.md for addresses: in user and "
        "password, / is written %2F and + is %2B"
    )
