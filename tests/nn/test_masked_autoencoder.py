"""The masked autoencoder agrees with the published implementation and lets nothing hidden through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.nn.masked_autoencoder import MaskedAutoencoder, normalise_patches, patch_statistics
from anatomask.nn.sparse import expand_active, masked_instance_norm
from anatomask.weights.foreign import import_anatomask_checkpoint

TOLERANCE = 1e-4
GRADIENTS = {
    "sparse_encoder.sp_cnn.conv_blocks_context.0.0.conv1.weight": "encoder.stages.0.0.conv1.weight",
    "sparse_encoder.sp_cnn.conv_blocks_context.4.0.conv2.weight": "encoder.stages.4.0.conv2.weight",
    "dense_decoder.dec.0.up_sample.weight": "decoder.levels.0.upsample.weight",
    "dense_decoder.proj.weight": "decoder.head.weight",
    "mask_tokens.0": "densify.0.token",
}
TINY = STUNetConfig(base=2)


def _agrees(mine: Tensor, theirs: np.ndarray) -> bool:
    return float(np.abs(mine.detach().numpy() - theirs).max() / np.abs(theirs).max()) < TOLERANCE


def _active(*shape: int, seed: int = 0, share: float = 0.4) -> Tensor:
    active = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share
    active[:, 0, 0, 0], active[:, -1, -1, -1] = True, False
    return active


def test_agrees_with_the_published_implementation_in_eval_mode(golden: Path) -> None:
    numbers = np.load(golden / "b1_depth1.npz")
    model = import_anatomask_checkpoint(golden / "b1_depth1_checkpoint.pt").eval()
    volume, active = torch.from_numpy(numbers["input"]), torch.from_numpy(numbers["active"])[:, 0]
    with torch.no_grad():
        out = model(volume, active)
        for stage, encoded in enumerate(model.encode(volume, active)):
            assert _agrees(encoded, numbers[f"encoder_stage{stage}_eval"]), f"stage {stage}"
    assert _agrees(out.reconstruction, numbers["reconstruction_eval"])
    assert _agrees(out.patch_loss, numbers["patch_loss_eval_normalized"])
    assert _agrees(out.patch_loss_raw, numbers["patch_loss_eval_raw"])


@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_agrees_with_the_published_implementation_in_training(golden: Path, scope: str) -> None:
    numbers = np.load(golden / "b1_depth1.npz")
    model = import_anatomask_checkpoint(golden / "b1_depth1_checkpoint.pt", norm_scope=scope).train()  # type: ignore[arg-type]
    out = model(torch.from_numpy(numbers["input"]), torch.from_numpy(numbers["active"])[:, 0])
    out.loss.backward()
    assert _agrees(out.reconstruction, numbers["reconstruction_train"])
    assert _agrees(out.loss, numbers["loss_train"])
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    norm = torch.stack([gradient.double().square().sum() for gradient in gradients.values() if gradient is not None])
    assert None not in gradients.values()
    assert _agrees(norm.sum().sqrt(), numbers["grad_norm"])
    for theirs, mine in GRADIENTS.items():
        gradient = gradients[mine]
        assert gradient is not None and _agrees(gradient, numbers[f"grad__{theirs}"]), mine


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("decoder", ["hierarchical", "simple"])
def test_hidden_voxels_change_nothing(training: bool, decoder: str) -> None:
    model = MaskedAutoencoder(TINY, decoder, 32).train(training)  # type: ignore[arg-type]
    active = _active(2, 2, 3, 2)
    volume = torch.randn(2, 1, 32, 48, 32)
    visible = expand_active(active, 16)
    for hidden in (torch.randn_like(volume), torch.full_like(volume, 1e6), torch.full_like(volume, torch.nan)):
        other = torch.where(visible, volume, hidden)
        for a, b in zip(model.encode(volume, active), model.encode(other, active), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(model(volume, active).reconstruction, model(other, active).reconstruction)


def test_visible_voxels_matter_only_in_their_sample() -> None:
    model = MaskedAutoencoder(TINY, decoder_width=16).eval()
    active = _active(2, 2, 2, 2)
    volume = torch.randn(2, 1, 32, 32, 32)
    other = volume.clone()
    other[1] += 1 + volume[1].square()
    mine, theirs = model(volume, active).reconstruction, model(other, active).reconstruction
    assert torch.equal(mine[0], theirs[0]) and not torch.allclose(mine[1], theirs[1])
    model.norm_scope = "batch"
    assert not torch.allclose(model(volume, active).reconstruction[0], model(other, active).reconstruction[0])


def test_maps_are_zero_where_hidden() -> None:
    active = _active(2, 2, 2, 3)
    maps = MaskedAutoencoder(TINY).encode(torch.randn(2, 1, 32, 32, 48), active)
    for x, factor in zip(maps, (16, 8, 4, 2, 1), strict=True):
        mask = expand_active(active, factor).expand_as(x)
        assert (x[~mask] == 0).all() and (x[mask] != 0).float().mean() > 0.9


def test_all_patches_visible_is_the_ordinary_encoder() -> None:
    model = MaskedAutoencoder(STUNetConfig(base=2, depth=2))
    volume = torch.randn(2, 1, 32, 32, 32)
    active = torch.ones(2, 2, 2, 2, dtype=torch.bool)
    for sparse, ordinary in zip(model.encode(volume, active), model.encoder(volume), strict=True):
        torch.testing.assert_close(sparse, ordinary, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_instance_norm_counts_active_voxels_only(scope: str) -> None:
    """Values and gradients against numpy's and autograd's own, on the voxels picked out one by one."""
    norm = torch.nn.InstanceNorm3d(3, eps=1e-2, affine=True).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    mask = expand_active(_active(2, 2, 2, 2, share=0.6), 2).double()
    x = (torch.randn(2, 3, 4, 4, 4).double() * 3 + 50).requires_grad_()
    upstream = torch.randn(2, 3, 4, 4, 4).double() * mask
    got = masked_instance_norm(x, mask, norm, scope)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad((got * upstream).sum(), x)

    y = x.detach().clone().requires_grad_()
    samples = [[0], [1]] if scope == "sample" else [[0, 1]]
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        for channel in range(3):
            inside = mask[sample, 0].bool()
            values = y[sample, channel][inside]
            expected = (values - values.mean()) / (values.var(unbiased=False) + 1e-2).sqrt()
            expected = expected * norm.weight[channel] + norm.bias[channel]
            np.testing.assert_allclose(got[sample, channel][inside].detach(), expected.detach(), rtol=1e-6, atol=1e-6)
            total = total + (expected * upstream[sample, channel][inside]).sum()
    (by_hand,) = torch.autograd.grad(total, y)
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-5, atol=1e-6)


def test_loss_is_the_mean_over_hidden_patches_of_the_normalised_target() -> None:
    model = MaskedAutoencoder(TINY, decoder_width=16)
    active = _active(2, 2, 2, 2)
    volume = torch.randn(2, 1, 32, 32, 32) * 3 + 1
    out = model(volume, active)
    losses = np.zeros((2, 8))
    raw = np.zeros((2, 8))
    for sample in range(2):
        for index, (i, j, k) in enumerate(np.ndindex(2, 2, 2)):
            if active[sample, i, j, k]:
                continue
            x, y, z = (slice(16 * a, 16 * a + 16) for a in (i, j, k))
            patch = volume[sample, 0, x, y, z].double().numpy()
            guess = out.reconstruction[sample, 0, x, y, z].detach().double().numpy()
            raw[sample, index] = ((guess - patch) ** 2).mean()
            target = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
            losses[sample, index] = ((guess - target) ** 2).mean()
    np.testing.assert_allclose(out.patch_loss.detach(), losses, rtol=1e-4)
    np.testing.assert_allclose(out.patch_loss_raw.detach(), raw, rtol=1e-4)
    np.testing.assert_allclose(out.loss.detach(), losses.sum() / (losses > 0).sum(), rtol=1e-4)


def test_targets_can_be_turned_back_into_intensities() -> None:
    volume = torch.randn(1, 2, 32, 16, 16) * 7 + 3
    mean, deviation = patch_statistics(volume, 16)
    torch.testing.assert_close(normalise_patches(volume, 16) * deviation + mean, volume, atol=1e-4, rtol=1e-4)


def test_two_models_live_side_by_side() -> None:
    volume = torch.randn(1, 1, 32, 32, 32)
    one, two = MaskedAutoencoder(TINY).eval(), MaskedAutoencoder(TINY).eval()
    first, second = _active(1, 2, 2, 2, seed=1), _active(1, 2, 2, 2, seed=2)
    assert not torch.equal(first, second)
    alone = one(volume, first)
    other = two(volume, second)
    assert torch.equal(one(volume, first).reconstruction, alone.reconstruction)
    (alone.loss + other.loss).backward()  # the backward of one does not see the mask of the other
    stem = one.get_parameter("encoder.stages.0.0.conv1.weight")
    assert stem.grad is not None
    gradient = stem.grad.clone()
    one.zero_grad()
    one(volume, first).loss.backward()
    torch.testing.assert_close(gradient, stem.grad)


@pytest.mark.parametrize(
    ("volume", "active", "what"),
    [
        (torch.zeros(1, 1, 30, 32, 32), torch.ones(1, 2, 2, 2, dtype=torch.bool), "multiples of 16"),
        (torch.zeros(1, 1, 32, 32, 32), torch.ones(1, 2, 2, 3, dtype=torch.bool), "active must be bool of shape"),
        (torch.zeros(1, 1, 32, 32, 32), torch.ones(1, 2, 2, 2), "active must be bool"),
    ],
)
def test_wrong_shapes_are_refused(volume: Tensor, active: Tensor, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        MaskedAutoencoder(TINY)(volume, active)


def test_unknown_choices_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="sparse backend must be one of dense"):
        MaskedAutoencoder(TINY).set_sparse_backend("magic")
    with pytest.raises(ValueError, match="decoder must be one of hierarchical, simple"):
        MaskedAutoencoder(TINY, "magic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decoder_width must be a multiple of 16"):
        MaskedAutoencoder(TINY, decoder_width=24)
