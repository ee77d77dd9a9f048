"""Iterations of nnU-Net's own trainer, run by a Python that has nnunetv2, for `finetune_step.py`.

Its network is STU-Net with our layers. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from measure import per_iteration
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from anatomask.nn.backbones.stunet import STUNetConfig

DATASET, DATA = "Dataset001_Bench", "crops"


class Trainer(nnUNetTrainer):
    """nnU-Net's trainer of an STU-Net."""

    base: int

    def build_network_architecture(
        self, plans_manager: Any, configuration_manager: Any, channels: int, outputs: int, deep_supervision: bool = True
    ) -> nn.Module:
        """Build our network, whose outputs begin with the finest, as nnU-Net's do."""
        return STUNetConfig(base=self.base, in_channels=channels).segmenter(outputs - 1)


def main() -> None:
    """Train for some iterations, and print what one takes."""
    parser = argparse.ArgumentParser()
    for name, kind in (("folder", Path), ("base", int), ("iterations", int), ("device", str)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--size", type=int, nargs=3)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    place = arguments.folder / DATASET / DATA
    if not place.exists():
        place.parent.mkdir()
        place.symlink_to(arguments.folder / "nnunet")
    labels = {"background": 0, "body": 1, "bone": 2}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    Trainer.base = arguments.base
    trainer = Trainer(plans(arguments.size), "3d_fullres", "all", dataset, torch.device(arguments.device))
    trainer.initialize()
    batches, _ = trainer.get_dataloaders()
    trainer.network.train()
    step = trainer.train_step
    print("\n" + json.dumps(per_iteration(batches, step, arguments.iterations, arguments.device)), flush=True)
    os._exit(0)  # its loaders' processes would be waited for


def plans(size: list[int]) -> dict[str, Any]:
    """Return nnU-Net's plans for our network."""
    halved = [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 1, 1]]
    configuration = {
        "data_identifier": DATA,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": size,
        "median_image_size_in_voxels": size,
        "spacing": [1.5, 1.5, 1.5],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "architecture": {"network_class_name": "none", "arch_kwargs": {"strides": halved}, "_kw_requires_import": []},
    }
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "continue_training": False,
    }


if __name__ == "__main__":
    main()
