from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss

from anatomask.training.losses import DiceCrossEntropy, level_weights, segmentation_loss


def test_weights_halve_per_level_and_the_lowest_gets_none() -> None:
    weights = level_weights(5)
    assert sum(weights) == pytest.approx(1)
    assert weights[-1] == 0
    assert weights[0] / weights[1] == weights[1] / weights[2] == weights[2] / weights[3] == 2


def reference_loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Soft Dice of the foreground classes, pooled over the batch, + cross-entropy: written out."""
    probabilities = logits.softmax(1)
    dice = []
    for number in range(1, logits.shape[1]):
        mine, truth = probabilities[:, number], (label[:, 0] == number).float()
        dice.append(1 - (2 * (mine * truth).sum() + 1e-5) / (mine.sum() + truth.sum() + 1e-5))
    chosen = probabilities.gather(1, label.long()).log()
    return torch.stack(dice).mean() - chosen.mean()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 4))
def test_the_loss_is_dice_and_cross_entropy_of_each_level(seed: int, classes: int) -> None:
    torch.manual_seed(seed)
    label = torch.randint(0, classes, (2, 1, 8, 8, 8), dtype=torch.uint8)
    full, half, quarter = (torch.randn(2, classes, n, n, n) for n in (8, 4, 2))
    smaller = label[:, :, 1::2, 1::2, 1::2]  # nearest neighbour of a halved grid
    expected = (2 * reference_loss(full, label) + reference_loss(half, smaller)) / 3
    assert torch.allclose(segmentation_loss([full, half, quarter], label), expected, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 5])
def test_on_one_worker_it_is_monais(classes: int) -> None:
    torch.manual_seed(0)
    label = torch.randint(0, classes, (3, 1, 6, 5, 4)).float()
    mine, theirs = (torch.randn(3, classes, 6, 5, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    theirs.data.copy_(mine.data)
    losses = DiceCrossEntropy(), DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    values = [loss(logits, label.double()) for loss, logits in zip(losses, (mine, theirs), strict=True)]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-9)
    for value in values:
        value.backward()
    assert mine.grad is not None and theirs.grad is not None
    assert torch.allclose(mine.grad, theirs.grad, rtol=1e-9)
