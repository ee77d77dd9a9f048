"""Each transform against nnU-Net's own (batchgeneratorsv2), with the same parameters on the same voxels."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anatomask.data.augmentation import draws, intensity
from anatomask.data.augmentation.draws import rotation
from anatomask.data.augmentation.spatial import resample

Arrays = Mapping[str, np.ndarray]
GOLDEN = Path(__file__).parents[2] / "golden/augmentation/transforms.npz"
SCRIPT = Path(__file__).with_name("nnunet_transforms.py")
CHANGES = ("noise", "blur", "brightness", "contrast", "zoom", "inverted_gamma", "gamma")


@pytest.fixture(scope="module")
def numbers() -> Arrays:
    """What `nnunet_transforms.py` wrote: voxels, parameters, and nnU-Net's results."""
    return dict(np.load(GOLDEN))


def ours_of(change: str, given: Arrays) -> np.ndarray:
    """Our result of one change of the example's image."""
    image = torch.from_numpy(given["image"])
    values = {
        name: torch.from_numpy(given[name]).float() for name in ("blur", "brightness", "contrast", "zoom", "gamma")
    }
    results: dict[str, Callable[[], torch.Tensor]] = {
        "noise": lambda: image + intensity.gaussian_noise(image, float(given["noise"]), int(given["seed"])),
        "blur": lambda: intensity.blur(image, values["blur"]),
        "brightness": lambda: intensity.brighten(image, values["brightness"]),
        "contrast": lambda: intensity.change_contrast(image, values["contrast"]),
        "zoom": lambda: intensity.lower_resolution(image, values["zoom"][:, None].expand(-1, 3)),
        "inverted_gamma": lambda: intensity.gamma(image, values["gamma"], inverted=True),
        "gamma": lambda: intensity.gamma(image, values["gamma"]),
    }
    return results[change]().numpy()


def compare_intensity(change: str, given: Arrays) -> None:
    found, expected = ours_of(change, given), given[f"nnunet_{change}"]
    assert np.abs(expected - given["image"]).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def compare_spatial(planar: bool, given: Arrays) -> None:
    """Where the box holds what is asked for: beyond it, nnU-Net has zeros."""
    prefix, box, size = "planar_" if planar else "", given["label"].shape, given["image"].shape[1:]
    size = (box[0], *size[1:]) if planar else size
    scale, angle = float(given["scale"]), float(given["planar_angle"])
    matrix = rotation((angle, 0, 0)) if planar else rotation(given["angles"].tolist())
    matrix = matrix @ np.diag([1 if planar else scale, scale, scale])
    start = [(edge - wide) // 2 for edge, wide in zip(size, box, strict=True)]
    image, label = resample(torch.from_numpy(given["box"]), torch.from_numpy(given["label"]), matrix, start, size)

    seen = np.stack(np.meshgrid(*[np.arange(edge) - (edge - 1) / 2 for edge in size], indexing="ij"), -1) @ matrix.T
    inside = (np.abs(seen) <= (np.array(box) - 1) / 2 + 1e-6).all(-1)
    assert inside.mean() > 0.3
    expected, expected_label = given[f"nnunet_{prefix}moved"], given[f"nnunet_{prefix}moved_label"]
    np.testing.assert_allclose(image.numpy()[:, inside], expected[:, inside], rtol=0, atol=1e-3 * np.ptp(given["box"]))
    assert (label.numpy() != expected_label)[inside].mean() < 1e-3
    assert len(np.unique(label)) > 3


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_intensity_are_nnunets(change: str, numbers: Arrays) -> None:
    compare_intensity(change, numbers)


@pytest.mark.parametrize("planar", [False, True])
def test_turning_and_scaling_are_nnunets(planar: bool, numbers: Arrays) -> None:
    compare_spatial(planar, numbers)


def test_order_probabilities_and_ranges_are_nnunets(numbers: Arrays) -> None:
    steps = [line.split(" ", 2) for line in numbers["nnunet_steps"].tolist()]
    parsed = [(name.removesuffix("Transform"), float(probability), facts(text)) for name, probability, text in steps]
    (first, _, spatial), *changes, (mirror, _, _), (remove, _, _) = parsed
    assert (first, mirror, remove) == ("Spatial", "Mirror", "RemoveLabel")
    assert spatial["p_elastic_deform"] == 0 and spatial["p_synchronize_scaling_across_axes"] == 1
    assert (spatial["p_rotation"], *spatial["rotation"]) == pytest.approx(draws.ROTATION)
    assert (spatial["p_scaling"], *spatial["scaling"]) == draws.SCALING
    expected = (
        ("GaussianNoise", "noise_variance", draws.NOISE, 1),
        ("GaussianBlur", "blur_sigma", draws.BLUR, draws.CHANNEL),
        ("MultiplicativeBrightness", "multiplier_range", draws.BRIGHTNESS, 1),
        ("Contrast", "contrast_range", draws.CONTRAST, 1),
        ("SimulateLowResolution", "scale", draws.LOW_RESOLUTION, draws.CHANNEL),
        ("Gamma", "gamma", draws.INVERTED_GAMMA, 1),
        ("Gamma", "gamma", draws.GAMMA, 1),
    )
    for (name, probability, has), (theirs, parameter, ours, channel) in zip(changes, expected, strict=True):
        assert (name, probability, *has[parameter], has["p_per_channel"]) == (theirs, *ours, channel)
    assert [has["p_invert_image"] for _, _, has in changes[5:]] == [1, 0]
    assert all(has["p_retain_stats"] == 1 for _, _, has in changes[5:])


def facts(text: str) -> dict[str, Any]:
    """The attributes of a transform, which the script wrote as text."""
    found = ast.literal_eval(text.replace("np.float64", ""))
    assert isinstance(found, dict)
    return found


def rounding_of_positions(box: np.ndarray) -> float:
    """What a processor's rounding may change: neighbours differ by up to the range, positions are in float32."""
    return float(np.finfo(np.float32).eps * max(box.shape) * np.ptp(box))


@pytest.mark.slow
def test_all_of_it_against_nnunet_itself(numbers: Arrays, nnunet: Callable[..., Arrays]) -> None:
    again = nnunet(SCRIPT, shape=numbers["image"].shape, seed=0)
    assert again.keys() == numbers.keys()
    for name, value in numbers.items():
        if value.dtype.kind == "f":
            bound = rounding_of_positions(numbers["box"]) if "moved" in name else 1e-6
            np.testing.assert_allclose(again[name], value, rtol=0, atol=bound, err_msg=name)
        else:
            np.testing.assert_array_equal(again[name], value, err_msg=name)
    for seed, shape in enumerate([(2, 34, 40, 36), (1, 48, 32, 40), (3, 20, 26, 64), (1, 64, 64, 64)], start=1):
        given = nnunet(SCRIPT, shape=shape, seed=seed)
        for change in CHANGES:
            compare_intensity(change, given)
        for planar in (False, True):
            compare_spatial(planar, given)
