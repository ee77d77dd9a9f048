"""Parsing of JSON and YAML from outside, which may be damaged or malicious."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from anatomask.errors import UserError

MOST_VALUES = 100_000
"""Number of values that a YAML file may expand to: with a few aliases of aliases, a file of 1 kB expands to 10^8."""


def from_json(text: str | bytes, *, finite: bool = False, by_hand: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: text to parse.
        finite: refuse NaN and the infinities, which Python writes though JSON has no such numbers.
        by_hand: refuse a name that stands twice, as a person may write it.

    Raises:
        ValueError: the text is not JSON, not UTF-8, nested too deeply, or holds a number or a name that is refused.
    """
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant if finite else None,
            object_pairs_hook=_object if by_hand else None,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: the file is not JSON.
    """
    try:
        return from_json(Path(path).read_bytes(), by_hand=True)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}; correct the file, or get it again") from error


def entry_of(data: Any, key: str, path: str | Path) -> Any:
    """Return an entry of the object that `path` holds.

    Raises:
        UserError: the object lacks it.
    """
    try:
        return data[key]
    except (KeyError, TypeError):
        raise UserError(f"{path} lacks {key!r}; add it") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} where a finite number is expected")


def from_yaml(text: str | bytes) -> Any:
    """Parse YAML as plain values.

    Raises:
        ValueError: the text is not YAML, not UTF-8, nested too deeply, names a field twice, or expands to more than
            `MOST_VALUES` values.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _count(root, {})
        return loader.construct_document(root)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"{error.problem}{line}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (LookupError, AttributeError, TypeError, OverflowError) as error:  # `!!bool maybe`, `!!int ''`
        raise ValueError("a value in it is not of the type that its tag (!!) names") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{name!r} stands in it twice")
    return values


def _count(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Count the values that a node stands for, aliases expanded.

    Raises:
        ValueError: there are too many.
    """
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise ValueError("an alias (*) in it stands for what holds it")
        return count
    known[id(node)] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif isinstance(node, yaml.MappingNode):
        _no_key_twice(node)
        parts = [part for pair in node.value for part in pair]
    count = 1 + sum(_count(part, known) for part in parts)
    if count > MOST_VALUES:
        raise ValueError(f"it holds, or its aliases (*) stand for, more than {MOST_VALUES:,} values")
    known[id(node)] = count
    return count


def _no_key_twice(node: yaml.MappingNode) -> None:
    """Refuse a mapping that gives one key two values, of which PyYAML would take the last.

    Raises:
        ValueError: a key stands twice.
    """
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise ValueError(f"{key.value} stands in it twice, in line {lines[name]} and in line {line}")
            lines[name] = line
