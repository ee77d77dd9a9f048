"""Time of the gradients of the decoder's transposed convolutions: `python benchmarks/upsampling.py [--quick]`.

They are computed by the library's own way (cuDNN's on a GPU), and by ours (`anatomask.nn.upsampling`), at the levels of
the decoder of each size, from the deepest. The last line is JSON; a ratio of 2 means that ours takes half the time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from measure import PATCH, interleaved, machine, parse, report, setting
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.memory_format import convert_conv3d_weight_memory_format

from anatomask.nn.backbones.stunet import SIZES
from anatomask.nn.masked_autoencoder import MaskedAutoencoder
from anatomask.nn.upsampling import upsample


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    arguments = parse(parser)
    if arguments.compile:
        parser.error("--compile: there is nothing to compile here")
    found: dict[str, dict[str, float]] = {}
    for size in arguments.sizes:
        with torch.device("meta"):
            widths = MaskedAutoencoder(SIZES[size]).decoder.widths
        for level, channels in enumerate(widths):
            edges = [side // PATCH << level for side in arguments.patch]
            found[f"{size.upper()} {channels} at {'x'.join(map(str, edges))}"] = measure(arguments, channels, edges)
    report(
        f"Gradients of transposed convolutions, {setting(arguments)}",
        ["channels", "library ms", "ours ms", "library/ours"],
        [
            [name, *(f"{1e3 * took:.1f}" for took in seconds.values()), f"{seconds['library'] / seconds['ours']:.2f}"]
            for name, seconds in found.items()
        ],
        {
            "library_over_ours": {name: seconds["library"] / seconds["ours"] for name, seconds in found.items()},
            "seconds": found,
            "arguments": vars(arguments),
            "machine": machine(arguments.device),
        },
    )


def measure(arguments: argparse.Namespace, channels: int, edges: list[int]) -> dict[str, float]:
    """Measure the seconds of the gradients of input, weight and bias, by way."""
    dtype = getattr(torch, arguments.dtype)
    layer = nn.ConvTranspose3d(channels, channels, 4, stride=2, padding=1).to(arguments.device, dtype)
    convert_conv3d_weight_memory_format(layer, torch.channels_last_3d)
    shape = (arguments.batch, channels)
    x = torch.randn(*shape, *edges, device=arguments.device, dtype=dtype).to(memory_format=torch.channels_last_3d)
    assert layer.bias is not None
    weights = (x.requires_grad_(), layer.weight, layer.bias)
    grad = torch.randn(*shape, *(2 * edge for edge in edges), device=arguments.device, dtype=dtype)
    grad = grad.to(memory_format=torch.channels_last_3d)
    outputs = {
        "library": functional.conv_transpose3d(*weights, stride=2, padding=1),
        "ours": upsample(*weights, 2),
    }
    calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        name: partial(torch.autograd.grad, output, weights, grad, retain_graph=True) for name, output in outputs.items()
    }
    return interleaved(calls, arguments.rounds, arguments.device)


if __name__ == "__main__":
    main()
