"""Time of the sparse encoder with each backend: `python benchmarks/encoder.py [--quick]`.

Volumes and masks are random; forward, and forward with backward, are timed with the backends in turn. The last line is
JSON, whose ratios are seconds over seconds: `blocks_over_dense` = 2 means that `blocks` takes half the time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from measure import PATCH, interleaved, machine, parse, peak_memory_gib, report, setting
from torch import Tensor
from torch.nn.utils.memory_format import convert_conv3d_weight_memory_format
from torch.utils.flop_counter import FlopCounterMode

from anatomask import masking
from anatomask.nn.backbones.stunet import SIZES, STUNetEncoder
from anatomask.nn.backends import BACKENDS
from anatomask.nn.masked_autoencoder import MaskedAutoencoder
from anatomask.nn.sparse import Visible


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    arguments = parse(parser)
    sizes = {size: measure(arguments, size) for size in arguments.sizes}
    rows = [
        [
            f"{size.upper()} {name}",
            f"{1e3 * found['forward_s'][name]:.0f}",
            f"{found['forward_s']['dense'] / found['forward_s'][name]:.2f}",
            f"{1e3 * found['both_s'][name]:.0f}",
            f"{found['both_s']['dense'] / found['both_s'][name]:.2f}",
            f"{found['gflop'][name]:.0f}" if name in found["gflop"] else "-",
            f"{found['peak_memory_gib'][name]:.2f}" if found["peak_memory_gib"][name] else "-",
        ]
        for size, found in sizes.items()
        for name in found["both_s"]
    ]
    report(
        f"Encoder, {setting(arguments)}",
        ["", "forward ms", "dense/it", "+ backward ms", "dense/it", "GFLOP", "peak GiB"],
        rows,
        {
            **ratios(next(iter(sizes.values()))),
            "sizes": sizes,
            "arguments": vars(arguments),
            "machine": machine(arguments.device),
        },
    )


def ratios(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Compute how many times longer the others take than `blocks`."""
    both, forward = found["both_s"], found["forward_s"]
    result = {
        "blocks_over_dense": both["dense"] / both["blocks"],
        "blocks_over_dense_forward": forward["dense"] / forward["blocks"],
    }
    if "spconv" in both:
        result["blocks_over_spconv"] = both["spconv"] / both["blocks"]
        result["blocks_over_spconv_forward"] = forward["spconv"] / forward["blocks"]
    return result


def measure(arguments: argparse.Namespace, size: str) -> dict[str, dict[str, Any]]:
    """Measure by backend: seconds of forward, and with backward; GFLOP of both; peak memory on a GPU."""
    device, batch = arguments.device, arguments.batch
    model = MaskedAutoencoder(SIZES[size]).to(device)
    convert_conv3d_weight_memory_format(model, torch.channels_last_3d)
    volume = torch.randn(batch, 1, *arguments.patch, device=device)
    grid = [edge // PATCH for edge in arguments.patch]
    patches = grid[0] * grid[1] * grid[2]
    hidden = masking.random_mask(torch.rand(batch, patches, device=device), arguments.mask_ratio)
    visible = Visible(patches - masking.num_hidden(patches, arguments.mask_ratio))
    inputs = (volume, ~hidden.view(batch, *grid), visible)

    forward: dict[str, Callable[[], object]] = {}
    both: dict[str, Callable[[], object]] = {}
    gflop: dict[str, float] = {}
    memory: dict[str, float | None] = {}
    for name in BACKENDS:
        if name == "spconv" and not find_spec("spconv"):
            continue
        encode: Callable[..., list[Tensor]] = partial(values, model, name)
        if name != "spconv":  # its products are not torch's: they can be neither counted nor compiled
            with FlopCounterMode(display=False) as counter:
                run(encode, inputs, arguments.dtype, backward=True)
            gflop[name] = counter.get_total_flops() / 1e9
            encode = torch.compile(encode) if name in arguments.compile else encode
        forward[name] = partial(run, encode, inputs, arguments.dtype, backward=False)
        build = partial(partial, run, encode, inputs, arguments.dtype, backward=True)
        both[name], memory[name] = peak_memory_gib(build, device)
    if arguments.profile:
        for name, call in both.items():
            call()
            print_profile(f"{size.upper()} {name}", call)
    return {
        "forward_s": interleaved(forward, arguments.rounds, device),
        "both_s": interleaved(both, arguments.rounds, device),
        "gflop": gflop,
        "peak_memory_gib": memory,
    }


KINDS = {
    "convolutions": ("convolution", "conv3d", "slow_conv", "conv_transpose", "conv_depthwise", "cudnn", "mkldnn"),
    "matrix products": ("mm", "addmm", "bmm", "linear"),
    "gathering": ("index_select", "index_copy", "gather", "index"),
    "copies": ("copy_", "clone", "contiguous", "fill_", "zero_", "constant_pad_nd"),
}


def print_profile(name: str, call: Callable[[], object]) -> None:
    """Print the share of each operator in the time of one call, in percent of all operators' own time."""
    with torch.profiler.profile() as profiler:
        call()
    spent = dict.fromkeys([*KINDS, "norms, activations, sums"], 0.0)
    for event in profiler.key_averages():
        own = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        operator = event.key.removeprefix("aten::")
        kind = next((kind for kind, names in KINDS.items() if any(n in operator for n in names)), None)
        spent[kind or "norms, activations, sums"] += own
    total = sum(spent.values())
    shares = ", ".join(f"{kind} {100 * own / total:.0f} %" for kind, own in spent.items())
    print(f"{name}, forward and backward: {total / 1e3:.0f} ms: {shares}")


def values(model: MaskedAutoencoder, backend: str, volume: Tensor, active: Tensor, visible: Visible) -> list[Tensor]:
    """Count the values that a backend holds of the five maps."""
    assert isinstance(model.encoder, STUNetEncoder)
    maps = BACKENDS[backend](model.encoder, volume, active, model.norm_scope, visible)
    return [encoded.values for encoded in maps]


def run(encode: Callable[..., list[Tensor]], inputs: tuple[Any, ...], dtype: str, backward: bool) -> None:
    """Make one call, with gradients of all ones for every map where `backward`."""
    device = inputs[0].device.type
    with torch.set_grad_enabled(backward), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        maps = encode(*inputs)
    if backward:
        torch.autograd.backward(maps, [torch.ones_like(x) for x in maps])


if __name__ == "__main__":
    main()
