"""UniMiSS: the published code's numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anatomask.config import PretrainConfig
from anatomask.data.samples import LoaderConfig
from anatomask.data.shards import PreparedDataset
from anatomask.methods.unimiss import TERMS, Head, SubVolumes, UniMiSSMethodConfig, ema_decay
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.unimiss import PRETRAINING, SEGMENTATION, UniMiSSConfig, UniMiSSNet
from anatomask.nn.mit import ConvNorm, Stage
from anatomask.training.optimiser import build_optimiser
from anatomask.training.schedule import progress_of_update, rate_of_update, weight_decay
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.training.update import clip_each_grad_norm_
from anatomask.weights.exporting import export_weights
from anatomask.weights.files import Weights, describe_architecture, initialise
from anatomask.weights.foreign import read_foreign_weights
from tests.methods.drawn import drawn_batch
from tests.nn.backbones.test_unimiss import SMALL
from tests.published import Published


def network_of(numbers: Published, **fields: Any) -> UniMiSSConfig:
    """The network of a case; the authors' first axis is the last one here."""
    encoder, decoder = numbers.sizes["encoder"], numbers.sizes["decoder"]
    slices, *plane = numbers.sizes["size3d"]
    network = UniMiSSConfig(
        widths=tuple(encoder["widths"]),
        depths=tuple(encoder["depths"]),
        attention_heads=tuple(encoder["heads"]),
        reduction=tuple(encoder["reduction"]),
        decoder_depths=tuple(decoder["depths"]),
        decoder_heads=tuple(decoder["heads"]),
        decoder_reduction=tuple(decoder["reduction"]),
        stem_width=numbers.sizes["stem"],
        **{"patch_size": (*plane, slices), "slice_size": numbers.sizes["size2d"], **fields},
    )
    assert list(network.decoder_widths) == decoder["widths"]
    return network


def outputs_of(module: nn.Module) -> dict[str, Any]:
    """What the stem and each stage will compute, by its name."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda part, given, output: found.update({name: output})

    for name, part in module.named_modules():
        if isinstance(part, Stage) or (name.startswith("encoder.stem") and isinstance(part, ConvNorm)):
            part.register_forward_hook(keep(name[:12] if "stem" in name else name))
    return found


def check_stages(numbers: Published, start: str, found: dict[str, Any], tolerance: float) -> None:
    """Compare what stem and stages computed: maps, or tokens with the cls token first."""

    def tokens(encoded: Tensor, cls: Tensor) -> Tensor:
        return torch.cat((cls, encoded.flatten(2).mT), 1)

    stem = found["encoder.stem"]
    every = (slice(None), slice(None), *[slice(None, None, 4)] * (stem.dim() - 2))
    numbers.agrees(f"{start}encoder_stage0", stem[every], tolerance)
    for stage in (1, 2, 3):
        numbers.agrees(f"{start}encoder_stage{stage}", found[f"encoder.stages.{stage}"][0], tolerance)
    numbers.agrees(f"{start}encoder_stage4", tokens(*found["encoder.stages.4"]), tolerance)
    for stage in (0, 1, 2):
        numbers.agrees(f"{start}decoder_stage{stage}_tokens", tokens(*found[f"decoder.stages.{stage}"]), tolerance)


def check_trunk(numbers: Published, dtype: torch.dtype, tolerance: float) -> None:
    """Encoder and decoder on a volume and on images."""
    trunk = network_of(numbers).trunk()
    theirs: Any = numbers.weights("_ssl_checkpoint.pt")
    ours = {PRETRAINING.ours(name.removeprefix("module.")): tensor for name, tensor in theirs["student"].items()}
    trunk.load_state_dict({name: tensor for name, tensor in ours.items() if name})
    trunk.to(dtype)
    found = outputs_of(trunk)
    for start, name in (("vol_", "view0"), ("img_", "image2D")):
        numbers.agrees(f"{start}embedding", trunk(numbers.given(name, dtype)), tolerance)
        check_stages(numbers, start, found, tolerance)
    other = numbers.given("image2D_other_size", dtype)
    assert other.shape[-1] == numbers.sizes["other_size2d"]
    numbers.agrees("img_other_size_embedding", trunk(other), tolerance)


def check_segmentation(numbers: Published, network: UniMiSSNet, dtype: torch.dtype, tolerance: float) -> None:
    """The segmentation network after the transfer, in our order of axes."""
    rest = {str(SEGMENTATION.ours(name)): tensor for name, tensor in numbers.weights("_seg_rest.pt").items()}
    state = network.state_dict()
    assert rest.keys() < state.keys()
    network.load_state_dict({**state, **rest})
    network.to(dtype)
    found = outputs_of(network)
    levels = [level.movedim(-1, 2) for level in network(numbers.given("seg_input", dtype).movedim(2, -1))]
    check_stages(numbers, "seg_", found, tolerance)
    numbers.agrees("seg_full", levels[0][..., ::2, ::2, ::2], tolerance)
    for level, name in zip(levels[1:], ("seg_ds3", "seg_ds2", "seg_ds1", "seg_ds0"), strict=True):
        numbers.agrees(name, level, tolerance)
    loss = torch.stack([level.square().mean() for level in levels]).sum()
    loss.backward()
    numbers.agrees("seg_mean_square_loss", loss, tolerance)
    norms = [parameter.grad.norm() for parameter in network.parameters() if parameter.grad is not None]
    assert len(norms) == len(list(network.parameters()))
    numbers.agrees("seg_grad_norm", torch.stack(norms).norm(), tolerance)


def transferred(numbers: Published) -> UniMiSSNet:
    """The segmentation network that the published checkpoint starts; compares what was taken over."""
    slices, *plane = numbers.sizes["segmentation"]["patch"]
    foreign = read_foreign_weights(numbers.folder / f"{numbers.sizes['prefix']}_ssl_checkpoint.pt")
    pretrained = network_of(numbers)
    assert isinstance(foreign.network, UniMiSSConfig) and foreign.network.size() == pretrained.size()
    assert foreign.network.slice_size == pretrained.slice_size
    assert (foreign.kind, foreign.whole, foreign.stages) == ("pretraining", True, 5) and not foreign.missing
    assert {name.removeprefix("module.").split(".")[0] for name, _ in foreign.left_out} == {"head"}
    network = network_of(numbers, patch_size=(*plane, slices)).segmenter(numbers.sizes["segmentation"]["classes"] - 1)
    header = {"kind": "pretraining", "architecture": describe_architecture(foreign.network), "whole": "network."}
    tensors = {f"network.{name}": tensor for name, tensor in foreign.tensors.items()}
    left_out = initialise(network, Weights(tensors, header))
    theirs = {name: str(SEGMENTATION.theirs(name)).removeprefix("model.") for name in network.state_dict()}
    for name, names in (
        ("not_transferred", {theirs[name] for name in left_out}),
        ("transferred", set(theirs.values()) - {theirs[name] for name in left_out}),
    ):
        assert names == set(map(str, numbers.arrays[name]))
        numbers.unread.discard(name)
    state = {theirs[name]: tensor for name, tensor in network.state_dict().items()}
    for name in numbers.names("after_transfer__"):
        numbers.agrees(f"after_transfer__{name}", state[name], 1e-6)
    return network


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_golden_numbers_of_the_published_code(
    published: Callable[[str], AbstractContextManager[Published]], dtype: torch.dtype, tolerance: float
) -> None:
    with published("unimiss") as numbers:
        check_trunk(numbers, dtype, tolerance)
        check_segmentation(numbers, transferred(numbers), dtype, tolerance)
        check_loss_alone(numbers, dtype, tolerance)
        check_schedules(numbers)
        if not numbers.leaves_out("teacher"):
            check_step(numbers, dtype, tolerance)


def check_loss_alone(numbers: Published, dtype: torch.dtype, tolerance: float) -> None:
    """Two terms of given outputs from a zero centre."""
    width = numbers.arrays["given0_student"].shape[1]
    method = UniMiSSMethodConfig(hidden=8, bottleneck=8, outputs=width).build(SMALL).to(dtype)
    for call in (0, 1):
        student, teacher = (numbers.given(f"given{call}_{who}", dtype) for who in ("student", "teacher"))
        numbers.agrees(f"given{call}_loss", method.term(student, teacher), tolerance)
        numbers.agrees(f"given{call}_center_after", method.centre, tolerance)


def check_schedules(numbers: Published) -> None:
    """Learning rate, weight decay and EMA decay of every step; they are as long as their names say."""

    def schedule(start: str, **fields: Any) -> tuple[str, int, int, OptimiserConfig]:
        (name,) = (name for name in numbers.arrays if name.startswith(start))
        epochs, samples, *warmup = map(int, re.findall(r"\d+", name))
        return name, epochs, samples, optimiser_of(warmup_epochs=warmup[0] if warmup else 0, **fields)

    name, epochs, samples, config = schedule("cosine_schedule_", lr=8e-4 * 192 / 256, lr_end=1e-6)
    # With one sample per update, every step of the schedule is an update.
    rates = [rate_of_update(step, samples, epochs, config) or 0.0 for step in range(epochs * samples)]
    numbers.agrees(name, torch.tensor(rates, dtype=torch.float64), 1e-12)
    for start, value in (
        ("wd_schedule_", weight_decay),
        ("ema_schedule_", lambda progress, _: ema_decay(progress, UniMiSSMethodConfig())),
    ):
        name, epochs, samples, config = schedule(start)
        steps = [progress_of_update(step, samples, epochs, config, 1) for step in range(epochs * samples)]
        numbers.agrees(name, torch.tensor([value(step, config) for step in steps], dtype=torch.float64), 1e-12)


def check_step(numbers: Published, dtype: torch.dtype, tolerance: float) -> None:
    """The step on volumes: outputs, terms, the centre after each of them, and gradients before and after clipping."""
    embedding, *hidden, bottleneck, outputs = numbers.sizes["head"]
    assert embedding == numbers.sizes["encoder"]["widths"][0] and len(set(hidden)) == 1
    method = UniMiSSMethodConfig(hidden=hidden[0], bottleneck=bottleneck, outputs=outputs).build(network_of(numbers))
    checkpoint: Any = numbers.weights("_ssl_checkpoint.pt")
    for network, names in ((method.student, checkpoint["student"]), (method.teacher, checkpoint["teacher"])):
        gains = [tensor for name, tensor in names.items() if name.endswith("weight_g")]
        assert all(torch.equal(gain, torch.ones_like(gain)) for gain in gains)
        network.load_state_dict({ours: tensor for name, tensor in names.items() if (ours := in_student(name))})
    method.centre.copy_(checkpoint["loss"]["center"])
    method.to(dtype)
    first, second = (numbers.given(f"view{view}", dtype) for view in (0, 1))
    depth, found, centres = first.shape[2], dict[str, Tensor](), list[Tensor]()
    for who, network in (("student", method.student), ("teacher", method.teacher)):
        network.register_forward_hook(
            lambda part, given, output, who=who: found.update(
                {f"{who}_{'volume' if given[0].dim() == 5 else 'slices'}": output}
            )
        )
    term = method.term

    def followed(student: Tensor, teacher: Tensor) -> Tensor:
        loss = term(student, teacher)
        centres.append(method.centre.clone())
        return loss

    method.term = followed  # type: ignore[method-assign]
    result = method.training_step(SubVolumes((first, second), torch.zeros(1, 2, depth // 2, dtype=torch.long)), 0.0)
    for name, output in found.items():
        numbers.agrees(name, output, tolerance)
    terms = torch.stack([result.scalars[f"{name}_loss"] for name in TERMS])
    numbers.agrees("loss_volume_sliceVolume_slices_volumeSlice", terms, tolerance)
    numbers.agrees("center_after_each_term", torch.stack(centres), tolerance)
    numbers.agrees("loss3D", result.loss, tolerance)
    result.loss.backward()
    gradients = {name: parameter.grad for name, parameter in method.student.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    numbers.unread.discard("no_gradient")
    assert all(in_student(name) is None for name in map(str, numbers.arrays["no_gradient"]))
    for name in numbers.names("grad__"):
        gradient = gradients[str(in_student(name))]
        assert gradient is not None
        numbers.agrees(f"grad__{name}", gradient, tolerance)
    parameters = list(method.student.parameters())
    numbers.agrees("grad_norm", clip_each_grad_norm_(parameters, optimiser_of().clip), tolerance)
    numbers.agrees(
        "grad_norm_after_clip", nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]), tolerance
    )
    numbers.agrees(
        "img_head_output", method.student.head(method.student.network(numbers.given("image2D", dtype)), 1), tolerance
    )


def optimiser_of(**fields: Any) -> OptimiserConfig:
    """The optimiser of the authors, with other values of some fields."""
    settings: dict[str, Any] = {**UniMiSSMethodConfig.optimiser, **fields}
    return OptimiserConfig(**settings)


def in_student(name: str) -> str | None:
    """Our name of a tensor of the student or the teacher; None for the gain of the last layer, which is 1."""
    name = name.removeprefix("module.").replace("last_layer.weight_v", "last.weight")
    if name.startswith("head."):
        return None if name.endswith("weight_g") else name
    return f"network.{PRETRAINING.ours(name)}"


HEAD = UniMiSSMethodConfig(hidden=16, bottleneck=8, outputs=32)
LOADER = LoaderConfig(patch_size=(64, 64, 32))


def test_epochs_on_slices_freeze_what_only_volumes_reach() -> None:
    """Two epochs on slices, two on volumes; the last layer begins to learn in epoch 1."""
    method = replace(HEAD, slice_epochs=2).build(SMALL)
    names = {id(parameter): name for name, parameter in method.student.named_parameters()}
    found = []
    for method.epoch in range(5):
        found.append({names[id(parameter)] for parameter in method.frozen()})
    of_volumes = {name for name in names.values() if ".3D" in name}
    assert found == [of_volumes | {"head.last.weight"}, of_volumes, set(), set(), of_volumes]
    assert not list(replace(HEAD).build(SMALL).frozen())[1:]
    assert sum("positions" in name for name in of_volumes) == 7


def test_a_step_on_slices_compares_the_slices_that_both_views_show(head_scan: PreparedDataset) -> None:
    method = replace(HEAD, slice_epochs=1).build(SMALL)
    batch = method.batch(drawn_batch(head_scan, HEAD.draw(LOADER), range(2)))
    centre = method.centre.clone()
    result = method.training_step(batch, 0.0)
    result.loss.backward()
    assert result.scalars.keys() == {"slices_loss"} and not torch.equal(method.centre, centre)
    frozen = {id(parameter) for parameter in method.frozen()}
    for name, parameter in method.student.named_parameters():
        assert parameter.grad is not None, name
        if ".3D" in name:
            assert id(parameter) in frozen and not parameter.grad.any()
    method.eval()
    centre = method.centre.clone()
    assert method.training_step(batch, 1.0).scalars.keys() == {f"{name}_loss" for name in TERMS}
    assert torch.equal(method.centre, centre), "what is only watched moves nothing"


def test_outputs_that_are_not_finite_leave_the_centre() -> None:
    method = HEAD.build(SMALL)
    method.centre.normal_()
    before = method.centre.clone()
    method.term(torch.randn(4, 32), torch.full((4, 32), torch.inf))
    assert torch.equal(method.centre, before)


def test_exported_weights_start_a_network_and_have_the_names_of_the_authors() -> None:
    """The encoder alone; the decoder stays behind, as do the cls token and what is for slices."""
    method = HEAD.build(SMALL)
    header = {
        "kind": "pretraining",
        "architecture": describe_architecture(SMALL),
        "encoder": HEAD.encoder,
        "whole": HEAD.whole,
        "stages": 5,
    }
    weights = Weights(method.state_dict(), header)
    export = export_weights(weights, "safetensors", ".safetensors")
    network = SMALL.segmenter(2)
    left_out = initialise(network, Weights(export.content, export.header))
    assert left_out == sorted(name for name in network.state_dict() if not name.startswith("encoder."))
    names = export_weights(weights, "monai", ".pt").content
    assert len(names) == export.exported == len(network.encoder.state_dict())
    assert all(name.startswith("model.transformer.") and "3D" not in name for name in names)


def test_the_head_has_its_parameters_and_averages_slices() -> None:
    with torch.device("meta"):
        head = Head(48, UniMiSSMethodConfig())
    gains = 65_536  # which are fixed at 1, and left out here
    assert sum(parameter.numel() for parameter in head.parameters()) == 21_664_000 - gains
    head = Head(4, HEAD).double()
    rows = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(head(rows, 3), head(rows, 1).view(2, 3, 32).mean(1))


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("network resenc cannot be pretrained by UniMiSS: choose --network unimiss", {"network": ResEncConfig()}),
        ("must be network.patch_size", {"loader": LoaderConfig((64, 64, 64))}),
        (
            "one of whose sides must be longer than 32",
            {"network": replace(SMALL, patch_size=(32, 32, 64)), "loader": LoaderConfig((32, 32, 64))},
        ),
        ("accumulate must be 1: UniMiSS needs", {"training": TrainingConfig(accumulate=2)}),
    ],
)
def test_what_it_cannot_do_is_refused(message: str, fields: dict[str, Any]) -> None:
    usual = PretrainConfig("x", method=HEAD, network=SMALL, loader=LOADER)
    with pytest.raises(ValueError, match=message):
        replace(usual, **fields)


@pytest.mark.slow
def test_training_on_a_real_scan_lowers_the_loss(head_scan: PreparedDataset) -> None:
    """New views of the scan each time, by the optimiser of the authors but for its learning rate.

    Before that, the centre moves to the teacher's outputs, while the loss rises.
    """
    torch.manual_seed(0)
    method = HEAD.build(SMALL)
    config = optimiser_of(lr=2e-3, warmup_epochs=0)
    optimiser = build_optimiser(method.trainable(), config)
    batch = method.batch(drawn_batch(head_scan, HEAD.draw(LOADER), range(2)))
    with torch.no_grad():
        settling = [float(method.training_step(batch, 0.0).loss) for _ in range(8)]
    assert settling[-1] > settling[0]
    losses = []
    for step in range(16):
        method.epoch = step
        batch = method.batch(drawn_batch(head_scan, HEAD.draw(LOADER), range(2 * step, 2 * step + 2)))
        loss = method.training_step(batch, step / 16).loss
        optimiser.zero_grad()
        loss.backward()
        clip_each_grad_norm_(method.student.parameters(), config.clip)
        optimiser.step()
        method.after_step(step / 24)
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
