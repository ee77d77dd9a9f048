"""AnatoMask's step: who is asked, what is hidden, and how the teacher follows."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import Tensor

from anatomask.masking import random_mask
from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig, ema_decay
from anatomask.methods.masked import MaskedBatch
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.nn.masked_autoencoder import MaskedAutoencoder
from anatomask.nn.sparse import Visible

NETWORK = STUNetConfig(base=2)


def _method(**settings: object) -> AnatoMask:
    torch.manual_seed(0)
    return AnatoMask(AnatoMaskConfig(decoder_width=16, **settings), NETWORK)  # type: ignore[arg-type]


def _batch(seed: int = 1) -> MaskedBatch:
    generator = torch.Generator().manual_seed(seed)
    volume = torch.randn(2, 1, 32, 32, 48, generator=generator)
    return MaskedBatch(volume, torch.rand(2, 2, 12, generator=generator))


def _masks(method: AnatoMask, batch: MaskedBatch, progress: float) -> dict[str, Tensor]:
    """The hidden patches (B, n) that each model was shown in one step."""
    seen: dict[str, Tensor] = {}
    forward = MaskedAutoencoder.forward

    def spy(model: MaskedAutoencoder, volume: Tensor, active: Tensor, visible: Visible) -> object:
        shown = active.flatten(1).sum(1)
        assert (shown == visible.most).all() if visible.same else (shown <= visible.most).all()
        seen["student" if model is method.student else "teacher"] = ~active.flatten(1)
        return forward(model, volume, active, visible)

    with mock.patch.object(MaskedAutoencoder, "forward", spy):
        method.training_step(batch, progress)
    return seen


def test_teacher_follows_parameters_and_buffers() -> None:
    method, progress = _method(ema_decay=0.9, ema_decay_final=0.95), 0.125
    optimiser = torch.optim.SGD(method.student.parameters(), lr=0.1)
    assert method.teacher is not None
    before = copy.deepcopy(method.teacher.state_dict())
    method.training_step(_batch(), 1.0).loss.backward()
    optimiser.step()
    method.after_step(progress)
    decay = 0.925  # half-way through the first quarter
    for name, student in method.student.state_dict().items():
        teacher = method.teacher.state_dict()[name]
        expected = decay * before[name] + (1 - decay) * student if student.is_floating_point() else student
        torch.testing.assert_close(teacher, expected, msg=name)
        assert name.startswith(("encoder", "densify", "decoder"))
    assert any(
        "running_var" in name and not torch.equal(method.teacher.state_dict()[name], before[name]) for name in before
    )


@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 0.999), (0.125, 0.99945), (0.25, 0.9999), (0.6, 0.9999), (2, 0.9999)]
)
def test_ema_decay_rises_over_the_first_quarter(progress: float, expected: float) -> None:
    assert ema_decay(progress, AnatoMaskConfig()) == pytest.approx(expected)


def test_teacher_starts_as_the_student_never_trains_and_stays_in_eval_mode() -> None:
    method = _method().train()
    assert method.teacher is not None and not method.teacher.training and method.student.training
    for student, teacher in zip(method.student.parameters(), method.teacher.parameters(), strict=True):
        assert torch.equal(student, teacher)
    result = method.training_step(_batch(), 1.0)
    result.loss.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in method.teacher.parameters())
    assert all(parameter.grad is not None for parameter in method.student.parameters())
    assert not any(scalar.requires_grad for scalar in result.scalars.values())


def test_frozen_teacher_is_another_network_that_stays_as_it_is() -> None:
    method = _method(teacher="frozen").train()
    assert method.teacher is not None
    assert not torch.equal(method.student.decoder.head.weight, method.teacher.decoder.head.weight)
    before = copy.deepcopy(method.teacher.state_dict())
    result = method.training_step(_batch(), 1.0)
    method.after_step(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in method.teacher.state_dict().items())
    assert "ema_decay" not in result.scalars and "teacher_loss" in result.scalars


def test_student_sees_the_hard_patches_of_the_teacher() -> None:
    method, batch = _method(r0=0.5), _batch()
    assert method.teacher is not None
    seen = _masks(method, batch, 0.0)
    first = random_mask(batch.noise[:, 0], 0.6)
    assert torch.equal(seen["teacher"], first)
    with torch.no_grad():
        loss = method.teacher(batch.volume, ~first.view(2, 2, 2, 3)).patch_loss
    hard = loss.topk(3, dim=1).indices  # floor(0.5 * 7)
    assert seen["student"].gather(1, hard).all() and (seen["student"].sum(1) == 7).all()
    assert float(method.training_step(batch, 0.0).scalars["hard_share"]) == pytest.approx(3 / 7)


@pytest.mark.parametrize("significance", ["highest", "lowest"])
@pytest.mark.parametrize("guidance", ["normalised", "raw"])
def test_guidance_and_significance_decide_what_is_hard(guidance: str, significance: str) -> None:
    method, batch = _method(r0=0.5, guidance=guidance, significance=significance), _batch()
    batch.volume[:, :, :16] *= 10  # raw loss ranks the first 6 patches high, normalised loss need not
    assert method.teacher is not None
    first = random_mask(batch.noise[:, 0], 0.6)
    with torch.no_grad():
        guess = method.teacher(batch.volume, ~first.view(2, 2, 2, 3))
    loss = guess.patch_loss if guidance == "normalised" else guess.patch_loss_raw
    loss = torch.where(first, loss if significance == "highest" else -loss, -torch.inf)
    seen = _masks(method, batch, 0.0)["student"]
    for sample in range(2):
        hard = loss[sample].topk(3).indices
        assert seen[sample, hard].all()
        if guidance == "raw":
            assert ((hard < 6) == (significance == "highest")).all()


def test_algorithm_1_counts_more_hard_patches() -> None:
    method, batch = _method(r0=0.5, count="algorithm1"), _batch()
    assert float(method.training_step(batch, 0.0).scalars["hard_share"]) == pytest.approx(6 / 7)  # ceil(0.5 * 12)


def test_teacher_is_not_asked_while_nothing_is_hard() -> None:
    method, batch = _method(), _batch()
    assert set(_masks(method, batch, 0.0)) == {"student"}
    assert set(_masks(method, batch, 0.9)) == {"student", "teacher"}
    scalars = method.training_step(batch, 0.0).scalars
    assert "teacher_loss" not in scalars and float(scalars["hard_share"]) == 0


def test_spark_is_random_masking_without_a_teacher() -> None:
    spark, batch = _method(masking="random"), _batch()
    assert spark.teacher is None and not any(name.startswith("teacher") for name in spark.state_dict())
    assert torch.equal(_masks(spark, batch, 0.9)["student"], random_mask(batch.noise[:, 1], 0.6))
    without_hard = _method(r0=0.0, rT=0.0)
    assert torch.equal(spark.training_step(batch, 0.9).loss, without_hard.training_step(batch, 0.9).loss)
    spark.after_step(0.5)


def test_r_t_grows_with_progress() -> None:
    method, batch = _method(r0=0.1, rT=0.5), _batch()
    for progress, expected in ((0.0, 0.1), (0.5, 0.3), (1.0, 0.5)):
        assert float(method.training_step(batch, progress).scalars["r_t"]) == pytest.approx(expected)


@pytest.mark.parametrize("masking", ["anatomask", "random"])
def test_examination_shows_what_figure_1_shows(masking: str) -> None:
    method = _method(masking=masking).train()
    volume, noise = _batch().volume[:1] * 5 + 3, torch.rand(2, 2, 12)
    picture = method.examine(volume, noise).picture
    assert picture.volume.shape == picture.reconstruction.shape == (1, 32, 32, 48)
    hidden = [random_mask(row, 0.6)[0].view(2, 2, 3) for row in noise[:, :1]]
    assert torch.equal(picture.random_mask, hidden[0]) and picture.self_mask.sum() == 7
    visible = ~hidden[0].repeat_interleave(16, 0).repeat_interleave(16, 1).repeat_interleave(16, 2)[None]
    assert torch.equal(picture.reconstruction[visible], picture.volume[visible])
    model = (method.student if method.teacher is None else method.teacher).eval()
    with torch.no_grad():
        outputs = [model(volume, ~mask[None]) for mask in hidden]
    times = (hidden[0].float() + hidden[1].float()).flatten()
    expected = (outputs[0].patch_loss[0] + outputs[1].patch_loss[0]) / times
    torch.testing.assert_close(picture.patch_loss.flatten(), expected, equal_nan=True)
    hardest = torch.where(times > 0, expected, -1.0).argsort(descending=True)[:3]
    assert picture.self_mask.flatten()[hardest].all()
    patch = tuple(int(i) for i in hidden[0].nonzero()[0])
    x, y, z = (slice(16 * i, 16 * i + 16) for i in patch)
    target = volume[0, 0, x, y, z]
    guess = outputs[0].reconstruction[0, 0, x, y, z] * (target.var() + 1e-6).sqrt() + target.mean()
    torch.testing.assert_close(picture.reconstruction[0, x, y, z], guess, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"r0": 0.5, "rT": 0.0}, {"masking": "random"}, {"teacher": "frozen"}])
def test_examination_asks_as_the_last_step_of_training_would(settings: dict[str, object]) -> None:
    method, noise = _method(**settings), torch.rand(2, 2, 12)
    volume = _batch().volume[:1]
    seen = method.examine(volume, noise)
    with torch.no_grad():
        student = method.student.eval()(volume.expand(2, -1, -1, -1, -1), ~seen.random_masks.view(2, 2, 2, 3))
    assert torch.equal(seen.random_masks, random_mask(noise[:, 0], 0.6))
    assert torch.equal(seen.student_loss.isnan(), ~seen.random_masks)
    assert float(seen.student_loss.nanmean()) == pytest.approx(float(student.loss))
    assert (seen.hard.sum(1) == 3).all() and not (seen.hard & ~seen.self_masks).any()
    if method.teacher is None:
        assert seen.teacher_loss is None
    else:
        batch = MaskedBatch(volume.expand(2, -1, -1, -1, -1), noise)
        hardest = 0.0 if method.config.r0 > method.config.rT else 1.0
        assert torch.equal(seen.self_masks, _masks(method, batch, hardest)["student"])


def test_examination_leaves_training_as_it_was() -> None:
    for training in (True, False):
        method = _method().train(training)
        before, random_state = copy.deepcopy(method.state_dict()), torch.get_rng_state()
        modes = [module.training for module in method.modules()]
        method.examine(_batch().volume[:1], torch.rand(2, 2, 12, generator=torch.Generator().manual_seed(0)))
        assert modes == [module.training for module in method.modules()]
        assert all(torch.equal(before[name], tensor) for name, tensor in method.state_dict().items())
        assert torch.equal(random_state, torch.get_rng_state())


def test_learns_to_reconstruct_a_fixed_volume() -> None:
    method = _method(ema_decay=0.5, ema_decay_final=0.9).train()
    ramp = torch.linspace(-1, 1, 32)
    volume = (ramp[:, None, None] * ramp[None, :, None] + ramp[None, None, :]).expand(2, 1, 32, 32, 32)
    optimiser = torch.optim.AdamW(method.student.parameters(), lr=1e-2)
    losses = []
    for step in range(25):
        batch = MaskedBatch(volume, torch.rand(2, 2, 8, generator=torch.Generator().manual_seed(step)))
        result = method.training_step(batch, step / 25)
        optimiser.zero_grad()
        result.loss.backward()
        optimiser.step()
        method.after_step(step / 25)
        losses.append(float(result.loss.detach()))
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_both_networks_pool_their_norms_over_the_batch_when_told_to() -> None:
    pooled, own = _method(norm_scope="batch"), _method()
    for method, scope in ((pooled, "batch"), (own, "sample")):
        assert method.teacher is not None
        assert method.student.norm_scope == method.teacher.norm_scope == scope
    one, other = (method.training_step(_batch(), 0.0).loss for method in (pooled, own))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("backend", ["dense", "blocks"])
def test_a_step_never_asks_the_device(backend: str) -> None:
    """On the meta device, where there is nothing to read, whatever waits for a value fails."""
    with torch.device("meta"):
        method = AnatoMask(AnatoMaskConfig(decoder_width=16, sparse_backend=backend), NETWORK)  # type: ignore[arg-type]
        batch = MaskedBatch(torch.empty(3, 1, 32, 32, 48), torch.empty(3, 2, 12))
    method.training_step(batch, progress=0.9).loss.backward()
    method.after_step(0.9)
    assert all(parameter.grad is not None for parameter in method.student.parameters())


def test_the_teacher_may_answer_in_half_precision() -> None:
    method, half = _method(r0=0.5), _method(r0=0.5, teacher_precision="bf16")
    types: dict[str, torch.dtype] = {}
    forward = MaskedAutoencoder.forward

    def spy(model: MaskedAutoencoder, *inputs: object) -> object:
        answer = forward(model, *inputs)  # type: ignore[arg-type]
        types["student" if model is half.student else "teacher"] = answer.reconstruction.dtype
        return answer

    with mock.patch.object(MaskedAutoencoder, "forward", spy):
        result = half.training_step(_batch(), 0.0)
    assert types == {"teacher": torch.bfloat16, "student": torch.float32}
    exact = method.training_step(_batch(), 0.0).scalars["teacher_loss"]
    assert float(result.scalars["teacher_loss"]) == pytest.approx(float(exact), rel=0.02)
    result.loss.backward()


@pytest.mark.parametrize("backend", ["dense", "blocks"])
def test_masks_are_drawn_among_the_given_patches_alone(backend: str) -> None:
    method = _method(patch=8, r0=0.5, sparse_backend=backend)
    volume = torch.randn(2, 1, 32, 32, 48)
    noise, among = torch.rand(2, 2, 96), torch.rand(2, 96) < torch.tensor([[0.3], [0.9]])
    fewest = int(among.sum(1).min())
    masks = _masks(method, MaskedBatch(volume, noise, among, fewest), 0.0)
    for hidden in masks.values():
        assert not (hidden & ~among).any()
        assert hidden.sum(1).tolist() == [n - round(0.4 * n) for n in among.sum(1).tolist()]


def test_the_loss_among_some_patches_does_not_depend_on_how_a_batch_is_divided() -> None:
    method = _method(patch=8, masking="random").eval()
    volume, noise = torch.randn(3, 1, 32, 32, 32), torch.rand(3, 2, 64)
    among = torch.rand(3, 64) < torch.tensor([[0.2], [0.5], [0.9]])
    whole = method.training_step(MaskedBatch(volume, noise, among, int(among.sum(1).min())), 0.5).loss
    parts = [
        method.training_step(
            MaskedBatch(volume[k : k + 1], noise[k : k + 1], among[k : k + 1], int(among[k].sum())), 0.5
        ).loss
        for k in range(3)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
