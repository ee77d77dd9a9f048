"""nnU-Net's predictor on one scan, run by a Python that has nnunetv2: `inference_nnunet.py FOLDER OUT [float32]`.

FOLDER holds what `inference.py` writes: `scan.nii.gz`, `plans.json`, `dataset.json` and `weights.pth`. The network is
STU-Net with our layers, so that predictors alone are compared. Its kernels are turned, for nnU-Net reads (z, y, x).
nnU-Net sums the logits of windows in half precision; with `float32` it sums in single precision. The last line is JSON:
seconds from file to file, and the peak of the process's memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from anatomask.nn.backbones.stunet import STUNetConfig


class Finest(nn.Module):
    """Network that predicts at full resolution alone, as nnU-Net's do in inference."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, volume: Tensor) -> Tensor:
        """Predict the logits (B, K, D, H, W) of (B, C, D, H, W)."""
        finest: Tensor = self.network(volume)[0]
        return finest


def main() -> None:
    """Predict, and print what it took."""
    folder, out = Path(sys.argv[1]), sys.argv[2]
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
    weights = torch.load(folder / "weights.pth", weights_only=True)
    network = STUNetConfig(**weights["network"]).segmenter(len(dataset["labels"]) - 1)
    for name, tensor in network.state_dict().items():
        tensor.copy_(weights["tensors"][name].transpose(2, 4) if tensor.ndim == 5 else weights["tensors"][name])
    mirrored = tuple(weights["mirror_axes"])
    predictor = nnUNetPredictor(use_mirroring=bool(mirrored), device=torch.device("cpu"), allow_tqdm=False)
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    finest, axes = Finest(network), tuple(2 - axis for axis in mirrored)
    predictor.manual_initialization(finest, manager, configuration, [finest.state_dict()], dataset, "", axes or None)
    threads = torch.get_num_threads()
    if sys.argv[3:] == ["float32"]:
        torch.half = torch.float32  # the type that nnU-Net names for its sums
    start, began = time.perf_counter(), time.process_time()
    predictor.predict_from_files_sequential([[str(folder / "scan.nii.gz")]], [out])
    seconds, cpu = time.perf_counter() - start, time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_gib": peak, "threads": threads}))


if __name__ == "__main__":
    main()
