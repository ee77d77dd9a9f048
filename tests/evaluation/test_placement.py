"""Where an evaluation's tasks run, and how much memory each takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from anatomask.data.preprocess import Grid
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.forward import forward_pass
from anatomask.evaluation.placement import (
    TASK_BYTES,
    ForwardPass,
    bytes_to_evaluate,
    bytes_to_predict,
    place,
    too_large,
)
from anatomask.evaluation.settings import InferenceConfig
from anatomask.nn.backbones.stunet import SIZES, STUNet, STUNetConfig
from anatomask.weights.files import describe_architecture
from anatomask.weights.tensor_files import Weights

GIB = 2**30
NODES = [{"CPU": 8.0, "memory": 10.0 * GIB}, {"CPU": 2.0, "GPU": 1.0, "memory": 4.0 * GIB}]


def test_a_small_case_needs_its_logits_and_what_scoring_takes(
    make_dataset: Callable[..., PreparedDataset], blobs: Callable[..., np.ndarray]
) -> None:
    dataset = make_dataset({"a": blobs((40, 30, 20))})
    padded, source, window = 40 * 32 * 32, 40 * 30 * 20, 32**3
    logits = 4 * 3 * window  # as thick as a window, of the 40 voxels
    needed = TASK_BYTES + (logits + 4 * window) + logits + 16 * 3 * 40 * 30 + 10 * padded + (1 + 15) * source
    assert bytes_to_evaluate(dataset, "a", (32, 32, 32), InferenceConfig(), ForwardPass(77, 3)) == needed + 77


def test_a_whole_trunk_with_105_classes_takes_5_gigabytes() -> None:
    """At STU-Net's size B, window and spacing, besides Python and PyTorch."""
    trunk, window = Grid((400, 400, 600), (1.5, 1.5, 1.5)), (112, 112, 128)
    forward = forward_pass([weights_of(SIZES["b"], 104, window)], InferenceConfig())
    assert forward.channels == 32 and GIB < forward.bytes < 3 * GIB
    needed = bytes_to_predict(trunk, trunk.spacing, 1, 1, 104, window, InferenceConfig(), forward)
    assert 3 * GIB < needed - TASK_BYTES < 5.1 * GIB


def weights_of(network: STUNetConfig, classes: int, window: tuple[int, int, int]) -> Weights:
    """Weights without tensors, of which nothing but the header is looked at."""
    header = {
        "architecture": describe_architecture(network, classes),
        "patch_size": list(window),
        "mirror_axes": [0, 1, 2],
    }
    return Weights({}, header)


def test_the_memory_of_networks_is_that_of_parameters_and_of_a_window() -> None:
    """Of two networks one after the other: twice the parameters, and the logits of one more window."""
    window, plain = (32, 32, 32), InferenceConfig(mirror=False)
    one = weights_of(STUNetConfig(base=2), 2, window)
    parameters = 4 * sum(parameter.numel() for parameter in one_network().parameters())
    logits = 4 * 3 * math.prod(window)
    alone = forward_pass([one], plain).bytes
    assert alone > parameters + logits
    assert parameters < forward_pass([one, one], plain).bytes - alone <= parameters + 3 * logits
    assert forward_pass([one], replace(plain, batch=4)).bytes == alone


def one_network() -> STUNet:
    return STUNet(STUNetConfig(base=2), 2)


def test_a_case_that_fits_no_node_is_named_with_its_need() -> None:
    assert place(NODES, 2, gpu=False).room == 10 * GIB
    assert place(NODES, 2).room == 4 * GIB
    refused = too_large({"s1": 11 * GIB, "s2": 10 * GIB}, 10 * GIB)
    assert list(refused) == ["s1"]
    assert "it needs 11.0 GiB of memory to be predicted, and no node has more than 10.0 GiB" in refused["s1"]


def test_memory_counts_where_the_threads_are_too() -> None:
    """The node with most memory has no CPUs for a task, which would wait for ever."""
    nodes = [
        {"CPU": 0.0, "memory": 500.0 * GIB},
        {"CPU": 8.0, "memory": 60.0 * GIB},
        {"CPU": 64.0, "memory": 9.0 * GIB},
    ]
    assert place(nodes, 1).room == 60 * GIB
    assert place(nodes, 1, threads=32).room == 9 * GIB


def test_threads_and_gpu_are_those_asked_for_where_a_node_has_them() -> None:
    assert place(NODES, 2, gpu=False)[:2] == (4, False)
    assert place(NODES, 100)[:2] == (2, True)
    assert place(NODES, 100, gpu=False)[:2] == (1, False)
    crowded = {"CPU": 4.0, "GPU": 4.0, "memory": 1e10}
    assert place([crowded, {"CPU": 64.0, "memory": 1e10}], 9)[:2] == (1, True), "each of its GPUs gets a case"
    assert place(NODES, 100, threads=7, gpu=False)[:2] == (7, False)
    with pytest.raises(UserError, match=r"cluster\.threads: no node has 9 CPUs, the largest has 8"):
        place(NODES, 100, threads=9, gpu=False)
    with pytest.raises(UserError, match=r"cluster\.gpu: the cluster has no GPU"):
        place(NODES[:1], 1, gpu=True)
