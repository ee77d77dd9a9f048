from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomask.nn.stunet import STUNet, STUNetConfig
from anatomask.training.finetuning import FinetuningTask, level_weights, segmentation_loss

CPU = torch.device("cpu")
HEADER = {"kind": "segmentation", "architecture": {"classes": 2}}


def make(seed: int = 0, start=lambda network: [], validate=lambda network, device: {"a": 0.5, "b": 1.0}):
    return FinetuningTask(STUNetConfig(base=2), HEADER, start, validate, seed, CPU)


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


def test_a_step_reaches_every_parameter_but_the_lowest_head() -> None:
    task = make()
    sample = {"image": torch.randn(1, 1, 32, 32, 32).half(), "label": torch.randint(0, 3, (1, 32, 32, 32)).byte()}
    loss, _ = task(sample, 0.0)
    loss.backward()
    named = dict(task.trainable().named_parameters())
    assert [name for name, parameter in named.items() if parameter.grad is None] == ["heads.0.weight", "heads.0.bias"]
    assert not any(named[name].requires_grad for name in ("heads.0.weight", "heads.0.bias"))


def test_both_twins_start_alike_where_nothing_was_pretrained() -> None:
    def start(network: STUNet) -> list[str]:
        with torch.no_grad():
            network.encoder.stages[0][0].conv1.weight.fill_(7)
        return []

    scratch, pretrained = make(), make(start=start)
    theirs = pretrained.network.state_dict()
    differing = [name for name, tensor in scratch.network.state_dict().items() if not torch.equal(tensor, theirs[name])]
    assert differing == ["encoder.stages.0.0.conv1.weight"]


def test_validation_records_each_class_and_scores_by_their_mean(notes) -> None:
    task = make()
    assert task.validate(notes, 1) == 0.75
    assert notes.values == {"val/dice": 0.75, "val_dice/a": 0.5, "val_dice/b": 1.0}
    assert task.network.training
