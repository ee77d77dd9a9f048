from __future__ import annotations

import torch

from anatomask.nn.stunet import STUNet, STUNetConfig
from anatomask.training.finetuning import FinetuningTask

CPU = torch.device("cpu")
HEADER = {"kind": "segmentation", "architecture": {"classes": 2}}


def make(seed: int = 0, start=lambda network: [], validate=lambda network, device: {"a": 0.5, "b": 1.0}):
    return FinetuningTask(STUNetConfig(base=2), HEADER, start, validate, seed, CPU)


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
