"""SelfMedMAE: the published code's numbers, what it hides and scores, and the transfer to a UNETR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anatomask.config import ImportWeightsConfig, PretrainConfig
from anatomask.data.samples import LoaderConfig
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.methods.masked import MaskedBatch
from anatomask.methods.selfmedmae import SelfMedMAE, SelfMedMAEConfig
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.unetr import PATCH, POSITIONS, UNETRConfig
from anatomask.nn.masked_transformer import in_intensities, patch_errors, patches_of, volume_of
from anatomask.nn.transformer import fixed_positions
from anatomask.stages.import_weights import read_file
from anatomask.weights.files import describe_architecture, initialise
from anatomask.weights.foreign import read_foreign_weights
from anatomask.weights.tensor_files import Weights
from tests.methods.drawn import drawn_batch
from tests.published import Published
from tests.weights.checkpoints import forge, same, save_stunet

SETTINGS = SelfMedMAEConfig(decoder_width=24, decoder_depth=1, decoder_heads=2)
NETWORK = UNETRConfig(patch_size=(64, 32, 32), width=24, depth=4, attention_heads=2, feature_size=4)
Opener = Callable[[str], AbstractContextManager[Published]]

precisions = pytest.mark.parametrize(
    ("dtype", "tolerance", "of_gradients"), [(torch.float64, 1e-6, 1e-6), (torch.float32, 1e-4, 1e-4)]
)


def network_of(numbers: Published) -> UNETRConfig:
    sizes = numbers.sizes
    assert sizes["patch"] == PATCH
    return UNETRConfig(
        in_channels=numbers.arrays["input"].shape[1],
        patch_size=tuple(sizes["input"]),
        width=sizes["encoder"]["width"],
        depth=sizes["encoder"]["depth"],
        attention_heads=sizes["encoder"]["heads"],
        feature_size=sizes["unetr"]["feature_size"],
    )


def renamed(name: str) -> str:
    """Our name in a `MaskedTransformer` of a tensor of the published implementation."""
    return {"encoder_pos_embed": POSITIONS}.get(name, name.removeprefix("decoder."))


def published_tensors(numbers: Published) -> dict[str, Tensor]:
    """The checkpoint by our names, a zero position for the class token among them."""
    state: Mapping[str, Tensor] = numbers.weights("_checkpoint.pt")["state_dict"]  # type: ignore[assignment]
    tensors = {renamed(name): tensor for name, tensor in state.items()}
    return {**tensors, POSITIONS: torch.nn.functional.pad(tensors[POSITIONS], (0, 0, 1, 0))}


@precisions
def test_golden_numbers_of_the_published_code(
    published: Opener, dtype: torch.dtype, tolerance: float, of_gradients: float
) -> None:
    with published("selfmedmae") as numbers:
        sizes = numbers.sizes["decoder"]
        config = SelfMedMAEConfig(0.75, sizes["width"], sizes["depth"], sizes["heads"])
        network = network_of(numbers)
        volume = numbers.given("input", dtype)
        for ratio in numbers.sizes["ratios"]:
            method = replace(config, mask_ratio=float(ratio)).build(network)
            method.network.load_state_dict(published_tensors(numbers))
            check_method(numbers, method.to(dtype), volume, f"__ratio{ratio}", tolerance, of_gradients)
        check_positions(numbers, network, sizes["width"], tolerance)
        check_transfer(numbers, network, volume[:1], dtype, tolerance)


def check_method(
    numbers: Published, method: SelfMedMAE, volume: Tensor, suffix: str, tolerance: float, of_gradients: float
) -> None:
    found: dict[str, Any] = {}
    method.network.encoder_to_decoder.register_forward_pre_hook(lambda module, given: found.update(tokens=given[0]))
    method.network.register_forward_hook(lambda module, given, outputs: found.update(outputs=outputs))
    noise = numbers.given(f"noise{suffix}", torch.float32)
    result = method.training_step(MaskedBatch(volume, torch.stack((torch.zeros_like(noise), noise), 1)), 0.0)
    prediction, hidden = found["outputs"]
    numbers.agrees(f"mask{suffix}", hidden.double(), 0)
    numbers.agrees(f"encoder_tokens{suffix}", found["tokens"], tolerance)
    every = prediction.shape[2] // numbers.arrays[f"prediction{suffix}"].shape[2]
    numbers.agrees(f"prediction{suffix}", prediction[..., ::every], tolerance)
    numbers.agrees(f"loss_per_patch{suffix}", patch_errors(prediction, patches_of(volume)), tolerance)
    numbers.agrees(f"loss{suffix}", result.loss, tolerance)
    result.loss.backward()
    gradients = {name: p.grad for name, p in method.network.named_parameters() if p.grad is not None}
    assert {name for name, p in method.network.named_parameters() if p.requires_grad} == gradients.keys()
    norms = torch.stack([gradient.norm() for gradient in gradients.values()])
    numbers.agrees(f"grad_norm{suffix}", norms.norm(), of_gradients)
    ratios = numbers.sizes["ratios"]
    if suffix == f"__ratio{'0.75' if '0.75' in ratios else ratios[0]}":  # that of the arrays whose names have none
        for name in numbers.names("grad__"):
            numbers.agrees(f"grad__{name}", gradients[renamed(name)], of_gradients)
        patches = patches_of(volume)
        numbers.agrees("patches_every16", patches[..., ::16], tolerance)
        numbers.agrees("reconstruction_every16", in_intensities(prediction, patches)[..., ::16], tolerance)


def check_positions(numbers: Published, network: UNETRConfig, decoder_width: int, tolerance: float) -> None:
    numbers.agrees("encoder_pos_embed", fixed_positions(network.grid, network.width), tolerance)
    numbers.agrees("decoder_pos_embed", fixed_positions(network.grid, decoder_width), tolerance)
    for name in numbers.names("encoder_pos_embed_grid_"):
        width = numbers.arrays[f"encoder_pos_embed_grid_{name}"].shape[-1]
        table = fixed_positions([int(side) for side in name.split("_")], width)
        numbers.agrees(f"encoder_pos_embed_grid_{name}", table, tolerance)


def check_transfer(
    numbers: Published, config: UNETRConfig, volume: Tensor, dtype: torch.dtype, tolerance: float
) -> None:
    """Import of the checkpoint, transfer to the segmentation network, and what that computes."""
    path = numbers.folder / f"{numbers.sizes['prefix']}_checkpoint.pt"
    foreign = read_foreign_weights(path, unseen={"attention_heads": (config.attention_heads,)})
    assert (foreign.kind, foreign.stages) == ("pretraining", 4)
    assert isinstance(foreign.network, UNETRConfig)
    assert replace(foreign.network, feature_size=config.feature_size) == config
    for name, mine in (("unused", {name for name, _ in foreign.left_out}), ("missing", set(foreign.missing))):
        assert mine == set(numbers.arrays[f"transfer_{name}"].tolist())
        numbers.unread.discard(f"transfer_{name}")
    header = {"kind": "pretraining", "architecture": describe_architecture(config), "stages": 4}
    network = config.segmenter(numbers.sizes["unetr"]["classes"] - 1).eval()
    left = initialise(network, Weights({f"student.{name}": t for name, t in foreign.tensors.items()}, header))
    positions = network.get_parameter(POSITIONS)
    numbers.agrees("unetr_pos_embed_after_transfer", positions, tolerance)
    assert positions.requires_grad
    if not numbers.leaves_out("_unetr_decoder.pt"):
        decoder = numbers.weights("_unetr_decoder.pt")
        assert set(left) == decoder.keys()
        network.load_state_dict({**network.state_dict(), **decoder})
    network.to(dtype)
    with torch.no_grad():
        maps = [encoded.flatten(2).transpose(1, 2) for encoded in network.encoder(volume)]
        for name, encoded in zip(("hidden3", "hidden6", "hidden9", "encoder_tokens"), maps, strict=True):
            numbers.agrees(f"unetr_{name}", encoded, tolerance)
        numbers.agrees("unetr_logits", network(volume)[0], tolerance)


def test_import_of_the_published_checkpoint(published: Opener, tmp_path: Path) -> None:
    """By the command's own reading: the header it writes, another crop, and what is refused."""
    with published("selfmedmae") as numbers:
        numbers.unread.clear()
        file, config = numbers.folder / f"{numbers.sizes['prefix']}_checkpoint.pt", network_of(numbers)
        usual = ImportWeightsConfig(str(file), str(tmp_path), attention_heads=(config.attention_heads,))
        weights = read_file(usual)
        assert weights.header["method"] == {"name": "SelfMedMAE"}
        trained = {name: t for name, t in published_tensors(numbers).items() if name.startswith("encoder.")}
        assert same({name.removeprefix("student."): t for name, t in weights.tensors.items()}, trained)
        d, h, w = config.patch_size
        larger = read_file(replace(usual, patch_size=(d, h, w + PATCH)))
        other = replace(network_of(numbers), patch_size=(d, h, w + PATCH), feature_size=16)
        initialise(other.segmenter(2), larger)
        with pytest.raises(UserError, match=r"network\.patch_size .* alike; or import-weights --patch-size D H W"):
            initialise(other.segmenter(2), weights)
        if config.width % 64:
            with pytest.raises(UserError, match="give --attention-heads"):
                read_file(replace(usual, attention_heads=None))
        with pytest.raises(UserError, match="--attention-heads: all its blocks have as many"):
            read_file(replace(usual, attention_heads=(1, 2, 4, 8)))
        with pytest.raises(UserError, match="--patch-merging is not for unetr"):
            read_file(replace(usual, patch_merging="all"))
        state = torch.load(file, weights_only=True)["state_dict"]
        refused: list[tuple[str, dict[str, Any]]] = [
            ("encoder.norm.bias is missing", {"encoder.norm.bias": None}),
            ("encoder.head.weight is unknown", {"encoder.head.weight": torch.zeros(2, config.width)}),
            ("encoder.blocks.1.mlp.fc1.bias is of shape", {"encoder.blocks.1.mlp.fc1.bias": torch.zeros(3)}),
            ("positions are those of no grid", {"encoder_pos_embed": torch.randn(state["encoder_pos_embed"].shape)}),
            ("lacks the tensor encoder_pos_embed", {"encoder_pos_embed": None}),
            ("its patches have", {"encoder.patch_embed.proj.weight": torch.zeros(config.width, 1, 16, 16)}),
        ]
        for message, changes in refused:
            path = save_stunet(tmp_path / "c.pth", forge(state, changes))
            with pytest.raises(UserError, match=message):
                read_file(replace(usual, file=str(path)))


def batch_of(volume: Tensor) -> MaskedBatch:
    patches = volume[0, 0].numel() // PATCH**3
    return MaskedBatch(volume, torch.rand(len(volume), 2, patches))


def test_patches_are_cut_in_raster_order_and_put_together_again() -> None:
    volume = torch.randn(2, 3, 32, 48, 16)
    patches = patches_of(volume)
    assert patches.shape == (2, 6, 3 * PATCH**3) and torch.equal(volume_of(patches, volume.shape), volume)
    block = volume[1, :, 16:32, 16:32]  # the fifth of 2 x 3 x 1
    assert torch.equal(patches[1, 4].view(16, 16, 16, 3), block.permute(1, 2, 3, 0))


def test_hidden_patches_are_not_read_and_alone_are_scored() -> None:
    torch.manual_seed(0)
    method = SETTINGS.build(NETWORK)
    batch = batch_of(torch.randn(2, 1, *NETWORK.patch_size))
    prediction, hidden = method.network(batch.volume, batch.noise[:, 1])
    assert hidden.sum(1).tolist() == [12, 12]
    voxels = volume_of(hidden[..., None].expand(-1, -1, PATCH**3), batch.volume.shape)
    elsewhere = torch.where(voxels, torch.randn(voxels.shape), batch.volume)
    torch.testing.assert_close(method.network(elsewhere, batch.noise[:, 1])[0], prediction)
    errors = patch_errors(prediction, patches_of(batch.volume))
    torch.testing.assert_close(method.training_step(batch, 0.0).loss, errors[hidden].mean())
    views = method.views(batch)
    assert list(views) == ["scan", "visible", "reconstruction"]
    assert torch.equal(views["reconstruction"][~voxels[0]], batch.volume[0][~voxels[0]])
    assert not views["visible"][voxels[0]].any()


def test_weights_are_drawn_as_published() -> None:
    torch.manual_seed(0)
    network = replace(SETTINGS, decoder_width=96).build(replace(NETWORK, width=96)).network
    for name, tensor in network.state_dict().items():
        if name.endswith("bias"):  # PyTorch's default where the authors left it
            assert (tensor == 0).all() != (name in ("encoder.patch_embed.proj.bias", "encoder_to_decoder.bias")), name
        elif name in ("encoder.cls_token", "mask_token"):
            assert tensor.std() == pytest.approx(0.02, rel=0.3)
        elif tensor.ndim > 1 and "pos_embed" not in name:
            rows, columns = tensor.flatten(1).shape
            assert tensor.std() == pytest.approx((2 / (rows + columns)) ** 0.5, rel=0.05), name
    positions = [network.encoder.pos_embed[:, 1:], network.decoder_pos_embed]
    assert all(torch.equal(table, fixed_positions(NETWORK.grid, 96)) for table in positions)
    assert not network.encoder.pos_embed[:, 0].any() and not any(table.requires_grad for table in positions)
    assert all(block.get_submodule("").drop_path == 0 for block in network.encoder.blocks)


def test_the_published_autoencoder_has_its_parameters() -> None:
    with torch.device("meta"):
        network = SelfMedMAEConfig().build(UNETRConfig(patch_size=(96, 96, 96))).network
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == 104_272_384
    optimiser = SelfMedMAEConfig.optimiser
    assert optimiser["lr"] == pytest.approx(6.4e-3 * 4 / 256)


def test_the_loss_falls_on_a_real_scan(head_scan: PreparedDataset) -> None:
    torch.manual_seed(0)
    method = SETTINGS.build(NETWORK)
    draw = SETTINGS.draw(LoaderConfig(patch_size=NETWORK.patch_size))
    batch = method.batch(drawn_batch(head_scan, draw, range(4)))
    optimiser = torch.optim.AdamW([p for p in method.trainable().parameters() if p.requires_grad], 5e-3)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = method.training_step(batch, 0.0).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("network resenc cannot be pretrained by SelfMedMAE", {"network": ResEncConfig()}),
        ("the network unetr has positions", {"loader": LoaderConfig((64, 64, 32))}),
        ("leaves 0 of the 16 patches", {"method": replace(SETTINGS, mask_ratio=0.95)}),
    ],
)
def test_what_does_not_go_with_it_is_refused(message: str, fields: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"method": SETTINGS, "network": NETWORK, "loader": LoaderConfig(NETWORK.patch_size)}
    with pytest.raises(ValueError, match=message):
        PretrainConfig("x", **{**usual, **fields})


@pytest.mark.parametrize(
    ("named", "fields"),
    [("mask_ratio must lie", {"mask_ratio": 1.0}), ("decoder_width must be a multiple of 6", {"decoder_width": 64})],
)
def test_impossible_settings_are_refused_by_name(named: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=named):
        SelfMedMAEConfig(**fields)
