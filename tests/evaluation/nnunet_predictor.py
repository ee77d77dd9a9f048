"""What nnU-Net's own sliding window computes: `python nnunet_predictor.py INPUT.npz OUTPUT.npz` in its environment."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from anatomask.nn.backbones.stunet import STUNetConfig


class Finest(nn.Module):
    """STU-Net that predicts at full resolution alone, as nnU-Net's networks do in inference."""

    def __init__(self, base: int, classes: int) -> None:
        super().__init__()
        self.network = STUNetConfig(base=base).segmenter(classes)

    def forward(self, volume: Tensor) -> Tensor:
        finest: Tensor = self.network(volume)[0]
        return finest


def main() -> None:
    given, found = dict(np.load(sys.argv[1])), {}
    for number, (shape, window) in enumerate(given.pop("grids").tolist()):
        weights = compute_gaussian(tuple(window), dtype=torch.float64, device=torch.device("cpu"))
        found[f"gaussian{number}"] = weights.numpy()
        for axis, starts in enumerate(compute_steps_for_sliding_window(shape, window, 0.5)):
            found[f"starts{number}{axis}"] = np.array(starts)
    volume, window, classes = (given.pop(name) for name in ("volume", "window", "classes"))
    network = Finest(8, int(classes))
    network.network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in given.items()})
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.network, predictor.allowed_mirroring_axes = network, (0, 1, 2)
    predictor.configuration_manager = SimpleNamespace(patch_size=window.tolist())
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=int(classes) + 1)
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(volume))
    found["label"] = logits.argmax(0).numpy().astype(np.uint8)
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
