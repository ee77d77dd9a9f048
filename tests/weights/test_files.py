"""Weights: what is written is read, and what does not fit is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anatomask.errors import UserError
from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.weights.files import (
    describe_architecture,
    initialise,
    load_matching,
    network_of,
    read_weights,
    run_name,
    split_init,
    write_weights,
)
from anatomask.weights.tensor_files import Weights

TINY = STUNetConfig(base=2)


def _pretrained(network: STUNetConfig = TINY) -> Weights:
    method = AnatoMask(AnatoMaskConfig(decoder_width=16), network)
    with torch.no_grad():
        for tensor in method.student.parameters():  # student and teacher differ
            tensor.add_(torch.randn_like(tensor))
    return Weights(method.state_dict(), {"kind": "pretraining", "architecture": describe_architecture(network)})


def test_round_trip(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(3, 4).t(), "b": torch.tensor(7), "c": torch.randn(2, dtype=torch.bfloat16)}
    header = {"kind": "segmentation", "class_names": {"1": "liver"}, "spacing": [1.5, 1.5, 1.5]}
    write_weights(tmp_path / "new" / "folder", tensors, header)
    weights = read_weights(tmp_path / "new" / "folder")
    assert weights.header == header == json.loads((tmp_path / "new/folder/model.json").read_text())
    assert weights.tensors.keys() == tensors.keys()
    assert all(torch.equal(weights.tensors[name], tensor) for name, tensor in tensors.items())
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == ["model.json", "model.safetensors"]
    write_weights(tmp_path / "new" / "folder", {"b": torch.tensor(8)}, {"kind": "other"})
    assert read_weights(tmp_path / "new" / "folder") == Weights({"b": torch.tensor(8)}, {"kind": "other"})


@pytest.mark.parametrize("path", ["runs/mine", "runs/mine/", "runs/mine/checkpoints/step_00000010"])
def test_a_run_is_named_by_its_folder_or_a_checkpoint(path: str) -> None:
    assert run_name(path) == "mine"


def test_a_kill_while_writing_leaves_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(tmp_path, {"a": torch.zeros(2)}, {"n": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_weights(tmp_path, {"a": torch.ones(2)}, {"n": 2})
    assert torch.equal(read_weights(tmp_path).tensors["a"], torch.zeros(2))
    assert read_weights(tmp_path).header == {"n": 1}


def test_missing_truncated_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors does not exist"):
        read_weights(tmp_path)
    write_weights(tmp_path, {"a": torch.zeros(1000)}, {})
    whole = (tmp_path / "model.safetensors").read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(UserError, match="not a complete safetensors file"):
            read_weights(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no header"):
        read_weights(tmp_path)


@pytest.mark.parametrize("network", [TINY, STUNetConfig(2, 4, 2), STUNetConfig(widths=(2, 4, 4, 8, 8, 8))])
def test_architecture_survives_json(network: STUNetConfig) -> None:
    header = json.loads(json.dumps({"architecture": describe_architecture(network, classes=3)}))
    assert header["architecture"]["classes"] == 3 and network_of(header) == network


def test_an_architecture_without_a_name_is_an_stunet() -> None:
    """As headers of older versions have it."""
    assert network_of({"architecture": {"in_channels": 1, "base": 2, "depth": 1, "widths": None}}) == TINY


@pytest.mark.parametrize(
    "architecture",
    [
        None,
        {"name": "unet"},
        *({"name": "stunet", **bad} for bad in ({"heads": 3}, {"widths": [1, 2, 3]}, {"base": "8"})),
    ],
)
def test_unknown_architectures_are_refused(architecture: dict[str, object] | None) -> None:
    with pytest.raises(UserError, match="architecture"):
        network_of({"architecture": architecture})


def test_mismatches_are_refused_by_name_and_change_nothing() -> None:
    network, other = STUNet(TINY, 2), STUNet(TINY, 2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    right = other.state_dict()
    cases = {
        "heads.0.weight is of shape": {**right, "heads.0.weight": torch.zeros(1)},
        "heads.0.weight is missing": {name: tensor for name, tensor in right.items() if name != "heads.0.weight"},
        "nonsense is unknown": {**right, "nonsense": torch.zeros(1)},
    }
    for message, tensors in cases.items():
        with pytest.raises(UserError, match=message):
            load_matching(network, tensors)
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert load_matching(network, cases["heads.0.weight is of shape"], ("heads.0",)) == ["heads.0.weight"]
    assert torch.equal(network.heads[1].weight, other.heads[1].weight)  # type: ignore[arg-type]
    assert load_matching(network, right) == []


def test_pretrained_student_starts_the_segmentation_network() -> None:
    weights, network = _pretrained(), STUNet(TINY, 2)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    left_out = initialise(network, weights)
    for name, tensor in network.state_dict().items():
        transferred = name.startswith("encoder.") and not name.startswith("encoder.stages.5.")
        expected = weights.tensors[f"student.{name}"] if transferred else fresh[name]
        assert torch.equal(tensor, expected), name
        assert (name in left_out) != transferred


def test_stem_is_repeated_over_more_channels() -> None:
    weights, network = _pretrained(), STUNet(STUNetConfig(in_channels=2, base=2), 2)
    initialise(network, weights)
    for part in ("conv1", "shortcut"):
        mine = network.state_dict()[f"encoder.stages.0.0.{part}.weight"]
        theirs = weights.tensors[f"student.encoder.stages.0.0.{part}.weight"]
        assert torch.equal(mine[:, :1], theirs) and torch.equal(mine[:, 1:], theirs)
    with pytest.raises(UserError, match="reads 2 channels, which cannot be repeated to 3"):
        initialise(STUNet(STUNetConfig(in_channels=3, base=2), 2), _pretrained(STUNetConfig(in_channels=2, base=2)))


def test_finetuned_network_starts_another_but_for_its_heads() -> None:
    source, network = STUNet(TINY, 5), STUNet(TINY, 2)
    header = {"kind": "segmentation", "architecture": describe_architecture(TINY, 5)}
    left_out = initialise(network, Weights(source.state_dict(), header))
    assert left_out == sorted(name for name in network.state_dict() if name.startswith("heads."))
    trunk = {name: tensor for name, tensor in source.state_dict().items() if name not in left_out}
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in trunk.items())


def test_foreign_architecture_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"widths \(4, 8, .* depth 1, the network\s+has widths \(2, .*set network.base and network.depth",
    ):
        initialise(STUNet(TINY, 2), _pretrained(STUNetConfig(base=4)))
    with pytest.raises(UserError, match="kind 'unknown'"):
        initialise(STUNet(TINY, 2), Weights({}, {"kind": "unknown", "architecture": describe_architecture(TINY)}))


def test_an_encoder_of_four_stages_fills_the_stages_that_it_has() -> None:
    method = AnatoMask(AnatoMaskConfig(decoder_width=16, patch=8), TINY)
    header = {"kind": "pretraining", "architecture": describe_architecture(TINY), "stages": 4}
    weights, network = Weights(method.state_dict(), header), STUNet(TINY, 2)
    left_out = initialise(network, weights)
    transferred = {name for name in network.state_dict() if name not in left_out}
    assert transferred == {name for name in network.state_dict() if re.match(r"encoder\.stages\.[0-3]\.", name)}
    assert all(torch.equal(network.state_dict()[name], weights.tensors[f"student.{name}"]) for name in transferred)
    with pytest.raises(UserError, match=r"encoder.stages.4.* is missing"):  # a header that promises more
        initialise(network, Weights(weights.tensors, {**header, "stages": 5}))


def test_the_encoder_alone_of_a_finetuned_network() -> None:
    source, network = STUNet(TINY, 5), STUNet(TINY, 2)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    header = {"kind": "segmentation", "architecture": describe_architecture(TINY, 5)}
    initialise(network, Weights(source.state_dict(), header), "encoder")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name] if name.startswith("encoder.") else fresh[name]), name


def test_permuted_weights_keep_each_tensors_values_and_lose_their_places() -> None:
    weights = _pretrained()
    networks = [STUNet(TINY, 2) for _ in range(3)]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        initialise(network, weights, "permuted", seed)
    first, again, other = (network.state_dict() for network in networks)
    moved = 0
    for name in first:
        source = weights.tensors.get(f"student.{name}")
        if name.startswith("encoder.") and source is not None:
            assert torch.equal(first[name].flatten().sort().values, source.flatten().sort().values)
            assert torch.equal(first[name], again[name])
            moved += not torch.equal(first[name], source) and not torch.equal(first[name], other[name])
    assert moved > 10


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("runs/x", ("whole", "runs/x")),
        ("encoder:runs/x", ("encoder", "runs/x")),
        ("permuted:/a/b", ("permuted", "/a/b")),
    ],
)
def test_what_is_taken_of_weights_stands_before_their_place(init: str, expected: tuple[str, str]) -> None:
    assert split_init(init) == expected
