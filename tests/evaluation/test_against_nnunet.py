"""Windows, weights and label maps against nnU-Net 2.8.1 itself, with the same weights on the same real scan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from anatomask.data.scans import prepared_scan
from anatomask.data.shards import PreparedDataset
from anatomask.evaluation.predictor import Predictor
from anatomask.evaluation.windows import WindowGrid, gaussian
from anatomask.nn.backbones.base import Segmenter
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.training.losses import segmentation_loss

SCRIPT = Path(__file__).with_name("nnunet_predictor.py")
WINDOW = (32, 32, 48)
CPU = torch.device("cpu")


def trained(volume: Tensor, label: Tensor, classes: int, updates: int = 40) -> Segmenter:
    """A small network after some updates on crops, so that it decides more clearly than one of random weights."""
    torch.manual_seed(0)
    network = STUNetConfig(base=8).segmenter(classes)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    rng = np.random.default_rng(0)
    for _ in range(updates):
        low = [int(rng.integers(extent - edge + 1)) for extent, edge in zip(label.shape, WINDOW, strict=True)]
        box = tuple(slice(start, start + edge) for start, edge in zip(low, WINDOW, strict=True))
        optimiser.zero_grad()
        segmentation_loss(network(volume[:, *box][None]), label[box][None, None]).backward()
        optimiser.step()
    return network.eval()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_label_map_is_that_of_nnunet(head: PreparedDataset, nnunet: Callable[..., dict[str, np.ndarray]]) -> None:
    classes, volume = len(head.class_names), prepared_scan(head, "one").normalised(CPU)
    tissue = np.digitize(head.read_volume("one", label=False)[0][0], (-500, -30, 150))  # air, fat, soft tissue, bone
    network = trained(volume, torch.from_numpy(tissue.astype(np.uint8)), classes)
    grids = [(volume.shape[1:], WINDOW), ((400, 317, 600), (112, 112, 128)), ((41, 47, 53), (13, 15, 11))]
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    theirs = nnunet(SCRIPT, grids=grids, volume=volume.numpy(), window=WINDOW, classes=classes, **tensors)

    for number, (shape, window) in enumerate(grids):
        for axis, starts in enumerate(WindowGrid(tuple(shape), window, 0.5).starts):
            assert starts == theirs[f"starts{number}{axis}"].tolist()
        torch.testing.assert_close(
            gaussian(window, CPU).double(), torch.from_numpy(theirs[f"gaussian{number}"]), rtol=1e-4, atol=0
        )
    ours = Predictor(network, WINDOW, classes, (0, 1, 2)).labels(volume, volume.shape[1:])
    assert len(np.unique(ours)) > 2
    assert (ours != theirs["label"]).mean() < 1e-3
