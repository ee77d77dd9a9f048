"""All sparse backends compute the same, forward and backward, from the same weights."""

from __future__ import annotations

import builtins
import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anatomask.nn import rows, sparse
from anatomask.nn.backbones import operations
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.nn.backends import BACKENDS, choose_backend
from anatomask.nn.masked_autoencoder import MaskedAutoencoder
from anatomask.nn.norms import NormScope
from anatomask.nn.rows import ActiveBlocks
from anatomask.nn.sparse import Visible, expand_active

GOLDEN = Path(__file__).parents[1] / "golden" / "anatomask"
SPARSE = [name for name in BACKENDS if name != "dense"]
RESENC = ResEncConfig(2, (4, 8, 8, 8, 16, 16), (1, 2, 1, 1, 1, 1))
"""In its skips are: nothing, pooling, a projection, both."""
RESENC_OF_CT = ResEncConfig(1, RESENC.widths, RESENC.blocks)
GRIDS = st.tuples(*[st.integers(1, 3)] * 3)


def _masks(batch: int, grid: tuple[int, ...], share: float, seed: int) -> Tensor:
    """Random; a sample has at least one active patch."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, *grid, generator=generator).flatten(1)
    return ((noise < share) | (noise == noise.amin(1, keepdim=True))).view(batch, *grid)


def _model(
    network: BackboneConfig, decoder: str = "simple", scope: NormScope = "sample", patch: int = 16, width: int = 16
) -> MaskedAutoencoder:
    """Random affine parameters and biases: fresh ones are ones and zeros, which hide mistakes."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(network, decoder, width, scope, patch)  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.5)
    return model


def _everything(
    model: MaskedAutoencoder, backend: str, volume: Tensor, active: Tensor, upstream: list[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The five maps, and the gradients of every encoder parameter for given gradients of the maps."""
    model.set_sparse_backend(backend)
    maps = model.encode(volume, active)
    parameters = dict(model.encoder.named_parameters())
    gradients = torch.autograd.grad(
        sum((x * g).sum() for x, g in zip(maps, upstream, strict=True)),  # type: ignore[arg-type]
        list(parameters.values()),
    )
    return [x.detach() for x in maps], dict(zip(parameters, gradients, strict=True))


def _upstream(batch: int, grid: tuple[int, ...], widths: tuple[int, ...], patch: int = 16) -> list[Tensor]:
    edges = [patch >> stage for stage in range(len(widths))]
    return [torch.randn(batch, w, *(n * e for n in grid)) for w, e in zip(widths, edges, strict=True)]


def _error(mine: tuple[list[Tensor], dict[str, Tensor]], reference: tuple[list[Tensor], dict[str, Tensor]]) -> float:
    """Largest difference of a map or gradient, relative to what that tensor holds.

    Biases before a norm have a gradient of exactly zero, of which the reference keeps rounding: relative to the others.
    """
    largest = max(float(gradient.abs().max()) for gradient in reference[1].values())
    errors = [float((x - y).abs().max() / (1 + y.abs().max())) for x, y in zip(mine[0], reference[0], strict=True)]
    for name, expected in reference[1].items():
        scale = largest if ".conv" in name and name.endswith("bias") else float(expected.abs().max())
        errors.append(float((mine[1][name] - expected).abs().max()) / (1 + scale))
    return max(errors)


@contextmanager
def almost_linear() -> Iterator[None]:
    """Give the leaky ReLU a slope of 0.999 below zero."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (operations, rows, sparse):
            patch.setattr(module, "NEGATIVE_SLOPE", 0.999)
        yield


@pytest.mark.parametrize("backend", SPARSE)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    grid=GRIDS,
    share=st.floats(0.1, 0.9),
    scope=st.sampled_from(["sample", "batch"]),
    network=st.sampled_from([STUNetConfig(2, 4), STUNetConfig(2, 4, depth=2), RESENC]),
    patch=st.sampled_from([8, 16, 32]),
    seed=st.integers(0, 99),
)
def test_same_maps_and_gradients_as_dense(
    backend: str,
    batch: int,
    grid: tuple[int, int, int],
    share: float,
    scope: NormScope,
    network: BackboneConfig,
    patch: int,
    seed: int,
) -> None:
    """In float64, where rounding cannot hide a mistake. spconv, which knows float32 alone: as near as dense is there.

    Samples differ in how many patches they show. In float32, a voxel near zero may fall on the other side of the leaky
    ReLU's kink and change a gradient by a hundredth, so its slopes differ by a thousandth there.
    """
    grid = tuple(min(n, 2) for n in grid) if patch == 32 else grid  # type: ignore[assignment]  # of a bearable size
    with almost_linear() if backend == "spconv" else nullcontext():
        model = _model(network, scope=scope, patch=patch, width=32).double()
        volume = torch.randn(
            batch, 2, *(patch * n for n in grid), generator=torch.Generator().manual_seed(seed)
        ).double()
        active = _masks(batch, grid, share, seed)
        upstream = [x.double() for x in _upstream(batch, grid, model.encoder.widths, patch)]
        reference = _everything(model, "dense", volume, active, upstream)
        tolerance = 1e-7  # one voxel at stride 16 has no variance: 1/sqrt(eps) amplifies
        if backend == "spconv":
            model, volume, upstream = model.float(), volume.float(), [x.float() for x in upstream]
            tolerance = 1e-4 + 20 * _error(_everything(model, "dense", volume, active, upstream), reference)
        assert _error(_everything(model, backend, volume, active, upstream), reference) <= tolerance


@pytest.mark.parametrize("backend", SPARSE)
@pytest.mark.parametrize("decoder", ["simple", "hierarchical"])
@pytest.mark.parametrize("network", [STUNetConfig(base=4), RESENC_OF_CT])
def test_same_reconstruction_loss_and_gradients_in_float32(backend: str, decoder: str, network: BackboneConfig) -> None:
    model = _model(network, decoder)
    active = torch.stack([_masks(1, (3, 2, 4), 0.4, seed)[0] for seed in (1, 2)])
    active[:, 0, 0, 0] = active[:, -1, -1, -1] = True  # active patches touch the border
    volume = torch.randn(2, 1, 48, 32, 64)
    results = []
    for name in ("dense", backend):
        model.set_sparse_backend(name)
        model.zero_grad()
        out = model(volume, active)
        out.loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((out, gradients))
    (expected, theirs), (got, mine) = results
    torch.testing.assert_close(got.reconstruction, expected.reconstruction, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got.patch_loss, expected.patch_loss, rtol=1e-4, atol=1e-5)
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_voxels_are_not_read(backend: str) -> None:
    """Not even where samples differ in how many patches they show, and what is hidden is NaN."""
    model = _model(STUNetConfig(base=4))
    model.set_sparse_backend(backend)
    active = _masks(2, (2, 2, 3), 0.5, 3)
    active[1] = False
    active[1, 0, 0, 0] = True
    volume = torch.randn(2, 1, 32, 32, 48)
    other = torch.where(expand_active(active, 16), volume, torch.nan)
    for a, b in zip(model.encode(volume, active), model.encode(other, active), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(model(volume, active).reconstruction, model(other, active).reconstruction)


@pytest.mark.parametrize("backend", BACKENDS)
def test_published_implementation_agrees(golden: Any, backend: str) -> None:
    from anatomask.weights.foreign import import_anatomask_checkpoint

    numbers = np.load(golden / "b1_depth1.npz")
    model = import_anatomask_checkpoint(golden / "b1_depth1_checkpoint.pt").eval()
    model.set_sparse_backend(backend)
    volume, active = torch.from_numpy(numbers["input"]), torch.from_numpy(numbers["active"])[:, 0]
    names = ["reconstruction_eval", *(f"encoder_stage{stage}_eval" for stage in range(5))]
    with torch.no_grad():
        results = [model(volume, active).reconstruction, *model.encode(volume, active)]
    for name, mine in zip(names, results, strict=True):
        assert np.abs(mine.numpy() - numbers[name]).max() / np.abs(numbers[name]).max() < 1e-4, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_published_encoder_agrees(backend: str) -> None:
    """Its first four stages lie in the repository, so that every clone checks them."""
    numbers = np.load(GOLDEN / "encoder.npz")
    encoder = STUNetConfig(base=8, depth=1).encoder(4).eval()
    encoder.load_state_dict({name: torch.from_numpy(w) for name, w in np.load(GOLDEN / "encoder_weights.npz").items()})
    volume, active = torch.from_numpy(numbers["input"]), torch.from_numpy(numbers["active"])[:, 0]
    with torch.no_grad():
        maps = BACKENDS[backend](encoder, volume, active, "sample", None)
    for stage, (encoded, step) in enumerate(zip(maps, (8, 4, 2, 1), strict=True)):
        mine, theirs = encoded.dense()[..., ::step, ::step, ::step].numpy(), numbers[f"encoder_stage{stage}_eval"]
        assert np.abs(mine - theirs).max() / np.abs(theirs).max() < 1e-4, f"stage {stage}"


@pytest.mark.parametrize("backend", SPARSE)
def test_a_known_number_of_visible_patches_changes_nothing(backend: str) -> None:
    model = _model(STUNetConfig(base=4))
    model.set_sparse_backend(backend)
    active = torch.stack([torch.arange(8).roll(3 * i).view(2, 2, 2) < 3 for i in range(3)])
    volume = torch.randn(3, 1, 32, 32, 32)
    assert torch.equal(model(volume, active, Visible(3)).reconstruction, model(volume, active).reconstruction)


@pytest.mark.parametrize("backend", SPARSE)
def test_more_slots_than_visible_patches_change_nothing(backend: str) -> None:
    """Samples show 2 and 5 patches, and the caller knows that none shows more than 6."""
    model = _model(STUNetConfig(base=4), patch=8).double()
    model.set_sparse_backend(backend)
    active = torch.stack([torch.arange(8).view(2, 2, 2) < number for number in (2, 5)])
    volume = torch.randn(2, 1, 16, 16, 16).double()
    if backend == "spconv":
        model, volume = model.float(), volume.float()
    losses, gradients = [], []
    for visible in (None, Visible(6, same=False)):
        model.zero_grad()
        losses.append(model(volume, active, visible).mean_sample_loss)
        losses[-1].backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-7)
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("patch", [8, 32])
@pytest.mark.parametrize("decoder", ["simple", "hierarchical"])
def test_other_patch_sizes_reconstruct_alike_with_all_backends(decoder: str, patch: int) -> None:
    model = _model(STUNetConfig(base=4), decoder, patch=patch)
    volume, active = torch.randn(1, 1, 64, 32, 32), _masks(1, (64 // patch, 32 // patch, 32 // patch), 0.5, 3)
    losses = []
    for name in BACKENDS:
        model.set_sparse_backend(name)
        result = model(volume, active)
        assert result.reconstruction.shape == volume.shape and result.patch_loss.shape == (1, active[0].numel())
        losses.append(result.loss.item())
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(1, 3),
    grid=GRIDS,
    share=st.floats(0.1, 0.9),
    edge=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_tables_name_the_neighbouring_voxels(
    batch: int, grid: tuple[int, int, int], share: float, edge: int, seed: int
) -> None:
    """Against a padded volume in which each active voxel holds its row's number, looked up one by one."""
    active = _masks(batch, grid, share, seed)
    blocks = ActiveBlocks.of(active)
    rows = batch * blocks.slots * edge**3
    numbers = torch.arange(rows, dtype=torch.float64).view(batch, -1, 1)
    volume = blocks.scatter(numbers, torch.tensor([float(rows)], dtype=torch.float64))
    padded = nn.functional.pad(volume, (edge,) * 6, value=rows)[:, 0]
    table = blocks.table(edge, (-1, edge + 1, 1)).view(batch, blocks.slots, edge + 2, edge + 2, edge + 2)
    for sample in range(batch):
        for slot, patch in enumerate(active[sample].nonzero().tolist()):
            x, y, z = (slice(edge * (p + 1) - 1, edge * (p + 2) + 1) for p in patch)
            assert torch.equal(table[sample, slot].double(), padded[sample, x, y, z])
    coordinates = blocks.coordinates(edge).view(batch, blocks.slots, -1, 4)
    for sample in range(batch):
        used = int(active[sample].sum())
        where = coordinates[sample, :used].reshape(-1, 4).long()
        found = volume[where[:, 0], 0, where[:, 1], where[:, 2], where[:, 3]]
        assert torch.equal(found, numbers[sample, : used * edge**3, 0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_blocks_compute_on_a_gpu_what_dense_does_on_a_cpu() -> None:
    """In float64; widths on both sides of where our transposed convolution computes its own gradients."""
    network, grid = STUNetConfig(widths=(4, 8, 16, 130, 140, 140)), (3, 2, 4)
    model = _model(network).double()
    volume, active = torch.randn(2, 1, *(16 * n for n in grid)).double(), _masks(2, grid, 0.4, 3)
    upstream = [x.double() for x in _upstream(2, grid, model.encoder.widths)]
    expected = _everything(model, "dense", volume, active, upstream)
    maps, gradients = _everything(model.cuda(), "blocks", volume.cuda(), active.cuda(), [x.cuda() for x in upstream])
    mine = [x.cpu() for x in maps], {name: gradient.cpu() for name, gradient in gradients.items()}
    assert _error(mine, expected) <= 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_checkpointing_changes_nothing(backend: str) -> None:
    model = _model(STUNetConfig(base=4))
    model.set_sparse_backend(backend)
    volume, active = torch.randn(2, 1, 32, 32, 32), _masks(2, (2, 2, 2), 0.5, 4)
    gradients = []
    for wrapped in (False, True):
        model.zero_grad()
        call = (lambda v, a: checkpoint(lambda: model(v, a).loss, use_reentrant=False)) if wrapped else (
            lambda v, a: model(v, a).loss
        )  # fmt: skip
        call(volume, active).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend: str) -> None:
    """bfloat16 keeps 8 bits: the loss is near that of float32, the gradients point the same way.

    Of stages 1 to 3: on a CPU, torch 2.13 gives wrong bfloat16 weight gradients for volumes of a few voxels.
    """
    model = _model(STUNetConfig(base=16), "hierarchical")
    model.set_sparse_backend(backend)
    volume, active = torch.randn(2, 1, 32, 32, 48), _masks(2, (2, 2, 3), 0.5, 5)
    results = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(volume, active).loss
        loss.backward()
        gradients = {
            n: p.grad.double().flatten()
            for n, p in nn.ModuleList(model.encoder.parts()[:3]).named_parameters()
            if p.dim() > 1 and p.grad is not None
        }
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
        results.append((loss.item(), gradients))
    (expected, reference), (got, gradients) = results
    assert got == pytest.approx(expected, rel=0.02)
    for name, gradient in gradients.items():
        assert nn.functional.cosine_similarity(gradient, reference[name], dim=0) > 0.9, name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("backend", ["dense", "blocks"])
def test_compiled_model_computes_the_same(backend: str) -> None:
    model = _model(STUNetConfig(base=4))
    model.set_sparse_backend(backend)
    compiled = copy.deepcopy(model)
    compiled.compile()
    for seed in (6, 7):  # the second mask runs what was compiled for the first
        volume, active = (
            torch.randn(2, 1, 32, 32, 32),
            torch.arange(8).roll(seed).view(2, 2, 2)[None].expand(2, 2, 2, 2) < 3,
        )
        losses = []
        for each in (model, compiled):
            each.zero_grad()
            out = each(volume, active, Visible(3))
            out.loss.backward()
            losses.append(out.loss.detach())
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
        for (name, mine), theirs in zip(compiled.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("backend", SPARSE)
def test_two_models_in_one_process(backend: str) -> None:
    one, two = _model(STUNetConfig(base=4)), _model(STUNetConfig(base=4, depth=2))
    one.set_sparse_backend(backend)
    two.set_sparse_backend(backend)
    volume, first, second = torch.randn(1, 1, 32, 32, 32), _masks(1, (2, 2, 2), 0.3, 8), _masks(1, (2, 2, 2), 0.7, 9)
    alone = one(volume, first).loss
    other = two(volume, second).loss
    (alone + other).backward()
    stem = one.get_parameter("encoder.stages.0.0.conv1.weight")
    assert stem.grad is not None
    together = stem.grad.clone()
    one.zero_grad()
    one(volume, first).loss.backward()
    assert torch.equal(together, stem.grad)


def test_without_spconv_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("spconv"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="spconv")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    model = _model(STUNetConfig(base=4))
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'anatomask\[spconv\]'"):
        model.set_sparse_backend("spconv")


@pytest.mark.parametrize(("mask_ratio", "expected"), [(0.6, "blocks"), (0.1, "blocks"), (0.05, "dense")])
def test_the_backend_that_wins_depends_on_the_mask_ratio_alone(mask_ratio: float, expected: str) -> None:
    assert choose_backend(mask_ratio) == expected
