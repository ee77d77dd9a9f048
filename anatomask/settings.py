"""Base of all settings, with the checks that hold for every field."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

LARGEST_INTEGER = 2**63 - 1
"""Largest whole number that NumPy and torch accept, for example as a seed."""


@dataclass(frozen=True)
class Settings:
    """Section of the settings. A subclass that checks more calls `super().__post_init__()` first."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: a field holds true or false for a number, a number that is not finite or too large, text that
                cannot be shown, or nothing where its default is some text. The message names it.
        """
        hints = get_type_hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            check_value(field.name, value, hints[field.name])
            if value == "" and isinstance(field.default, str) and field.default:
                raise ValueError(f"{field.name} is empty; leave it out for its default, {field.default}")

    def require_range(self, low: float, high: float, *names: str) -> None:
        """Check that the named fields, each a number, several numbers or None, lie in [low, high].

        Raises:
            ValueError: one does not; the message names it.
        """
        for name in names:
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and not low <= number:
                    raise ValueError(f"{name} must be at least {low:,}, not {value}")
                if number is not None and not number <= high:
                    raise ValueError(f"{name} must be at most {high:,}, not {value}")

    def require_distinct(self, *names: str) -> None:
        """Check that the named fields, each a tuple or None, hold no value twice: `a` and `./a` are one folder.

        Raises:
            ValueError: one does; the message names it.
        """
        for name in names:
            values = getattr(self, name)
            seen: dict[Any, Any] = {}
            for value in values if isinstance(values, tuple) else ():
                key = Path(value).absolute() if isinstance(value, str) else value
                if key in seen:
                    other = "" if seen[key] == value else f", once as {value}"
                    raise ValueError(f"{name} names {seen[key]} twice{other}")
                seen[key] = value

    def require_local(self, *names: str) -> None:
        """Check that the named fields are folders, not addresses of object storage.

        The message does not show the value, which may hold credentials.

        Raises:
            ValueError: one is an address; the message names it.
        """
        for name in names:
            value = getattr(self, name)
            if isinstance(value, str) and "://" in value:  # in a recipe, what the user must name is missing
                raise ValueError(
                    f"{name} must be a folder, on storage that all machines share, not an address: prepared data, and "
                    "the runs of pretrain and finetune, may lie on object storage"
                )


def required_fields(settings: Settings | type[Settings]) -> tuple[str, ...]:
    """List the names of the fields that have no default."""
    return tuple(one.name for one in fields(settings) if one.default is MISSING and one.default_factory is MISSING)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Check the value of one field, before or after it is converted to the type `hint`.

    Raises:
        ValueError: as `Settings.__post_init__`, but for empty text.
    """
    kinds = set(_leaves(hint))
    for item in value if isinstance(value, tuple | list) else (value,):
        if isinstance(item, bool) and bool not in kinds and kinds & {int, float}:
            raise ValueError(f"{name} must be a number, not {str(item).lower()}")
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{name} must be a finite number, not {item}")
        if isinstance(item, int) and abs(item) > LARGEST_INTEGER:
            raise ValueError(f"{name} must be at most {LARGEST_INTEGER}")
        if isinstance(item, str) and not is_text(item):
            raise ValueError(f"{name} holds characters that are not text: {item!a}")
        if isinstance(item, str) and not is_file_text(item):
            raise ValueError(f"{name} {item!a} cannot be encoded: set a locale of UTF-8, as LC_ALL=C.UTF-8")


def is_text(value: str) -> bool:
    """Return whether `value` has neither control characters nor bytes that were not UTF-8."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)


def is_file_text(value: str) -> bool:
    """Return whether the locale's encoding can express `value`, so that it may be a file name."""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _leaves(hint: Any) -> Iterator[Any]:
    """List the types that a type hint is made of: int and None of `tuple[int, ...] | None`."""
    if get_origin(hint) in (tuple, Union, UnionType):
        for part in get_args(hint):
            yield from _leaves(part)
    else:
        yield hint
