from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from anatomask.parsing import from_json, from_yaml

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(alphabet=st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


def test_json_by_hand_names_nothing_twice() -> None:
    text = '{"a": {"b": 1, "c": 2, "b": 3}}'
    assert from_json(text) == {"a": {"b": 3, "c": 2}}
    with pytest.raises(ValueError, match="'b' stands in it twice"):
        from_json(text, by_hand=True)
    assert from_json('{"a": {"b": 1}, "b": []}', by_hand=True) == {"a": {"b": 1}, "b": []}


def alias_bomb(levels: int) -> str:
    """YAML of a few lines that stand for 10^levels values."""
    lines = ["a0: &a0 [" + ", ".join("x" * 10) + "]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, levels)]
    return "\n".join(lines)


@given(VALUES)
def test_what_was_written_is_read(value: Any) -> None:
    assert from_json(json.dumps(value)) == value
    assert from_yaml(yaml.safe_dump(value)) == value


def test_a_few_aliases_and_merges_are_read() -> None:
    assert from_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
    assert len(from_yaml(alias_bomb(4))) == 4
    assert from_yaml("") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (alias_bomb(8), "aliases .* stand for, more than 100,000 values"),
        ("a: &a [*a]", "stands for what holds it"),
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 3_000, "nested too deeply"),
        ("a: [", "expected the node content"),
        ("a: {b: 1}\nc: 2\na: {b: 2}", "a stands in it twice, in line 1 and in line 3"),
        ("a: {b: 1, b: 1}", "b stands in it twice"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (b"\xff\xfe\xff", "utf|UTF|decode|truncated"),
        ("a: 2020-99-99", "month must be in"),
    ],
)
def test_yaml_that_would_do_harm_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_yaml(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "", b"\xff", "1" * 5_000, "{"])
def test_json_that_is_none_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        from_json(text)
