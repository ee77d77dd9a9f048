"""Checkpoints as others write them, for tests of reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def save_stunet(path: Path, tensors: dict[str, Any], plans: dict[str, Any] | None = None) -> Path:
    """As nnU-Net's version 1 (`.model`) or 2 saves, with what lies beside the tensors there."""
    scores = [np.float32(0.5), np.float64(0.25)]
    extra: dict[str, Any]
    if path.suffix == ".model":
        extra = {"epoch": 4000, "optimizer_state_dict": None, "plot_stuff": (scores, [], [], scores), "best_stuff": ()}
        torch.save({"state_dict": tensors, **extra}, path)
    else:
        extra = {"logging": {"mean_fg_dice": scores}, "_best_ema": scores[0], "current_epoch": np.int64(3)}
        init = {"plans": plans or {}, "configuration": "3d_fullres", "device": torch.device("cuda")}
        torch.save({"network_weights": tensors, "init_args": init, "trainer_name": "STUNetTrainer", **extra}, path)
    return path


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def forge(right: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**right, **changes}.items() if value is not None}
