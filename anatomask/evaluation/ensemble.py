"""Ensembles: several finetuned networks, such as those of folds or seeds, that predict as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anatomask.data.fingerprint import Fingerprint
from anatomask.data.scans import PreparedScan, normalised_by
from anatomask.errors import UserError
from anatomask.evaluation.predictor import Predictor
from anatomask.evaluation.settings import InferenceConfig
from anatomask.weights.files import network_of
from anatomask.weights.tensor_files import Weights


class Ensemble(Predictor):
    """Networks whose softmax is averaged in each window. The windows are then put together as those of one network.

    So several networks need no more memory for logits than one. `logits` returns log-probabilities.
    """

    def __init__(self, members: Sequence[Predictor], fingerprints: Sequence[Fingerprint]) -> None:
        """Take networks that read the same channels at the same spacing, in windows of one size.

        Args:
            members: predictors, one for each network.
            fingerprints: fingerprint by which each network's scans are normalised.
        """
        first = members[0]
        super().__init__(
            torch.nn.ModuleList(member.network for member in members),
            first.patch_size,
            first.classes,
            inference=first.inference,
            device=first.device,
        )
        self.members = tuple(members)
        self.fingerprints = tuple(fingerprints)

    def normalised(self, scan: PreparedScan) -> Tensor:
        """Normalise a scan as each network reads it: (networks · C, D, H, W) float32 on `device`."""
        return torch.cat([normalised_by(scan, own).normalised(self.device) for own in self.fingerprints])

    def predict_windows(self, windows: Tensor) -> Tensor:
        """Turn windows (B, networks · C, d, h, w) into the logarithm of the mean softmax, (B, classes + 1, d, h, w)."""
        parts = windows.chunk(len(self.members), 1)
        total: Tensor | None = None
        for member, part in zip(self.members, parts, strict=True):
            scores = member.window_logits(part).log_softmax(1)
            total = scores if total is None else torch.logaddexp(total, scores)
        assert total is not None
        return total - math.log(len(self.members))


def predictor_of(
    weights: Sequence[Weights], inference: InferenceConfig | None = None, device: torch.device | None = None
) -> Predictor:
    """Build the network of finetuned weights, or the ensemble of several.

    Raises:
        UserError: tensors do not fit the header.
    """
    members = [Predictor.of(one, inference, device) for one in weights]
    if len(members) == 1:
        return members[0]
    return Ensemble(members, [Fingerprint.from_dict(one.header["fingerprint"]) for one in weights])


def require_alike(weights: Sequence[Weights], sources: Sequence[object]) -> None:
    """Check that networks can be averaged: same classes, spacing, channels and windows.

    Raises:
        UserError: one differs from the first; the message names both of `sources`.
    """
    first = _properties(weights[0].header)
    for other, source in zip(weights[1:], sources[1:], strict=True):
        for name, value in _properties(other.header).items():
            if value != first[name]:
                raise UserError(
                    f"{name}: {sources[0]} was trained with {first[name]}, {source} with {value}; give runs of one "
                    "data set and recipe, or one of them"
                )


def _properties(header: Mapping[str, Any]) -> dict[str, Any]:
    channels = Fingerprint.from_dict(header["fingerprint"]).channels
    return {
        "classes": {int(number): name for number, name in header["class_names"].items()},
        "spacing": [round(float(edge), 3) for edge in header["spacing"]],
        "channels": [f"{channel.name} ({channel.scheme})" for channel in channels],
        "number of channels": network_of(header).in_channels,
        "patch size": list(header["patch_size"]),
    }
