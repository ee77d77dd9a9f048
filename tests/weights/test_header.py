"""Headers that somebody wrote by hand, or damaged: each use of weights names the field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anatomask.cli.main import main
from anatomask.errors import UserError
from anatomask.evaluation.network import build_network, read_network
from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.stages.finetune import FinetuneConfig, initialisation
from anatomask.weights.exporting import export_weights
from anatomask.weights.files import describe_architecture, read_header, read_weights, repeat_stem, write_weights
from anatomask.weights.header import parse_header

NETWORK = STUNetConfig(base=2)
CHANNEL = {"name": "CT", "scheme": "ct", "percentile_00_5": -9.0, "percentile_99_5": 9.0, "mean": 0.0, "std": 1}
WHOLE: dict[str, Any] = {
    "format": 1,
    "kind": "segmentation",
    "architecture": describe_architecture(NETWORK, 2),
    "patch_size": [32, 32, 32],
    "mirror_axes": [0, 2],
    "spacing": [1.5, 1.5, 3],
    "fingerprint": {"channels": [CHANNEL]},
    "class_names": {"1": "liver", "2": "spleen"},
    "dataset": "d",
    "data": "shards",
    "train_fraction": 1.0,
    "initialisation": {"method": "scratch", "run": None},
}
PRETRAINED = {
    **WHOLE,
    "kind": "pretraining",
    "method": {"name": "AnatoMask"},
    "architecture": describe_architecture(NETWORK),
}


def changed(header: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A header with one field set, or taken out where `value` is `...`."""
    header = copy.deepcopy(header)
    *sections, name = path.split(".")
    section: Any = header
    for part in sections:
        section = section[int(part) if isinstance(section, list) else part]
    if value is ...:
        del section[name]
    else:
        section[name] = value
    return header


def each(path: str, *values: Any) -> list[tuple[str, Any]]:
    """A field with each of these values."""
    return [(path, value) for value in values]


def test_whole_headers_are_read_as_they_are() -> None:
    for header in (WHOLE, PRETRAINED, {}, {"architecture": None, "unknown": {"a": [1]}}):
        assert parse_header(json.dumps(header)) == header


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kind", 5),
        *each("format", "1", 0, 1.5),
        *each("architecture", "stunet", [], 5),
        *each("architecture.base", "2", 0, -1, 10**9, 2.5, True, [2]),
        *each("architecture.depth", 0, 10**9),
        *each("architecture.widths", 5, [2, 2, 2, 2, 2, 10**9], []),
        *each("architecture.classes", 0, "2", 10**9),
        *each("patch_size", [32, 32], 32, [32, 32, 0], [32, 32, 10**9], ["a", "b", "c"]),
        *each("mirror_axes", [3], ["x"], 1, [-1]),
        *each("spacing", [0, 1, 1], [1, 1], [float("nan"), 1, 1], [float("inf"), 1, 1], "1"),
        *each("fingerprint", [], {}, {"channels": 5}, {"channels": [{}]}),
        ("fingerprint.channels.0.std", float("nan")),
        ("fingerprint.channels.0.scheme", "magic"),
        ("fingerprint.channels.0.mean", ...),
        *each("class_names", ["liver"], {"one": "liver"}, {"1": 5}, {"9" * 9: "liver"}),
        *each("initialisation", "scratch", {}, {"method": 5}, {"method": "x", "run": 5}),
        *((name, 5) for name in ("dataset", "data", "missing", "not_transferred", "imported", "method")),
        ("train_fraction", "half"),
        ("method", {"patch": 16}),
        ("stages", 0),
    ],
)
def test_a_field_of_another_kind_is_named(path: str, value: Any, tmp_path: Path) -> None:
    write_weights(tmp_path, {"a": torch.zeros(1)}, changed(WHOLE, path, value))
    for read in (read_header, read_weights, read_network):
        with pytest.raises(UserError, match=rf"model\.safetensors is damaged \({path.split('.')[0]}") as raised:
            read(tmp_path)
        assert len(str(raised.value)) < 500


def test_weights_of_a_newer_version_are_refused_with_the_remedy(tmp_path: Path) -> None:
    write_weights(tmp_path, {"a": torch.zeros(1)}, WHOLE | {"format": 2})
    for read in (read_header, read_weights, read_network):
        with pytest.raises(UserError, match=r"newer version .*format 2, this one reads up to 1\): update anatomask"):
            read(tmp_path)


@pytest.mark.parametrize("text", ["5", "[]", '"x"', "null", "[" * 100_000, "{"])
def test_a_header_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        parse_header(text)


@pytest.mark.parametrize("path", [*WHOLE, "architecture.classes", "architecture.name", "initialisation.method"])
def test_a_field_that_is_missing_is_named_before_an_evaluation(
    path: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run" / "checkpoints"
    write_weights(run / "step_1", STUNet(NETWORK, 2).state_dict(), changed(WHOLE, path, ...))
    (run / "index.json").write_text('{"last": "step_1", "step": 1}')
    assert main(["evaluate", "--run", str(run.parent)]) == 1
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    if path in ("format", "dataset", "train_fraction", "architecture.name"):
        assert "dataset.json is missing" in shown  # nothing needs them: the data are looked for
    else:
        assert path.rpartition(".")[2] in shown or "holds None weights" in shown or "does not say how" in shown


@pytest.mark.parametrize("path", ["kind", "dataset", "method", "architecture"])
def test_a_field_that_is_missing_is_named_before_a_finetuning(path: str, tmp_path: Path) -> None:
    write_weights(tmp_path, {"a": torch.zeros(1)}, changed(PRETRAINED, path, ...))
    with pytest.raises(UserError, match=f"{path}|architecture"):
        initialisation(FinetuneConfig(data="x", network=NETWORK), tmp_path)


@pytest.mark.parametrize(
    ("start", "method"),
    [({"method": "AnatoMask", "run": "x"}, "AnatoMask"), ({"method": "scratch", "run": None}, "finetuned on pelvis")],
)
def test_a_network_that_was_finetuned_hands_on_the_method_of_its_pretraining(
    start: dict[str, str | None], method: str, tmp_path: Path
) -> None:
    """As on the paper's way to three of its four data sets; else all methods would be one in the tables."""
    header = WHOLE | {"initialisation": start, "dataset": "pelvis"}
    write_weights(tmp_path, {"a": torch.zeros(1)}, header)
    described = initialisation(FinetuneConfig(data="x", init=str(tmp_path), network=NETWORK), tmp_path)
    assert described == {"method": method, "run": str(tmp_path), "dataset": "pelvis", "via": "pelvis"}


def test_a_network_of_more_channels_than_are_normalised_is_refused(tmp_path: Path) -> None:
    """As `export-weights --in-channels 2` writes it, to be finetuned from."""
    two = replace(NETWORK, in_channels=2)
    write_weights(tmp_path, STUNet(two, 2).state_dict(), WHOLE | {"architecture": describe_architecture(two, 2)})
    with pytest.raises(UserError, match=r"reads 2 channels and says how 1 of them is normalised .*finetune from it"):
        read_network(tmp_path)


def test_a_method_that_is_null_is_named(tmp_path: Path) -> None:
    tensors = AnatoMask(AnatoMaskConfig(decoder_width=16), NETWORK).state_dict()
    write_weights(tmp_path, tensors, PRETRAINED | {"method": None})
    with pytest.raises(UserError, match="lacks method"):
        initialisation(FinetuneConfig(data="x", network=NETWORK), tmp_path)
    assert export_weights(read_weights(tmp_path), "monai", ".pt").exported


@pytest.mark.parametrize("ending", [".pth", ".pt"])
@pytest.mark.parametrize("large", [{"base": 4096}, {"widths": [65_536] * 6}, {"depth": 100}])
def test_a_header_of_a_network_that_no_memory_holds_is_refused_for_its_tensors(
    large: Any, ending: str, tmp_path: Path
) -> None:
    described = {**WHOLE["architecture"], **large}
    write_weights(tmp_path, STUNet(NETWORK, 2).state_dict(), {**WHOLE, "architecture": described})
    weights = read_weights(tmp_path)
    uses: list[Callable[[], Any]] = [lambda: build_network(weights), lambda: export_weights(weights, "nnunet", ending)]
    for use in uses:
        with pytest.raises(UserError, match="the weights do not fit the network"):
            use()
    method = AnatoMask(AnatoMaskConfig(decoder_width=16), NETWORK)
    write_weights(tmp_path, method.state_dict(), {**PRETRAINED, "architecture": {**described, "classes": 1}})
    with pytest.raises(UserError, match="the weights do not fit the network"):
        export_weights(read_weights(tmp_path), "nnunet", ending)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 3, 3, 3), (2, 1, 3, 3)])
def test_a_stem_that_is_no_convolution_is_named(shape: tuple[int, ...]) -> None:
    tensors = {f"encoder.stages.0.0.{name}.weight": torch.zeros(shape) for name in ("conv1", "shortcut")}
    with pytest.raises(UserError, match="is no convolution's weight"):
        repeat_stem(tensors, NETWORK, 2)
