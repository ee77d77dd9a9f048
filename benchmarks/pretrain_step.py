"""Time of a whole pretraining step: `python benchmarks/pretrain_step.py [--quick]`.

A step is teacher, masking, student, backward, clipping, AdamW and EMA at t/T = 1/2, on a random volume: ours with each
backend, and the published way (`published.py`). All run in turn in one process; first, their losses from the same
weights and masks are compared. The last line is JSON; `step_over_published` is the published way's seconds over ours
with `blocks`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from measure import PATCH, interleaved, machine, matrix_products, parse, peak_memory_gib, report, setting
from published import PublishedStep
from torch import Tensor, nn
from torch.nn.utils.memory_format import convert_conv3d_weight_memory_format
from torch.utils.flop_counter import FlopCounterMode

from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig
from anatomask.methods.masked import MaskedBatch
from anatomask.nn.backbones.stunet import SIZES, STUNetConfig
from anatomask.nn.backends import BACKENDS
from anatomask.training.optimiser import build_optimiser
from anatomask.training.settings import OptimiserConfig

PROGRESS = 0.5
Step = Callable[[], object]


def main() -> None:
    """Measure and print."""
    arguments = parse(argparse.ArgumentParser(description=__doc__))
    sizes = {size: measure(arguments, size) for size in arguments.sizes}
    rows = [
        [
            f"{size.upper()} {name}",
            f"{1e3 * seconds:.0f}",
            f"{found['seconds']['published'] / seconds:.2f}",
            f"{arguments.batch / seconds:.2f}",
            f"{100 * found['share_of_peak'][name]:.0f} %" if name in found["share_of_peak"] else "-",
            f"{found['peak_memory_gib'][name]:.1f}" if found["peak_memory_gib"][name] else "-",
        ]
        for size, found in sizes.items()
        for name, seconds in found["seconds"].items()
    ]
    first = next(iter(sizes.values()))
    ours = "blocks compiled" if "blocks" in arguments.compile else "blocks"
    result: dict[str, object] = {
        "step_over_published": first["seconds"]["published"] / first["seconds"][ours],
        "samples_per_second": arguments.batch / first["seconds"][ours],
        "share_of_peak": first["share_of_peak"][ours],
        "peak_memory_gib": first["peak_memory_gib"][ours],
        "sizes": sizes,
        "arguments": vars(arguments),
        "machine": machine(arguments.device),
    }
    header = ["", "ms", "published/it", "samples/s", "of matrix peak", "peak GiB"]
    report(f"Pretraining step, {setting(arguments)}", header, rows, result)


def measure(arguments: argparse.Namespace, size: str) -> dict[str, Any]:
    """Measure by way of computing: seconds, the achieved share of a matrix product's FLOP/s, peak memory."""
    network, batch = SIZES[size], random_batch(arguments)
    check_same_loss(network, batch)
    ways = {"published": partial(published_step, network, batch, arguments)}
    ways |= {name: partial(our_step, name, network, batch, arguments) for name in BACKENDS}
    if not find_spec("spconv"):
        del ways["spconv"]
    ways |= {
        f"{name} compiled": partial(our_step, name, network, batch, arguments, compiled=True)
        for name in arguments.compile
    }
    steps, memory = {}, {}
    for name, make in ways.items():
        steps[name], memory[name] = peak_memory_gib(make, arguments.device)
    # spconv's products are not torch's: they cannot be counted. Compiled, the work is the same.
    gflop = {name: counted(steps[name]) / 1e9 for name in ("published", "dense", "blocks")}
    gflop |= {name: gflop[name.removesuffix(" compiled")] for name in steps if name.endswith("compiled")}
    products, work = matrix_products(getattr(torch, arguments.dtype), arguments.device)
    seconds = interleaved({**steps, "matrix products": products}, arguments.rounds, arguments.device)
    peak = work / seconds.pop("matrix products")
    return {
        "seconds": seconds,
        "gflop": gflop,
        "share_of_peak": {name: 1e9 * work / seconds[name] / peak for name, work in gflop.items()},
        "matrix_product_tflops": peak / 1e12,
        "peak_memory_gib": memory,
    }


def random_batch(arguments: argparse.Namespace) -> MaskedBatch:
    """Make a batch as the training task makes it: channels last."""
    patches = 1
    for edge in arguments.patch:
        patches *= edge // PATCH
    volume = torch.randn(arguments.batch, 1, *arguments.patch, device=arguments.device)
    noise = torch.rand(arguments.batch, 2, patches, device=arguments.device)
    return MaskedBatch(volume.contiguous(memory_format=torch.channels_last_3d), noise)


def check_same_loss(network: STUNetConfig, batch: MaskedBatch) -> None:
    """Stop unless the published way and ours give the same loss, from the same weights, with norms over the batch."""
    published = PublishedStep(AnatoMaskConfig(), network)
    ours = AnatoMask(AnatoMaskConfig(norm_scope="batch"), network)
    assert ours.teacher
    ours.student.load_state_dict(published.student.model.state_dict())
    ours.teacher.load_state_dict(published.teacher.model.state_dict())
    on_host = MaskedBatch(batch.volume[:1, :, :32, :32, :48].cpu(), batch.noise[:1, :, :12].cpu())
    theirs, mine = published.loss(on_host, PROGRESS), ours.training_step(on_host, PROGRESS).loss
    if not torch.allclose(theirs, mine, rtol=1e-4):
        raise SystemExit(f"the published way's loss is {theirs:.6f}, ours {mine:.6f}: they do not compute the same")


def published_step(network: STUNetConfig, batch: MaskedBatch, arguments: argparse.Namespace) -> Step:
    """Build the published way: contiguous memory."""
    method = PublishedStep(AnatoMaskConfig(), network)
    method.student.to(arguments.device)
    method.teacher.to(arguments.device)
    contiguous = MaskedBatch(batch.volume.contiguous(), batch.noise)
    return whole_step(partial(method.loss, contiguous, PROGRESS), method.student, method.after_step, arguments)


def our_step(
    backend: str, network: STUNetConfig, batch: MaskedBatch, arguments: argparse.Namespace, compiled: bool = False
) -> Step:
    """Build `AnatoMask`, prepared as the training task prepares it."""
    method = AnatoMask(AnatoMaskConfig(), network).to(arguments.device)
    convert_conv3d_weight_memory_format(method, torch.channels_last_3d)
    method.set_sparse_backend(backend)
    if compiled:
        method.student.compile()
        assert method.teacher
        method.teacher.compile()
    return whole_step(lambda: method.training_step(batch, PROGRESS).loss, method.student, method.after_step, arguments)


def whole_step(
    loss: Callable[[], Tensor], student: nn.Module, after: Callable[[float], None], arguments: argparse.Namespace
) -> Step:
    """Run forward, backward, clipping, AdamW and EMA."""
    config = OptimiserConfig()
    optimiser = build_optimiser(student, config)

    def step() -> None:
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
            value = loss()
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(student.parameters(), config.clip)
        optimiser.step()
        after(PROGRESS)

    return step


def counted(step: Step) -> int:
    """Count the FLOPs of one call."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
