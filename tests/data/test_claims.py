"""Whose a folder is, and which settings differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anatomask.data.claims import Writer, differences, require_same
from anatomask.data.storage import Storage
from anatomask.errors import UserError

BAKER = Writer("bakery", "oven.json", ("bread",), ("heat",), "choose another --out")
VALUES = st.none() | st.integers() | st.text(max_size=4)
SETTINGS = st.dictionaries(
    st.sampled_from("abc"), VALUES | st.dictionaries(st.sampled_from("de"), VALUES, max_size=2), max_size=3
)


def leaves(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SETTINGS, SETTINGS)
def test_settings_differ_where_a_leaf_does(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert differences(old, old) == []
    named = {line.split(" is ")[0] for line in differences(old, new)}
    before, after = leaves(old), leaves(new)
    for leaf in before.keys() | after.keys():
        if before.get(leaf) != after.get(leaf):
            parts = leaf.split(".")
            assert any(".".join(parts[: depth + 1]) in named for depth in range(len(parts)))


def test_an_empty_folder_is_nobodys_and_a_written_one_its_writers(tmp_path: Path) -> None:
    folder = Storage(tmp_path)
    assert BAKER.earlier(folder) is None
    folder.write_json("oven.json", {"heat": 200, "time": {"minutes": 40}})
    before = BAKER.earlier(folder)
    assert before is not None
    require_same("here", "bread", before, {"heat": 200, "time": {"minutes": 40}}, "bake anew")
    with pytest.raises(UserError, match=r"holds bread with other settings: time\.minutes is 40 there, 5 here; bak"):
        require_same("here", "bread", before, {"heat": 200, "time": {"minutes": 5}}, "bake anew")


def test_files_without_settings_are_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "bread").mkdir()
    with pytest.raises(UserError, match="bread is there, but no bakery wrote it; choose another --out"):
        BAKER.earlier(Storage(tmp_path))


@pytest.mark.parametrize("text", ['{"cut', "[]", json.dumps({"cold": 5})])
def test_settings_of_another_program_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "oven.json").write_text(text)
    with pytest.raises(UserError, match=r"oven\.json is damaged.*choose another --out"):
        BAKER.earlier(Storage(tmp_path))
