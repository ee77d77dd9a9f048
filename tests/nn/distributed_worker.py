"""One worker of `test_distributed.py`: `python distributed_worker.py RANK WORLD FILE`.

Each case is one training step of a small network in float64, then one pass in eval mode, on a worker's share of six
samples. Rank 0 writes what came out into FILE.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.nn.distributed import all_reduce, workers
from anatomask.nn.masked_autoencoder import MaskedAutoencoder
from anatomask.nn.norms import synchronise_norms
from anatomask.nn.recompute import recompute_activations
from anatomask.nn.sparse import Visible

BATCH = 6
SHARES = {
    "equal": {1: [6], 2: [3, 3], 3: [2, 2, 2]},
    "unequal": {1: [6], 2: [4, 2], 3: [1, 2, 3]},
}
"""Samples of each worker, by number of workers."""
CASES = list(product(("hierarchical", "simple"), ("sample", "batch"), ("dense", "blocks"), SHARES))
"""Decoder, norm scope, backend, shares."""


def main() -> None:
    """Run every case."""
    rank, world, file = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}.meeting", rank=rank, world_size=world)
    results = {" ".join(case): step(*case, rank, synchronised=True) for case in CASES}
    results["not synchronised"] = step(*CASES[0], rank, synchronised=False)
    results["all_reduce"] = sums(rank)
    if rank == 0:
        torch.save(results, file)
    distributed.destroy_process_group()


def step(decoder: str, scope: str, backend: str, shares: str, rank: int, synchronised: bool) -> dict[str, Tensor]:
    """Loss, gradients and running statistics of the global batch.

    Where shares are unequal, so are the samples' numbers of visible patches, and activations are computed again.
    """
    torch.manual_seed(0)
    model = MaskedAutoencoder(STUNetConfig(base=2), decoder, 16, scope).double()  # type: ignore[arg-type]
    model.set_sparse_backend(backend)
    synchronise_norms(model, synchronised)
    recompute_activations(model, shares == "unequal")
    volume = torch.randn(BATCH, 1, 16, 32, 32, dtype=torch.float64) * torch.arange(1, BATCH + 1).view(-1, 1, 1, 1, 1)
    visible = torch.tensor([1, 2, 3, 1, 2, 3] if shares == "unequal" else [2] * BATCH)
    active = (torch.rand(BATCH, 4).argsort(1) < visible[:, None]).view(BATCH, 1, 2, 2)

    share = SHARES[shares][workers()]
    mine = slice(sum(share[:rank]), sum(share[: rank + 1]))
    weight = workers() * (~active[mine]).sum().double() / (~active).sum()
    wrapped = DistributedDataParallel(model, forward_sync_buffers=False)
    loss = wrapped(volume[mine], active[mine], None if shares == "unequal" else Visible(2)).loss * weight
    loss.backward()
    found = {"loss": all_reduce(loss.detach()) / workers()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        found[f"gradient {name}"] = parameter.grad
    found |= {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        found["eval"] = all_reduce(model.eval()(volume[mine], active[mine]).patch_loss.sum())
    return found


def sums(rank: int) -> dict[str, Tensor]:
    """`all_reduce` of [1, 2, 3] times rank + 1, and the gradient into it of a loss that weighs it by rank + 1."""
    found: dict[str, Tensor] = {}
    for dtype in (torch.float64, torch.float32, torch.float16):
        x = ((rank + 1) * torch.tensor([1.0, 2.0, 3.0], dtype=dtype)).requires_grad_()
        total = all_reduce(x)
        assert (total is x) == (workers() == 1)
        (gradient,) = torch.autograd.grad((total.expand(2, 3) * (rank + 1)).sum(), x)
        found |= {f"{dtype} total": total.detach(), f"{dtype} gradient": gradient}
    return found


if __name__ == "__main__":
    main()
