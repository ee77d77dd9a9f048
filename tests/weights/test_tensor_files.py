"""Files of tensors: what is written is read, a bit that flipped is noticed, and equal content has equal bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from anatomask.errors import Note, UserError
from anatomask.weights.tensor_files import read_described, read_description, write_described

GENERATOR = torch.Generator().manual_seed(0)
TENSORS = {
    "conv.weight": torch.randn(4, 2, 3, 3, 3, generator=GENERATOR),
    "conv.bias": torch.randn(4, generator=GENERATOR, dtype=torch.float64),
    "half": torch.randn(3, 5, generator=GENERATOR).half(),
    "brain": torch.randn(7, generator=GENERATOR).bfloat16(),
    "step": torch.tensor(12),
    "seen": torch.tensor([True, False, True]),
    "empty": torch.empty(0, 3),
}
HEADER: dict[str, Any] = {"kind": "segmentation", "classes": {"1": "liver", "2": "größe"}, "spacing": [1.5, 1.5, 2.0]}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


def test_what_is_written_is_read_without_a_note(tmp_path: Path) -> None:
    write_described(tmp_path / "file", TENSORS, HEADER)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        described = read_described(tmp_path / "file")
    assert same(described.tensors, TENSORS) and described.header == HEADER == read_description(tmp_path / "file")
    assert same(load_file(tmp_path / "file"), TENSORS)  # any reader of safetensors reads it


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_noticed(place: int, bit: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_described(path, TENSORS, HEADER)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        described = read_described(path, remedy="copy it")
    except UserError as error:
        assert str(path) in str(error)
    else:  # white space of the format's own header
        assert same(described.tensors, TENSORS) and described.header == HEADER


def test_a_value_that_changed_is_named_with_the_remedy(tmp_path: Path) -> None:
    write_described(tmp_path / "file", TENSORS, HEADER)
    content = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"file is damaged \(its content does not match its checksum\); copy it"):
        read_described(tmp_path / "file", remedy="copy it")


def test_a_file_of_an_older_version_is_read_with_a_note(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "file", metadata={"format": "pt", "header": json.dumps(HEADER)})
    with pytest.warns(Note, match="file was written by an older version and has no checksum"):
        described = read_described(tmp_path / "file")
    assert same(described.tensors, TENSORS) and described.header == HEADER == read_description(tmp_path / "file")


def test_equal_content_has_equal_bytes_whatever_its_order_and_memory_format(tmp_path: Path) -> None:
    write_described(tmp_path / "one", TENSORS, HEADER)
    turned = dict(reversed(TENSORS.items()))
    turned["conv.weight"] = turned["conv.weight"].to(memory_format=torch.channels_last_3d)
    turned["half"] = turned["half"].t().contiguous().t()
    turned["brain"] = torch.cat([turned["brain"], turned["brain"]])[: len(turned["brain"])].requires_grad_()
    write_described(tmp_path / "two", turned, dict(reversed(HEADER.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    write_described(tmp_path / "two", turned | {"step": torch.tensor(13)}, HEADER)
    assert (tmp_path / "one").read_bytes() != (tmp_path / "two").read_bytes()


def test_every_process_writes_the_same_bytes(tmp_path: Path) -> None:
    write_described(tmp_path / "source", TENSORS, HEADER)
    script = (
        "import sys; from pathlib import Path; from anatomask.weights.tensor_files import *\n"
        "read = read_described(Path(sys.argv[1])); write_described(Path(sys.argv[2]), read.tensors, read.header)\n"
    )
    for number in range(3):
        copy = tmp_path / str(number)
        subprocess.run(
            [sys.executable, "-c", script, tmp_path / "source", copy], check=True, cwd=Path(__file__).parents[2]
        )
        assert copy.read_bytes() == (tmp_path / "source").read_bytes()
