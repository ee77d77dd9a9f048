"""Memory of the networks, and of a window on its way through them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from anatomask.data.fingerprint import Fingerprint
from anatomask.evaluation.ensemble import Ensemble
from anatomask.evaluation.placement import ForwardPass
from anatomask.evaluation.predictor import Predictor, evaluating, mirror_axes
from anatomask.evaluation.settings import InferenceConfig
from anatomask.nn.live_bytes import LiveBytes
from anatomask.weights.files import network_of
from anatomask.weights.tensor_files import Weights


def forward_pass(weights: Sequence[Weights], inference: InferenceConfig) -> ForwardPass:
    """Count the bytes of networks and of all tensors at the peak of a window, as on a CPU, and what is kept of a voxel.

    The window is computed on tensors that have shapes but no numbers, in a second or so.
    """
    headers = [one.header for one in weights]
    with torch.device("meta"):
        networks = [network_of(header).segmenter(header["architecture"]["classes"]) for header in headers]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        for network in networks:
            network.to_empty(device="cpu")
        members = [
            Predictor(
                network,
                header["patch_size"],
                header["architecture"]["classes"],
                mirror_axes(header, inference)[:1],  # more mirrorings take more time, and no more memory
                inference,
            )
            for network, header in zip(networks, headers, strict=True)
        ]
        predictor = Ensemble(members, [Fingerprint(())] * len(members)) if len(members) > 1 else members[0]
        kept = list(chain(predictor.network.parameters(), predictor.network.buffers()))
        channels = sum(network_of(header).in_channels for header in headers)
        with evaluating(predictor.network), LiveBytes(kept) as live:
            predictor.predict_windows(torch.empty(1, channels, *predictor.patch_size))
    peak = live.peak + sum(tensor.numel() * tensor.element_size() for tensor in kept)
    return ForwardPass(peak, predictor.channels)
