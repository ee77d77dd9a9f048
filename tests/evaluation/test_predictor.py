from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

from anatomask.data.scans import prepared_scan
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation import validation
from anatomask.evaluation.metrics import dice_scores
from anatomask.evaluation.predictor import Predictor, _mirrored, _stitching_device
from anatomask.evaluation.settings import InferenceConfig
from anatomask.evaluation.validation import Validation
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.training.journal import note_events
from anatomask.training.parallel import shard

CPU = torch.device("cpu")
PLAIN = InferenceConfig(mirror=False)
PATCH = (16, 16, 16)

MakeDataset = Callable[..., PreparedDataset]
Blobs = Callable[[Sequence[int]], np.ndarray]
Oriented = Callable[[np.ndarray, Sequence[float], str], nib.Nifti1Image]


def predict_logits(
    network: nn.Module, dataset: PreparedDataset, case: str, axes: Sequence[int] = (), device: torch.device = CPU
) -> Tensor:
    scan = prepared_scan(dataset, case)
    return Predictor(network, PATCH, 2, axes, PLAIN, device).logits(scan.normalised(device), scan.name)


def predict_case(network: nn.Module, dataset: PreparedDataset, case: str, axes: Sequence[int] = ()) -> nib.Nifti1Image:
    return Predictor(network, PATCH, 2, axes, PLAIN).label_map(prepared_scan(dataset, case))


class IntensityNetwork(nn.Module):
    """Answers with the class whose intensity is nearest: called as an STU-Net is, with logits that are known."""

    def forward(self, windows: Tensor) -> list[Tensor]:
        levels = torch.tensor([0.0, 100.0, 200.0]).view(1, 3, 1, 1, 1)
        return [-((windows - levels) ** 2) / 1000]


class LeftRightNetwork(IntensityNetwork):
    """Prefers class 1 in the first half of its window's first axis: an answer that mirroring cancels."""

    def forward(self, windows: Tensor) -> list[Tensor]:
        bias = torch.linspace(-1, 1, windows.shape[2]).view(1, 1, -1, 1, 1).expand_as(windows)
        return [torch.cat((torch.zeros_like(bias), bias, torch.full_like(bias, -9.0)), dim=1)]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ARI", "SLP", "PIR"])
@pytest.mark.parametrize("mirror", [False, True])
def test_the_prediction_lies_on_the_source_grid(
    make_dataset: MakeDataset, codes: str, mirror: bool, oriented_image: Oriented, blobs: Blobs
) -> None:
    """Flipped and permuted axes, anisotropic voxels, a volume that windows do not divide: the label comes back."""
    truth, spacing = blobs((30, 21, 25)), (1.5, 2.0, 4.0)
    dataset = make_dataset({"a": truth}, spacing, codes)
    prediction = predict_case(IntensityNetwork(), dataset, "a", (0, 1, 2) if mirror else ())
    source = oriented_image(truth, spacing, codes)
    assert prediction.get_data_dtype() == np.uint8
    np.testing.assert_allclose(prediction.affine, source.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(prediction.dataobj), np.asarray(source.dataobj))


@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_the_prediction_is_resampled_to_the_source_spacing(
    make_dataset: MakeDataset, codes: str, oriented_image: Oriented, blobs: Blobs
) -> None:
    truth, spacing = blobs((40, 33, 21)), (1.5, 2.0, 4.0)
    dataset = make_dataset({"a": truth}, spacing, codes, target=(2.5, 2.5, 2.5))
    assert dataset.records["a"].shape != truth.shape
    prediction = predict_case(IntensityNetwork(), dataset, "a")
    source = np.asarray(oriented_image(truth, spacing, codes).dataobj)
    assert prediction.shape == source.shape
    assert min(dice_scores(np.asarray(prediction.dataobj), source, (1,)).values()) > 0.95


def test_a_scan_smaller_than_the_patch_is_padded_as_in_training(make_dataset: MakeDataset, blobs: Blobs) -> None:
    """With the channel's minimum, which is not 0 once the volume is normalised."""
    seen: list[Tensor] = []

    class Recorder(IntensityNetwork):
        def forward(self, windows: Tensor) -> list[Tensor]:
            seen.append(windows.clone())
            return super().forward(windows)

    label = blobs((12, 20, 9))
    label[label == 0] = 1  # no background voxel: the minimum is 100
    dataset = make_dataset({"a": label})
    logits = predict_logits(Recorder(), dataset, "a")
    assert logits.shape == (3, 12, 20, 9)
    np.testing.assert_array_equal(logits.argmax(0).numpy(), label)
    assert all(window.shape[2:] == PATCH for window in seen)
    assert min(float(window.min()) for window in seen) == 100.0


def test_mirroring_averages_over_all_axes(make_dataset: MakeDataset, blobs: Blobs) -> None:
    dataset = make_dataset({"a": blobs(PATCH)})
    plain = predict_logits(LeftRightNetwork(), dataset, "a")
    assert float(plain[1].abs().max()) > 0.9
    mirrored = predict_logits(LeftRightNetwork(), dataset, "a", (0,))
    assert float(mirrored[1].abs().max()) < 1e-5


def test_windows_are_normalised_on_the_device(make_dataset: MakeDataset, blobs: Blobs) -> None:
    class Echo(nn.Module):
        def forward(self, windows: Tensor) -> list[Tensor]:
            return [windows]

    dataset = make_dataset({"a": blobs(PATCH)})
    channel = dataset.fingerprint.channels[0]
    object.__setattr__(channel, "percentile_99_5", 150.0)
    object.__setattr__(channel, "mean", 50.0)
    object.__setattr__(channel, "std", 25.0)
    logits = predict_logits(Echo(), dataset, "a")
    image, _ = dataset.read_volume("a", label=False)
    expected = (np.clip(image.astype(float), -1000, 150) - 50) / 25
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-5)


def test_the_network_keeps_its_mode(make_dataset: MakeDataset, blobs: Blobs) -> None:
    class Mode(IntensityNetwork):
        def forward(self, windows: Tensor) -> list[Tensor]:
            assert not self.training and not torch.is_grad_enabled()
            return super().forward(windows)

    network = Mode().train()
    predict_logits(network, make_dataset({"a": blobs(PATCH)}), "a")
    assert network.training


def test_a_prediction_that_is_not_finite_names_the_case(make_dataset: MakeDataset, blobs: Blobs) -> None:
    class Broken(nn.Module):
        def forward(self, windows: Tensor) -> list[Tensor]:
            return [torch.full((len(windows), 3, *windows.shape[2:]), math.nan)]

    with pytest.raises(UserError, match=r"case a: .*not finite"):
        predict_logits(Broken(), make_dataset({"a": blobs(PATCH)}), "a")


def test_validation_is_the_mean_over_the_cases_that_hold_a_class(make_dataset: MakeDataset, blobs: Blobs) -> None:
    """Class 1 is missed in one of two cases, class 2 is found in the only case that has it."""
    both = blobs((20, 18, 22))
    missed = np.zeros((17, 17, 17), np.uint8)
    missed[4:9, 4:9, 4:9] = 1

    class Half(IntensityNetwork):
        def forward(self, windows: Tensor) -> list[Tensor]:
            logits = super().forward(windows)[0]
            return [logits if float(windows.max()) > 150 else logits[:, [1, 0, 2]]]

    dataset = make_dataset({"a": both, "b": missed})
    names = dataset.class_names
    validation = Validation(dataset.storage, ("a", "b"), (32, 32, 32), PLAIN)
    assert validation(Half(), CPU).dsc == pytest.approx({names[1]: 0.5, names[2]: 1.0}, abs=0.01)
    alone = replace(validation, cases=("b",))(Half(), CPU)
    assert alone.dsc.keys() == {names[1]} and [one.case for one in alone.slices] == ["b"]


def test_a_long_validation_says_in_the_journal_that_it_goes_on(
    make_dataset: MakeDataset, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "SILENT_SECONDS", 0)
    dataset = make_dataset(dict.fromkeys("abc", blobs((20, 18, 22))))
    note_events(tmp_path)
    Validation(dataset.storage, ("a", "b", "c"), (32, 32, 32), PLAIN)(IntensityNetwork(), CPU)
    told = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.partition(" validation: ")[2] for line in told] == ["1 of 3 cases", "2 of 3 cases"]
    logging.getLogger("anatomask").handlers.clear()


@pytest.mark.parametrize(("field", "value"), [("overlap", 1.0), ("overlap", -0.1), ("batch", 0)])
def test_settings_out_of_range_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        InferenceConfig(**{field: value})


def test_a_prediction_reads_back_as_nifti(make_dataset: MakeDataset, tmp_path: Path, blobs: Blobs) -> None:
    dataset = make_dataset({"a": blobs((18, 20, 17))}, (1.0, 2.0, 3.0), "LPS")
    nib.save(predict_case(IntensityNetwork(), dataset, "a"), tmp_path / "p.nii.gz")
    truth = dataset.original_label("a")
    read = nib.Nifti1Image.from_filename(tmp_path / "p.nii.gz")
    np.testing.assert_allclose(read.affine, truth.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(read.dataobj), np.asarray(truth.dataobj))


def test_logits_that_would_fill_the_gpu_are_put_together_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000))
    gpu = torch.device("cuda:0")
    assert _stitching_device(250, gpu) == gpu
    assert _stitching_device(251, gpu) == CPU
    assert _stitching_device(10**9, CPU) == CPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_device_of_the_logits_does_not_change_them(
    make_dataset: MakeDataset, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sharpen(nn.Module):
        def forward(self, windows: Tensor) -> list[Tensor]:
            return [torch.cat((windows, -windows, windows**2), 1)]

    dataset, gpu = make_dataset({"a": blobs((30, 21, 25))}), torch.device("cuda")
    there = predict_logits(Sharpen(), dataset, "a", (0, 1, 2), gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000))
    here = predict_logits(Sharpen(), dataset, "a", (0, 1, 2), gpu)
    assert (there.device.type, here.device.type) == ("cuda", "cpu")
    torch.testing.assert_close(here, there.cpu())


def test_one_class_that_is_not_finite_is_found(make_dataset: MakeDataset, blobs: Blobs) -> None:
    class OneBadVoxel(IntensityNetwork):
        def forward(self, windows: Tensor) -> list[Tensor]:
            logits = super().forward(windows)[0]
            logits[0, 2, 3, 3, 3] = math.inf
            return [logits]

    with pytest.raises(UserError, match="not finite"):
        predict_logits(OneBadVoxel(), make_dataset({"a": blobs(PATCH)}), "a")


@pytest.mark.parametrize(
    "config", [STUNetConfig(base=2), ResEncConfig(widths=(4, 8, 8), blocks=(1, 1, 1))], ids=["stunet", "resenc"]
)
def test_means_of_what_the_last_head_reads_give_the_means_of_logits(config: BackboneConfig) -> None:
    """Over windows and mirrorings, on the way to another grid."""
    torch.manual_seed(1)
    network, volume = config.segmenter(5).eval(), torch.randn(1, 40, 37, 50)
    few = Predictor(network, (32, 32, 32), 5, (0, 2))
    many = Predictor(network, (32, 32, 32), 5, (0, 2))
    many.head = None
    assert few.channels < many.channels == 6
    torch.testing.assert_close(few.logits(volume), many.logits(volume), atol=1e-4, rtol=1e-4)
    labels = [one.labels(volume, (30, 50, 41)) for one in (few, many)]
    assert (labels[0] == labels[1]).mean() > 0.999
    assert Predictor(network, (32, 32, 32), 1).head is None


def test_mirrorings_are_summed_without_touching_the_windows() -> None:
    """Against the mean over all eight, one at a time, of a network that sees left from right."""
    torch.manual_seed(0)
    layer = nn.Conv3d(1, 3, 3, padding=1)

    windows = torch.randn(2, 1, 6, 5, 4)
    before = windows.clone()
    expected = torch.zeros(2, 3, 6, 5, 4)
    for bits in range(8):
        dims = [axis + 2 for axis in range(3) if bits >> axis & 1]
        expected += layer(windows.flip(dims)).flip(dims) / 8
    torch.testing.assert_close(_mirrored(layer, (0, 1, 2))(windows), expected)
    assert torch.equal(windows, before)


def test_a_network_whose_weights_are_divided_predicts_as_the_whole_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = STUNetConfig(base=2).segmenter(5)  # more classes than channels before the last convolution
    volume = torch.randn(1, 20, 16, 16)
    whole = Predictor(network, PATCH, 5, inference=PLAIN).labels(volume, (20, 16, 16))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        shard(network)
        assert np.array_equal(Predictor(network, PATCH, 5, inference=PLAIN).labels(volume, (20, 16, 16)), whole)
        network.train()(volume[None, :, :16])[0].sum().backward()
    finally:
        distributed.destroy_process_group()
