"""Claims on folders: a writer keeps its settings in its folder, and other settings are refused there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.names import shown


@dataclass(frozen=True)
class Writer:
    """Program part whose folder must hold nothing of another, and its names in messages."""

    kind: str
    """Kind of contents: a preparation, a phantom, an evaluation."""
    settings: str
    """Name of the JSON file with its settings, by which the folder is recognised."""
    files: tuple[str, ...]
    """Names of the other files and folders that it writes."""
    fields: tuple[str, ...]
    """Settings that every version of it has written."""
    remedy: str
    """Advice where the folder belongs to something else."""
    remedy_damaged: str = ""
    """Advice where its own settings are damaged. Default: `remedy`."""

    def earlier(self, folder: Storage) -> Mapping[str, Any] | None:
        """Read the settings in `folder`; None where no such writer has begun.

        Raises:
            UserError: the settings are damaged or another program's, or files of the same names lie there without
                settings.
            OSError: the folder cannot be read.
        """
        if not folder.exists(self.settings):
            folder.refuse_foreign(self.files, self.kind, self.remedy)
            return None
        remedy = self.remedy_damaged or self.remedy
        found = folder.read_json(self.settings, remedy)
        if not isinstance(found, Mapping) or not set(self.fields) <= found.keys():
            raise UserError(
                f"{folder.show(self.settings)} is damaged, or no {self.kind} wrote it (it lacks "
                f"{', '.join(self.fields)}); {remedy}"
            )
        return found


def require_same(folder: str, kind: str, before: Mapping[str, Any], now: Mapping[str, Any], remedy: str) -> None:
    """Check that a folder was begun with the settings that are given now.

    Args:
        folder: the folder's name in messages.
        kind: kind of contents: a run, a preparation, …
        before: the settings kept there.
        now: the settings given.
        remedy: advice, with which the message ends.

    Raises:
        UserError: settings differ; the message names them with both values.
    """
    if changed := differences(before, now):
        raise UserError(f"{folder} holds {kind} with other settings: {'; '.join(changed)}; {remedy}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the dotted fields in which two nested settings differ, with both values."""
    found: list[str] = []
    for name in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name} is {short_text(before)} there, {short_text(after)} here")
    return found


def short_text(value: Any) -> str:
    """Format a value as text, cut to 80 characters."""
    return value if isinstance(value, str) and len(value) <= 80 else shown(value)
