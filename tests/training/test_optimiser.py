from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.memory_format import convert_conv3d_weight_memory_format

from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.training.optimiser import build_optimiser, parameter_groups
from anatomask.training.settings import OptimiserConfig


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 1))


def backward(module: nn.Module, seed: int) -> None:
    volume = torch.randn(2, 1, 5, 5, 5, generator=torch.Generator().manual_seed(seed))
    module.zero_grad()
    module(volume).square().mean().backward()


def weights(module: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in module.parameters()]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_sgd_is_torchs(momentum: float, weight_decay: float, memory_format: torch.memory_format) -> None:
    """The plain one, which is written in tensor operations, with Nesterov momentum."""
    mine, theirs = (convert_conv3d_weight_memory_format(network(), memory_format) for _ in range(2))
    ours = build_optimiser(mine, OptimiserConfig("sgd", 0.1, weight_decay, momentum=momentum))
    torchs = torch.optim.SGD(
        theirs.parameters(), 0.1, momentum, 0, weight_decay, nesterov=momentum > 0, foreach=False, fused=False
    )
    for seed in range(6):
        for optimiser in (ours, torchs):
            optimiser.param_groups[0]["lr"] = 0.1 / (1 + seed)
        for module in (mine, theirs):
            backward(module, seed)
        ours.step()
        torchs.step()
        for tensor, expected in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_update_that_is_found_infinite_changes_nothing_even_the_first(name: Any) -> None:
    """SGD's momentum begins at zero, and not in memory that nothing was written to."""
    module, twin = network(), network()
    optimiser, other = (build_optimiser(each, OptimiserConfig(name, lr=0.1)) for each in (module, twin))
    before = weights(module)
    backward(module, 0)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimiser.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimiser.step()
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    optimiser.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    for seed in (1, 2):
        for each, of in ((module, optimiser), (twin, other)):
            backward(each, seed)
            of.step()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights(module), weights(twin), strict=True))


def test_without_settings_of_the_encoder_there_is_one_group() -> None:
    module = STUNet(STUNetConfig(base=2), 2)
    module.heads[0].requires_grad_(False)
    (group,) = parameter_groups(module, OptimiserConfig(freeze=0), module.encoder.depths())
    assert [id(each) for each in group["params"]] == [id(each) for each in module.parameters() if each.requires_grad]
    assert (group["start"], group["factor"], group["weight_decay"]) == (0, 1.0, OptimiserConfig().weight_decay)


def test_each_stage_of_the_encoder_is_slower_than_the_one_after_it() -> None:
    module = STUNet(STUNetConfig(base=2, depth=2), 2)
    config = OptimiserConfig(layer_decay=0.75, encoder_lr_factor=0.5, decoder_first=(2, 3), freeze=4)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, tuple[int, float]] = {}
    for group in parameter_groups(module, config, module.encoder.depths()):
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            part = ".".join(name.split(".")[:3]) if name.startswith("encoder.") else name.split(".")[0]
            assert found.setdefault(part, (group["start"], group["factor"])) == (group["start"], group["factor"])
    assert not names
    expected = {f"encoder.stages.{index}": (5, pytest.approx(0.5 * 0.75 ** (6 - index))) for index in range(6)}
    assert found == expected | dict.fromkeys(("upsample", "decoder", "heads"), (0, 1.0))


def test_where_matrices_alone_decay_vectors_and_tokens_do_not() -> None:
    module = nn.ModuleDict(
        {"norm": nn.LayerNorm(3), "linear": nn.Linear(3, 3), "token": nn.ParameterList([torch.ones(1, 1, 3)])}
    )
    config = OptimiserConfig(weight_decay=0.5, decayed="matrices")
    for exempt, decayed in (((), {"linear.weight", "token.0"}), ((module["token"][0],), {"linear.weight"})):  # type: ignore[index]
        optimiser = build_optimiser(module, config, undecayed=exempt)
        found = {id(each): group["weight_decay"] for group in optimiser.param_groups for each in group["params"]}
        assert {name: found[id(each)] for name, each in module.named_parameters()} == {
            name: 0.5 if name in decayed else 0.0 for name, _ in module.named_parameters()
        }
    (group,) = parameter_groups(module, OptimiserConfig(), undecayed=[module["token"][0]])  # type: ignore[index]
    assert len(group["params"]) == 5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), not 1.0"),
        ({"momentum": -0.1}, "momentum must lie"),
        ({"layer_decay": 0.0}, r"layer_decay must lie in \(0, 1\]"),
        ({"layer_decay": 1.5}, "layer_decay must lie"),
        ({"encoder_lr_factor": 0.0}, "encoder_lr_factor must be positive"),
        ({"freeze": -1}, "freeze must be at least 0"),
        ({"decoder_first": (3, -1)}, "decoder_first must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        OptimiserConfig(**settings)
