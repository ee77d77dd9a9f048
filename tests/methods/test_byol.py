"""BYOL: the published head's arithmetic, what follows an update, and two views of real scans."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anatomask.data.samples import LoaderConfig, SampleSequence
from anatomask.data.shards import PreparedDataset
from anatomask.data.views import FARTHEST, SECOND, TwoViewsDraw
from anatomask.methods.byol import BYOL, BYOLConfig, head, regression_loss
from anatomask.methods.two_views import Branch
from anatomask.nn.backbones.stunet import STUNetConfig
from tests.published import Published

CPU = torch.device("cpu")
LOADER = LoaderConfig(patch_size=(32, 32, 48))
NETWORK = STUNetConfig(base=2)
SETTINGS = BYOLConfig(hidden=16, projection=8, ema_decay=0.5)


class Flat(nn.Module):
    """The golden case's encoder: one Linear of the flattened image, as a map of one voxel."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        inputs, outputs = widths
        self.lin = nn.Linear(inputs, outputs)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.lin(image.flatten(1))[..., None, None, None]]


def renamed(name: str) -> str:
    """Our name of a tensor of the published implementation."""
    parts = {
        "online_encoder.net.": "online.encoder.",
        "target_encoder.net.": "target.encoder.",
        "online_encoder.": "online.",
        "target_encoder.": "target.",
        "online_predictor.": "predictor.",
    }
    return next(ours + name.removeprefix(theirs) for theirs, ours in parts.items() if name.startswith(theirs))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_golden_numbers_of_a_published_implementation(
    published: Callable[[str], AbstractContextManager[Published]], dtype: torch.dtype, tolerance: float
) -> None:
    with published("byol") as numbers:
        sizes = numbers.sizes
        online = Branch(Flat(sizes["encoder"]), head(*sizes["projector"]))
        method = BYOL(online, head(*sizes["predictor"]), BYOLConfig(ema_decay=sizes["ema"])).to(dtype).train()
        initial = numbers.weights("_initial.pt")
        method.load_state_dict({renamed(name): t for name, t in initial.items() if not name.startswith("net.")})
        numbers.agrees("setting_beta", sizes["ema"], 0)

        first, second = (numbers.given(name, dtype) for name in ("view1", "view2"))
        start = {name: tensor.clone() for name, tensor in method.state_dict().items()}
        projections = method.online(torch.cat((first, second)))
        numbers.agrees("online_projections", projections, tolerance)
        numbers.agrees("predictions", method.predictor(projections), tolerance)
        numbers.agrees("target_projections", method.target(torch.cat((first, second))), tolerance)
        method.load_state_dict(start)  # running statistics move once in a step

        optimiser = torch.optim.SGD(method.trainable().parameters(), lr=sizes["lr"])
        loss = method.training_step((first, second), 0.0).loss
        loss.backward()
        numbers.agrees("loss", loss, tolerance)
        parameters = dict(method.named_parameters())
        for name in numbers.names("grad__"):
            gradient = parameters[renamed(name)].grad
            assert gradient is not None
            numbers.agrees(f"grad__{name}", gradient, tolerance)
        norms = [p.grad.norm() for p in parameters.values() if p.grad is not None]
        numbers.agrees("grad_norm", torch.stack(norms).norm(), tolerance)
        optimiser.step()
        method.after_step(0.0)
        state = method.state_dict()
        for name in numbers.names("after__"):
            numbers.agrees(f"after__{name}", state[renamed(name)], tolerance)
        alone = regression_loss(*(numbers.given(f"loss_alone_{side}", dtype) for side in "xy"))
        numbers.agrees("loss_alone", alone, tolerance)


def test_views_of_a_real_scan_overlap_and_differ(head_scan: PreparedDataset) -> None:
    draw = TwoViewsDraw(LOADER)
    samples = [draw(head_scan, "one", SampleSequence(("one",), 0).rng(k)) for k in (1, 1, 2)]
    assert all(np.array_equal(samples[0][name], samples[1][name]) for name in samples[0])
    assert not np.array_equal(samples[0]["image"], samples[2]["image"])
    scan = head_scan.read_volume("one", label=False)[0]
    corners = np.lib.stride_tricks.sliding_window_view(scan[0], (4, 4, 4))
    origins = {"": [], SECOND: []}  # type: dict[str, list[tuple[int, ...]]]
    for k in range(20):
        sample = draw(head_scan, "one", np.random.default_rng(k))
        for prefix, found in origins.items():
            crop = sample[f"{prefix}image"][0]
            assert crop.shape == LOADER.patch_size
            starts = np.argwhere((corners == crop[:4, :4, :4]).all((3, 4, 5))).tolist()
            found.append(tuple(starts[0]) if len(starts) == 1 else ())
    apart = [np.subtract(a, b) for a, b in zip(*origins.values(), strict=True) if a and b]
    assert len(apart) > 3
    assert all((np.abs(d) <= FARTHEST * np.array(LOADER.patch_size)).all() for d in apart)
    assert any(d.any() for d in apart)


def test_the_target_follows_and_learns_nothing_itself() -> None:
    torch.manual_seed(0)
    method = SETTINGS.build(NETWORK)
    before = {name: tensor.clone() for name, tensor in method.target.state_dict().items()}
    optimiser = torch.optim.SGD(method.trainable().parameters(), lr=0.1)
    method.training_step(tuple(torch.randn(2, 2, 1, 32, 32, 32)), 0.0).loss.backward()
    assert all(p.grad is not None for p in method.trainable().parameters())
    assert all(p.grad is None for p in method.target.parameters())
    optimiser.step()
    method.after_step(0.0)
    for (name, target), online in zip(method.target.named_parameters(), method.online.parameters(), strict=True):
        torch.testing.assert_close(target, 0.5 * before[name] + 0.5 * online)
