"""Masks against an independent, loop-by-loop numpy implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomask.masking import (
    hard_ratio,
    num_hard,
    num_hidden,
    random_mask,
    self_mask,
    share_among,
    touched_patches,
)


def _expected(
    loss: np.ndarray, hidden: np.ndarray, noise: np.ndarray, hard: int, total: int, highest: bool
) -> tuple[set[int], set[int]]:
    """One sample of Algorithm 1: the hard patches, and all that are hidden in the end."""
    candidates = sorted(np.flatnonzero(hidden), key=lambda i: -loss[i] if highest else loss[i])
    chosen = {int(i) for i in candidates[:hard]}
    others = sorted(set(range(len(loss))) - chosen, key=lambda i: -noise[i])
    return chosen, chosen | set(others[: total - len(chosen)])


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    patches=st.integers(1, 60),
    batch=st.integers(1, 4),
    mask_ratio=st.floats(0.05, 0.95),
    ratio=st.floats(0, 1),
    highest=st.booleans(),
    count=st.sampled_from(["text", "algorithm1"]),
)
def test_self_mask_is_algorithm_1(
    seed: int, patches: int, batch: int, mask_ratio: float, ratio: float, highest: bool, count: str
) -> None:
    rng = np.random.default_rng(seed)
    loss, first, second = (rng.random((batch, patches), dtype=np.float32) for _ in range(3))
    hidden = random_mask(torch.from_numpy(first), mask_ratio)
    final, hard = self_mask(
        torch.from_numpy(loss),
        hidden,
        torch.from_numpy(second),
        ratio,
        mask_ratio,
        "highest" if highest else "lowest",
        count,  # type: ignore[arg-type]
    )
    total = patches - round((1 - mask_ratio) * patches)
    wanted = math.floor(ratio * total) if count == "text" else min(math.ceil(ratio * patches), total)
    assert (hidden.sum(1) == total).all() and (final.sum(1) == total).all() and (hard.sum(1) == wanted).all()
    for sample in range(batch):
        chosen, everything = _expected(loss[sample], hidden[sample].numpy(), second[sample], wanted, total, highest)
        if len({*loss[sample]}) == patches and len({*second[sample]}) == patches:  # no ties
            assert set(hard[sample].nonzero().flatten().tolist()) == chosen
            assert set(final[sample].nonzero().flatten().tolist()) == everything


@settings(deadline=None)
@given(patches=st.integers(1, 200), mask_ratio=st.floats(0.01, 0.99))
def test_ties_do_not_change_the_counts(patches: int, mask_ratio: float) -> None:
    same = torch.zeros(2, patches)
    hidden = random_mask(same, mask_ratio)
    final, hard = self_mask(same, hidden, same, 0.5, mask_ratio)
    assert (hidden.sum(1) == num_hidden(patches, mask_ratio)).all()
    assert (final.sum(1) == num_hidden(patches, mask_ratio)).all()
    assert (hard.sum(1) == num_hard(patches, mask_ratio, 0.5)).all() and not (hard & ~hidden).any()


def test_counts_of_the_paper() -> None:
    assert num_hidden(7 * 7 * 8, 0.6) == 235
    assert num_hard(7 * 7 * 8, 0.6, 0.5) == 117
    assert num_hard(7 * 7 * 8, 0.6, 0.5, "algorithm1") == 196
    assert num_hard(7 * 7 * 8, 0.6, 0.9, "algorithm1") == 235  # clipped to all that are hidden


def test_no_hard_patches_is_the_random_mask() -> None:
    noise = torch.rand(3, 50)
    final, hard = self_mask(torch.rand(3, 50), torch.rand(3, 50) < 0.6, noise, 0.0, 0.6)
    assert torch.equal(final, random_mask(noise, 0.6)) and not hard.any()


def test_loss_of_visible_patches_is_not_read() -> None:
    noise, loss = torch.rand(2, 2, 40), torch.rand(2, 40)
    hidden = random_mask(noise[:, 0], 0.6)
    other = torch.where(hidden, loss, torch.nan)
    for significance in ("highest", "lowest"):
        mine = self_mask(loss, hidden, noise[:, 1], 0.5, 0.6, significance)
        theirs = self_mask(other, hidden, noise[:, 1], 0.5, 0.6, significance)
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])


def test_random_masks_are_uniform() -> None:
    hidden = random_mask(torch.rand(4000, 20, generator=torch.Generator().manual_seed(0)), 0.6)
    assert (hidden.float().mean(0) - 0.6).abs().max() < 0.04


@pytest.mark.parametrize(
    ("progress", "r0", "rT", "expected"),
    [(0, 0, 0.5, 0), (0.5, 0, 0.5, 0.25), (1, 0, 0.5, 0.5), (2, 0, 0.5, 0.5), (-1, 0, 0.5, 0), (0.25, 0.5, 0, 0.375)],
)
def test_hard_ratio_is_linear_and_clipped(progress: float, r0: float, rT: float, expected: float) -> None:
    assert hard_ratio(progress, r0, rT) == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    grid=st.tuples(*[st.integers(1, 4)] * 3),
    patch=st.integers(1, 5),
    voxels=st.integers(0, 12),
    masks=st.integers(1, 3),
)
def test_the_share_of_masked_patches_that_touch_an_organ(
    seed: int, grid: tuple[int, int, int], patch: int, voxels: int, masks: int
) -> None:
    rng = np.random.default_rng(seed)
    label = np.zeros([side * patch for side in grid], np.uint8)
    for _ in range(voxels):
        label[tuple(rng.integers(label.shape))] = rng.integers(1, 255)
    expected = [
        bool(label[x * patch : (x + 1) * patch, y * patch : (y + 1) * patch, z * patch : (z + 1) * patch].any())
        for x, y, z in np.ndindex(*grid)
    ]
    touched = touched_patches(torch.from_numpy(label), patch)
    assert touched.tolist() == expected

    mask = rng.random((masks, len(expected))) < rng.random()
    shares = share_among(torch.from_numpy(mask), touched)
    for share, row in zip(shares.tolist(), mask, strict=True):
        among = [touches for touches, hidden in zip(expected, row, strict=True) if hidden]
        assert share == pytest.approx(np.mean(among) if among else np.nan, nan_ok=True)


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    patches=st.integers(1, 40),
    batch=st.integers(1, 4),
    mask_ratio=st.floats(0.05, 0.95),
    ratio=st.floats(0, 1),
    count=st.sampled_from(["text", "algorithm1"]),
)
def test_masks_among_some_patches_are_those_of_a_volume_that_has_no_others(
    seed: int, patches: int, batch: int, mask_ratio: float, ratio: float, count: str
) -> None:
    rng = np.random.default_rng(seed)
    loss, first, second = (torch.from_numpy(rng.random((batch, patches), dtype=np.float32)) for _ in range(3))
    among = torch.from_numpy(rng.random((batch, patches)) < rng.random((batch, 1)))
    hidden = random_mask(first, mask_ratio, among)
    final, hard = self_mask(loss, hidden, second, ratio, mask_ratio, count=count, among=among)  # type: ignore[arg-type]
    for row, kept in enumerate(among):
        alone = random_mask(first[row, kept][None], mask_ratio)
        assert torch.equal(hidden[row, kept], alone[0]) and not hidden[row, ~kept].any()
        expected = self_mask(
            loss[row, kept][None],
            alone,
            second[row, kept][None],
            ratio,
            mask_ratio,
            count=count,  # type: ignore[arg-type]
        )
        for mine, theirs in zip((final, hard), expected, strict=True):
            assert torch.equal(mine[row, kept], theirs[0]) and not mine[row, ~kept].any()


def test_among_all_patches_is_the_same_as_no_restriction() -> None:
    noise, loss = torch.rand(3, 50), torch.rand(3, 50)
    everywhere = torch.ones(3, 50, dtype=torch.bool)
    hidden = random_mask(noise, 0.6)
    assert torch.equal(random_mask(noise, 0.6, everywhere), hidden)
    for mine, theirs in zip(
        self_mask(loss, hidden, noise, 0.3, 0.6, among=everywhere),
        self_mask(loss, hidden, noise, 0.3, 0.6),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
