from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.network import build_network, match_dataset, read_network, require_channel_order
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.weights.files import describe_architecture, write_weights
from anatomask.weights.tensor_files import Weights

CONFIG = STUNetConfig(base=2)


@pytest.fixture
def dataset(make_dataset: Callable[..., PreparedDataset], blobs: Callable[..., np.ndarray]) -> PreparedDataset:
    return make_dataset({"a": blobs((17, 18, 19))})


def header_for(dataset: PreparedDataset, **changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "kind": "segmentation",
        "architecture": describe_architecture(CONFIG, 2),
        "patch_size": [32, 32, 32],
        "mirror_axes": [0, 1, 2],
        "spacing": [2.0, 2.0, 2.0],
        "class_names": {"1": "liver", "2": "spleen"},
        "fingerprint": dataset.fingerprint.to_dict(),
        "initialisation": {"method": "scratch", "run": None},
        **changes,
    }


def test_the_network_comes_back_with_its_weights(dataset: PreparedDataset, tmp_path: Path) -> None:
    network = STUNet(CONFIG, 2).eval()
    write_weights(tmp_path / "w", network.state_dict(), header_for(dataset))
    again = build_network(read_network(tmp_path / "w")).eval()
    volume = torch.randn(1, 1, 32, 32, 32)
    torch.testing.assert_close(again(volume)[0], network(volume)[0])


def test_pretrained_weights_are_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    write_weights(tmp_path / "w", STUNet(CONFIG, 2).state_dict(), header_for(dataset, kind="pretraining"))
    with pytest.raises(UserError, match=r"pretraining weights.*anatomask finetune"):
        read_network(tmp_path / "w")


def test_weights_of_another_size_are_refused(dataset: PreparedDataset) -> None:
    weights = Weights(dict(STUNet(STUNetConfig(base=4), 2).state_dict()), header_for(dataset))
    with pytest.raises(UserError, match="do not fit the network"):
        build_network(weights)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("spacing", {"spacing": [1.5, 2.0, 2.0]}),
        ("classes", {"class_names": {"1": "spleen", "2": "liver"}}),
        ("channels", {"architecture": describe_architecture(STUNetConfig(in_channels=2, base=2), 2)}),
    ],
)
def test_data_that_the_network_was_not_made_for_are_refused(
    dataset: PreparedDataset, field: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=rf"^{field}: runs/x was trained with"):
        match_dataset(header_for(dataset, **changes), dataset, "runs/x")


def test_channels_in_another_order_are_refused() -> None:
    header = {"fingerprint": {"channels": [{"name": "T1"}, {"name": "T2"}]}}
    require_channel_order(header, ("t1", "T2"), "scans")
    require_channel_order(header, ("CT", "PET"), "scans")  # other names, which their own check compares
    with pytest.raises(UserError, match=r"scans has the channels T2, T1, in another order .* trained on T1, T2"):
        require_channel_order(header, ("T2", "T1"), "scans")


def test_another_normalisation_is_refused(dataset: PreparedDataset) -> None:
    (channel,) = dataset.fingerprint.channels
    fingerprint = {"channels": [replace(channel, scheme="zscore").__dict__]}
    with pytest.raises(UserError, match=r"^normalisation: .*zscore.*ct"):
        match_dataset(header_for(dataset, fingerprint=fingerprint), dataset, "runs/x")


def test_the_training_data_normalise_whatever_is_evaluated(dataset: PreparedDataset) -> None:
    (channel,) = dataset.fingerprint.channels
    trained = {"channels": [replace(channel, mean=12.5, std=4.0).__dict__]}
    matched = match_dataset(header_for(dataset, fingerprint=trained), dataset, "runs/x")
    assert matched.normalisation("a")[0, 2:].tolist() == [12.5, 4.0]
    assert dataset.normalisation("a")[0, 2:].tolist() == [0.0, 1.0]
