"""MoCo v2: the published head's arithmetic, its queue, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anatomask.cluster_settings import ClusterConfig
from anatomask.config import PretrainConfig
from anatomask.data.samples import LoaderConfig
from anatomask.data.shards import PreparedDataset
from anatomask.methods.moco import MoCo, MoCoConfig, projector, unit
from anatomask.methods.two_views import Branch
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.training.settings import TrainingConfig
from tests.methods.drawn import drawn_batch
from tests.published import Published

LOADER = LoaderConfig(patch_size=(32, 32, 48))
NETWORK = STUNetConfig(base=2)
SETTINGS = MoCoConfig(hidden=16, projection=8, queue=8, ema_decay=0.5)


class Body(nn.Module):
    """The golden case's encoder, Linear and ReLU, as a map of one voxel."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        inputs, outputs = widths
        self.body = nn.Linear(inputs, outputs)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.body(image).relu()[..., None, None, None]]


def renamed(name: str) -> str:
    """Our name of a tensor of a published encoder, whose head has one layer (`fc`) or two (`fc.0`, `fc.2`)."""
    return f"encoder.{name}" if name.startswith("body.") else name.replace("fc.", "projector.")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_golden_numbers_of_the_published_head(
    published: Callable[[str], AbstractContextManager[Published]], dtype: torch.dtype, tolerance: float
) -> None:
    with published("moco") as numbers:
        sizes, initial = numbers.sizes, numbers.weights("_initial.pt")
        width, places = initial["queue"].shape
        linear = [w for name, w in initial.items() if name.startswith("encoder_q.fc.") and w.ndim == 2]
        widths = (linear[0].shape[1], *(len(weight) for weight in linear))
        head = projector(*widths) if len(widths) == 3 else nn.Linear(widths[0], widths[1])
        config = MoCoConfig(
            projection=width, queue=places, temperature=sizes["temperature"], ema_decay=sizes["momentum"]
        )
        config.check_batch(sizes["batch"], 1)
        method = MoCo(Branch(Body(sizes["body"]), head), config).to(dtype).train()
        state = {"queue": initial["queue"], "pointer": initial["queue_ptr"]}
        for theirs, ours in {"encoder_q.": "query.", "encoder_k.": "key."}.items():
            names = [name.removeprefix(theirs) for name in initial if name.startswith(theirs)]
            state |= {ours + renamed(name): initial[theirs + name] for name in names}
        method.load_state_dict(state)
        for name, field in {"m": "momentum", "T": "temperature", "lr": "lr"}.items():
            numbers.agrees(f"setting_{name}", sizes[field], 0)

        optimiser = torch.optim.SGD(
            method.trainable().parameters(), sizes["lr"], sizes["sgd_momentum"], weight_decay=sizes["weight_decay"]
        )
        method.after_step(0.0)  # the published step begins with this
        for step in range(sizes["steps"]):
            queries, keys = dict(method.query.named_parameters()), dict(method.key.named_parameters())
            for name in numbers.names(f"step{step}_key__"):
                numbers.agrees(f"step{step}_key__{name}", keys[renamed(name)], tolerance)
            views = (numbers.given(f"step{step}_im_q", dtype), numbers.given(f"step{step}_im_k", dtype))
            logits, labels = method.contrast(unit(method.query(views[0])), unit(method.key(views[1])))
            numbers.agrees(f"step{step}_logits", logits, tolerance)
            numbers.agrees(f"step{step}_labels", labels, 0)
            optimiser.zero_grad()
            loss = method.training_step(views, 0.0).loss
            loss.backward()
            numbers.agrees(f"step{step}_loss", loss, tolerance)
            for name in numbers.names(f"step{step}_grad__"):
                gradient = queries[renamed(name)].grad
                assert gradient is not None
                numbers.agrees(f"step{step}_grad__{name}", gradient, tolerance)
            optimiser.step()
            for name in numbers.names(f"step{step}_query_after_sgd__"):
                numbers.agrees(f"step{step}_query_after_sgd__{name}", queries[renamed(name)], tolerance)
            method.after_step(0.0)
            numbers.agrees(f"step{step}_queue", method.queue, tolerance)
            numbers.agrees(f"step{step}_queue_ptr", method.pointer, 0)


def test_queue_holds_the_last_batches_in_their_order() -> None:
    torch.manual_seed(0)
    method = SETTINGS.build(NETWORK)
    columns = method.queue.clone()
    for start in (0, 4, 0):
        views = (torch.randn(4, 1, 32, 32, 32), torch.randn(4, 1, 32, 32, 32))
        method.training_step(views, 0.0)
        columns[:, start : start + 4] = unit(method.key(views[1])).T.detach()
        assert not torch.equal(method.queue, columns)  # negatives are those from before this batch
        method.after_step(0.0)
        torch.testing.assert_close(method.queue, columns)
        assert method.pointer.item() == (start + 4) % 8


def test_a_batch_in_parts_leaves_the_queue_of_a_whole_one() -> None:
    torch.manual_seed(0)
    whole = SETTINGS.build(NETWORK)
    parts = copy.deepcopy(whole)
    first, second = torch.randn(2, 4, 1, 32, 32, 32)
    whole.training_step((first, second), 0.0)
    for part in zip(first.chunk(2), second.chunk(2), strict=True):
        parts.training_step(part, 0.0)
    for method in (whole, parts):
        method.after_step(0.0)
    torch.testing.assert_close(parts.queue, whole.queue)


def test_keys_that_are_not_finite_leave_the_queue() -> None:
    method = SETTINGS.build(NETWORK)
    before = method.queue.clone()
    method.training_step((torch.full((4, 1, 32, 32, 32), torch.nan),) * 2, 0.0)
    method.after_step(0.0)
    assert torch.equal(method.queue, before) and method.pointer.item() == 0


def test_the_loss_falls_against_other_crops_of_a_real_scan(head_scan: PreparedDataset) -> None:
    """With the queue as it is, since one that fills up with a network's own keys becomes harder."""
    torch.manual_seed(0)
    method = SETTINGS.build(NETWORK)
    draw = SETTINGS.draw(LOADER)
    batches = [method.batch(drawn_batch(head_scan, draw, range(4 * k, 4 * k + 4))) for k in range(3)]
    for earlier in batches[:2]:
        method.training_step(earlier, 0.0)
        method.after_step(0.0)
    optimiser = torch.optim.AdamW(method.trainable().parameters(), 3e-3)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = method.training_step(batches[2], 0.0).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"training": TrainingConfig(batch_size=3)}, r"method.queue 1024 .* multiple of training.batch_size 3, .* 768"),
        ({"cluster": ClusterConfig(workers=3)}, "batch_size 4 must be a multiple of cluster.workers 3"),
        ({"cluster": ClusterConfig(workers=4, min_workers=2)}, "multiple of cluster.workers 3.* as few as 3 may train"),
    ],
)
def test_batches_that_do_not_go_with_queue_or_workers_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PretrainConfig(data="x", method=MoCoConfig(), **fields)
    PretrainConfig(
        data="x", method=MoCoConfig(), training=TrainingConfig(accumulate=2), cluster=ClusterConfig(workers=2)
    )
