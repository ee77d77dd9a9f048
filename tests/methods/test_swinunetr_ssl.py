"""Swin UNETR pretraining: the published code's numbers, its cut-outs, and workers that compute what one computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anatomask.config import PretrainConfig
from anatomask.data.cutouts import MOST_CUT, Plan, TurnedViewsDraw, cut, random_boxes, turned, unit_crops
from anatomask.data.samples import LoaderConfig
from anatomask.data.shards import PreparedDataset
from anatomask.errors import Note
from anatomask.methods import swinunetr_ssl
from anatomask.methods.swinunetr_ssl import HeadedTransformer, SwinUNETRSSL, SwinUNETRSSLConfig, Views, nt_xent
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.swin_unetr import SwinUNETRConfig
from anatomask.training.schedule import rate_of_update
from anatomask.training.settings import OptimiserConfig
from anatomask.weights.files import describe_architecture, initialise
from anatomask.weights.foreign import read_foreign_weights
from anatomask.weights.tensor_files import Weights
from tests.methods.drawn import drawn_batch
from tests.published import Published

pytest.importorskip("einops", reason="MONAI's Swin transformer needs it")

SETTINGS = SwinUNETRSSLConfig()
NETWORK = SwinUNETRConfig(feature_size=6, depths=(1, 1, 1, 1), window=4)
LOADER = LoaderConfig(patch_size=(64, 32, 32))
RENAMES = {
    "swinViT.": "encoder.swinViT.",
    "rotation_head.": "rotation.",
    "contrastive_head.": "contrast.",
    "conv.": "reconstruction.",
}


def renamed(name: str) -> str:
    """Our name of a tensor of the published implementation."""
    return next(ours + name.removeprefix(theirs) for theirs, ours in RENAMES.items() if name.startswith(theirs))


def network_of(numbers: Published, **fields: object) -> SwinUNETRConfig:
    sizes = numbers.sizes
    assert sizes["patch"] == 2
    return SwinUNETRConfig(
        in_channels=sizes["input"][1],
        feature_size=sizes["feature_size"],
        depths=tuple(sizes["depths"]),
        attention_heads=tuple(sizes["heads"]),
        window=sizes["window"],
        **fields,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance", "of_gradients"), [(torch.float64, 1e-6, 1e-6), (torch.float32, 1e-4, 1e-3)]
)
def test_golden_numbers_of_the_published_code(
    published: Callable[[str], AbstractContextManager[Published]],
    dtype: torch.dtype,
    tolerance: float,
    of_gradients: float,
) -> None:
    with published("swinunetr_ssl") as numbers:
        check_losses_alone(numbers, dtype, tolerance)
        check_schedule(numbers)
        if numbers.leaves_out("_checkpoint.pt"):
            return
        tensors = {renamed(name): t for name, t in numbers.weights("_checkpoint.pt")["state_dict"].items()}  # type: ignore[attr-defined]
        first, second = (numbers.given(f"view{view}", dtype) / 16 for view in (1, 2))
        whole = torch.cat([numbers.given(f"target{view}", dtype) / 16 for view in (1, 2)])
        batch = Views(torch.cat((first, second)), whole, numbers.given("rot_labels_net", torch.long))
        for merging, suffix in (("all", "__monai16"), ("repeated", "__monai09")):
            network = HeadedTransformer(network_of(numbers, patch_merging=merging))
            state = network.state_dict()
            network.load_state_dict({**state, **tensors})
            left = state.keys() - tensors.keys()
            assert all(name.endswith("relative_position_index") for name in left) and tensors.keys() < state.keys()
            for name in left:
                numbers.agrees("relative_position_index", state[name], 0)
            method = SwinUNETRSSL(network.to(dtype), SETTINGS)
            check_network(numbers, method, batch, suffix, tolerance, of_gradients)


def check_network(
    numbers: Published, method: SwinUNETRSSL, batch: Views, suffix: str, tolerance: float, of_gradients: float
) -> None:
    found: dict[str, Any] = {}
    method.network.encoder.register_forward_hook(lambda module, given, maps: found.update(maps=maps))
    method.network.register_forward_hook(lambda module, given, outputs: found.update(outputs=outputs))
    result = method.training_step(batch, 0.0)
    samples = len(batch.cut) // 2
    for number, encoded in enumerate(found["maps"]):
        shown = encoded[:1] if number else encoded[:1, :, ::2, ::2, ::2]
        numbers.agrees(f"view1_sample0_hidden{number}{suffix}", shown, tolerance)
    logits, vectors, reconstruction = found["outputs"]
    numbers.agrees(f"rotation_logits{suffix}", logits, tolerance)
    numbers.agrees(f"contrastive_view1{suffix}", vectors[:samples], tolerance)
    numbers.agrees(f"contrastive_view2{suffix}", vectors[samples:], tolerance)
    for start, shown in (
        ("reconstruction_view1_sample0_last_axis_every2", reconstruction[:1, ..., ::2]),
        ("reconstruction_view2_every2", reconstruction[samples:, :, ::2, ::2, ::2]),
    ):
        if start + suffix in numbers.arrays:
            numbers.agrees(start + suffix, shown, tolerance)
    result.loss.backward()
    parts = [result.scalars[f"{name}_loss"] for name in ("rotation", "contrast", "reconstruction")]
    numbers.agrees(f"loss_total_rot_contrast_recon{suffix}", torch.stack([result.loss, *parts]), tolerance)
    gradients = {name: p.grad for name, p in method.network.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(method.network.parameters()))
    norms = torch.stack([gradient.norm() for gradient in gradients.values()])
    numbers.agrees(f"grad_norm{suffix}", norms.norm(), of_gradients)
    for name in (name for name in numbers.names("grad__") if name.endswith(suffix)):
        numbers.agrees(f"grad__{name}", gradients[renamed(name.removesuffix(suffix))], of_gradients)


def check_losses_alone(numbers: Published, dtype: torch.dtype, tolerance: float) -> None:
    """The losses of given outputs, and the rotation."""
    given = {name: numbers.given(f"given_{name}", dtype) for name in ("rot_logits", "recon", "target")}
    vectors = torch.cat([numbers.given(f"given_contrastive{view}", dtype) for view in (1, 2)])
    assert len(vectors) == 2 * numbers.sizes["given_batch"]
    batch = Views(given["recon"], given["target"], numbers.given("given_rot_labels", torch.long))
    method = SwinUNETRSSL(torch.nn.Identity(), SETTINGS)  # type: ignore[arg-type]
    losses = torch.stack(list(method.losses(given["rot_logits"], vectors, given["recon"], batch).values()))
    numbers.agrees("given_total_rot_contrast_recon", torch.cat((losses.sum()[None], losses)), tolerance)
    volumes, turns = numbers.given("rot_input", dtype), numbers.given("rot_labels", torch.long).tolist()
    found = torch.stack([turned(volume, one) for volume, one in zip(volumes, turns, strict=True)])
    numbers.agrees("rot_output", found, 0)


def check_schedule(numbers: Published) -> None:
    warmup, total = numbers.given("lr_warmup_total", torch.long).tolist()
    schedule = OptimiserConfig(**{**SETTINGS.optimiser, "lr": 1.0, "warmup_updates": warmup})
    updates = range(len(numbers.arrays["lr_factor_by_step"]))
    rates = [rate_of_update(update, 1, total, schedule) or 0.0 for update in updates]
    numbers.agrees("lr_factor_by_step", torch.tensor(rates, dtype=torch.float64), 1e-9)
    in_epochs = [rate_of_update(update, 5, total // 5, schedule) or 0.0 for update in updates]
    assert in_epochs == pytest.approx(rates, abs=1e-12)


def test_golden_checkpoint_is_imported_and_starts_a_network(
    published: Callable[[str], AbstractContextManager[Published]],
) -> None:
    with published("swinunetr_ssl") as numbers:
        numbers.unread.clear()
        if numbers.leaves_out("_checkpoint.pt"):
            pytest.skip(f"{numbers.folder} holds no checkpoint")
        with pytest.warns(Note, match="before 1.5"):
            foreign = read_foreign_weights(numbers.folder / f"{numbers.sizes['prefix']}_checkpoint.pt")
        assert (foreign.kind, foreign.network, foreign.stages) == ("pretraining", network_of(numbers), 5)
        assert not foreign.missing
        assert {name.split(".")[0] for name, _ in foreign.left_out} == {"rotation_head", "contrastive_head", "conv"}
        header = {"kind": "pretraining", "architecture": describe_architecture(foreign.network), "stages": 5}
        network = foreign.network.segmenter(13)
        weights = Weights({f"student.{name}": tensor for name, tensor in foreign.tensors.items()}, header)
        left_out = initialise(network, weights)
        assert not any(name.startswith("encoder.") for name in left_out)
        theirs = numbers.weights("_checkpoint.pt")["state_dict"]
        state = network.state_dict()
        trained = {name: tensor for name, tensor in theirs.items() if name.startswith("swinViT.")}  # type: ignore[attr-defined]
        assert all(torch.equal(state[f"encoder.{name}"], tensor) for name, tensor in trained.items())
        assert len(state) - len(left_out) == len(trained) + sum(numbers.sizes["depths"])


def test_boxes_are_as_large_and_as_many_as_published() -> None:
    """The facts that were measured on the published code: 13.6 % of 96³ on average, at most 27 %."""
    size = (96, 96, 96)
    shares = []
    for seed in range(120):
        boxes = random_boxes(size, np.random.default_rng(seed))
        covered = np.zeros(size, bool)
        for box in boxes:
            covered[box] = True
            for side, edge in zip(box, size, strict=True):
                assert 0 <= side.start < edge - int(0.05 * edge) and side.stop <= edge
                assert side.stop == edge or int(0.05 * edge) <= side.stop - side.start < int(0.25 * edge)
        volumes = [math.prod(side.stop - side.start for side in box) for box in boxes]
        assert sum(volumes[:-1]) < MOST_CUT * math.prod(size)
        shares.append(covered.mean())
    assert np.mean(shares) == pytest.approx(0.136, abs=0.02)
    assert max(shares) < 0.29


def in_place(views: Tensor, plans: list[Plan]) -> Tensor:
    """The published order: one loop through the batch that changes it in place."""
    batch = views.clone()
    for place, plan in enumerate(plans):
        alone = cut([batch[place]], [replace(plan, partner=0)], [0])[0]
        batch[place] = alone
        if plan.partner != place:
            for box in plan.foreign:
                batch[(place, slice(None), *box)] = batch[(plan.partner, slice(None), *box)]
    return batch


def test_partners_that_come_first_are_cut_already() -> None:
    views = 2 + torch.arange(5.0).view(-1, 1, 1, 1, 1) + torch.zeros(5, 2, 64, 32, 32)
    chains = 0
    for batch in range(4):
        plans = [Plan.of(5 * batch + place, (64, 32, 32), 5) for place in range(5)]
        found = cut(list(views), plans, range(5))
        assert torch.equal(torch.stack(found), in_place(views, plans))
        assert torch.equal(cut(list(views), plans, [3])[0], found[3])
        chains += sum(plan.partner < place for place, plan in enumerate(plans))
        for view, plan in zip(found, plans, strict=True):
            for box in plan.noise[-1:] if plan.partner == plans.index(plan) else ():
                assert view[:, *box].min() == 0 and view[:, *box].max() == 1
    assert chains
    assert torch.equal(views[0], torch.full((2, 64, 32, 32), 2.0)), "the views themselves stay whole"


def test_views_of_a_real_scan(head_scan: PreparedDataset) -> None:
    sample = drawn_batch(head_scan, TurnedViewsDraw(LOADER), range(4))
    method = SETTINGS.build(NETWORK)
    views, again = method.batch(sample), method.batch(sample)
    assert torch.equal(views.cut, again.cut)
    crops, low, extent = unit_crops(sample)
    assert 0 <= crops.min() < 0.01 < 0.5 < crops.max() <= 1
    for place, turns in enumerate(views.turns.tolist()):
        assert torch.equal(views.whole[place], turned(crops[place % 4], turns))
    assert len(set(views.turns.tolist())) > 1
    normalised = views.whole * extent.repeat(2, 1, 1, 1, 1) + low.repeat(2, 1, 1, 1, 1)
    changed = (views.cut - normalised).abs() > 1e-4
    assert all(0 < share < 0.6 for share in changed.float().mean((1, 2, 3, 4)).tolist())
    assert method.views(views).keys() == {f"{what} {n}" for what in ("view", "cut", "reconstruction") for n in (1, 2)}


def test_two_workers_compute_what_one_computes(head_scan: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = drawn_batch(head_scan, TurnedViewsDraw(LOADER), range(4))
    method = SETTINGS.build(NETWORK)
    whole = method.batch(sample)
    vectors = torch.randn(8, 16)
    loss = nt_xent(vectors)
    parts, losses = [], []
    crops, seeds = unit_crops(sample)[0], sample["seeds"]
    rows = [vectors[[0, 1, 4, 5]], vectors[[2, 3, 6, 7]]]
    monkeypatch.setattr(swinunetr_ssl, "workers", lambda: 2)
    monkeypatch.setattr(swinunetr_ssl, "all_gather", lambda x: crops if x.dim() > 2 else seeds)
    monkeypatch.setattr(swinunetr_ssl, "gather_rows", lambda _: torch.cat(rows))
    for rank in range(2):
        monkeypatch.setattr(swinunetr_ssl, "rank", lambda rank=rank: rank)
        own = {name: column[2 * rank : 2 * rank + 2] for name, column in sample.items()}
        parts.append(method.batch(own))
        losses.append(method._contrast(rows[rank]))
    places = [0, 1, 4, 5, 2, 3, 6, 7]
    for name in ("cut", "whole", "turns"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)[places])
    torch.testing.assert_close(torch.stack(losses).mean(), loss)
    alone = SwinUNETRSSL(method.network, replace(SETTINGS, across_workers=False))
    assert torch.equal(alone._contrast(rows[0]), nt_xent(rows[0]))


def test_nt_xent_is_monais_and_nothing_where_there_is_one_sample() -> None:
    from monai.losses import ContrastiveLoss

    first, second = torch.randn(2, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(nt_xent(torch.cat((first, second))), ContrastiveLoss(0.5)(first, second))
    assert nt_xent(torch.randn(2, 7)) == 0


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("network resenc cannot be pretrained by Swin UNETR SSL", {"network": ResEncConfig()}),
        ("must be equally long: choose \\(64, 64, 64\\)", {"loader": LoaderConfig((64, 64, 32))}),
        ("three multiples of 32", {"loader": LoaderConfig((48, 64, 64))}),
        ("must be at least 2: Swin UNETR SSL contrasts", {"batch": 1}),
        ("batch_size 3 must be a multiple of cluster.workers 2", {"batch": 3, "workers": 2}),
        (
            "must be at least 4: Swin UNETR SSL",
            {"batch": 2, "workers": 2, "method": SwinUNETRSSLConfig(across_workers=False)},
        ),
    ],
)
def test_what_it_cannot_do_is_refused(message: str, fields: dict[str, object]) -> None:
    usual = PretrainConfig("x", method=SETTINGS, network=NETWORK, loader=LOADER)
    sizes = {
        "training": replace(usual.training, batch_size=fields.pop("batch", 4)),  # type: ignore[arg-type]
        "cluster": replace(usual.cluster, workers=fields.pop("workers", 1)),  # type: ignore[arg-type]
    }
    with pytest.raises(ValueError, match=message):
        replace(usual, **sizes, **fields)  # type: ignore[arg-type]
