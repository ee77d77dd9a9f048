from __future__ import annotations

import torch
from torch import nn

from anatomask.training.estimate import cost_rows, step_cost


def test_operations_and_memory_of_a_layer_that_can_be_counted_by_hand() -> None:
    with torch.device("meta"):
        layer = nn.Conv3d(4, 8, 3, padding=1, bias=False)
        volume = torch.empty(2, 4, 10, 10, 10)
    cost = step_cost(layer, lambda: layer(volume).square().sum())
    forward = 2 * (27 * 4 * 8) * (2 * 1000)
    assert cost.flops == 2 * forward  # forward and the weight's gradient; the input needs none
    assert cost.state_bytes == 16 * 27 * 4 * 8
    assert cost.activation_bytes == 4 * (2 * 4 * 1000 + 2 * 8 * 1000 + 27 * 4 * 8)  # input, output, weight


def test_the_time_grows_with_the_steps() -> None:
    with torch.device("meta"):
        layer = nn.Conv3d(64, 64, 3, padding=1)
        volume = torch.empty(64, 64, 64, 64, 64)
    rows = dict(cost_rows(step_cost(layer, lambda: layer(volume).sum()), 10**6, 1, "fp32"))
    assert "TFLOP per update" in rows["operations"]
    assert " h on 1 x this machine's" in rows["time"]
