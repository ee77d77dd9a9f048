"""Results of nnU-Net's own transforms: `python nnunet_transforms.py INPUT.npz OUTPUT.npz` in an environment with it.

INPUT has the `shape` (C, D, H, W) and `seed` of an `example`. OUTPUT has that example, and under `nnunet_…` the result
of each transform of its image, of turning and scaling its box, and `nnunet_steps`, the transforms of a training, a line
each. Run without files, it writes the golden file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform

GOLDEN = Path(__file__).parents[2] / "golden/augmentation/transforms.npz"


def main() -> None:
    """Make an example, and transform it."""
    if len(sys.argv) > 1:
        asked = np.load(sys.argv[1])
        np.savez(sys.argv[2], allow_pickle=False, **results(tuple(asked["shape"].tolist()), int(asked["seed"])))
    else:
        np.savez_compressed(GOLDEN, allow_pickle=False, **results((1, 10, 12, 14), 0))


def results(shape: tuple[int, int, int, int], seed: int) -> dict[str, np.ndarray]:
    """Return an example, and what nnU-Net makes of it."""
    given = example(shape, seed)
    made = {**transformed(given), **moved(given), "steps": np.array(steps())}
    return {**given, **{f"nnunet_{name}": value for name, value in made.items()}}


def example(image: tuple[int, int, int, int], seed: int) -> dict[str, np.ndarray]:
    """Draw an image, a box with a label of blocks, 6 voxels wider on every side, and parameters in nnU-Net's ranges."""
    rng, box = np.random.default_rng(seed), [edge + 12 for edge in image[1:]]
    blocks = rng.integers(0, 5, [-(-edge // 4) for edge in box])
    label = np.kron(blocks, np.ones((4, 4, 4), int))[tuple(slice(edge) for edge in box)].astype(np.uint8)
    channels = image[0]
    return {
        "image": rng.normal(0, 1, image).astype(np.float32),
        "box": (label + rng.normal(0, 0.3, (channels, *box))).astype(np.float32),
        "label": label,
        "seed": np.asarray(7),
        "noise": np.asarray(rng.uniform(0, 0.1)),
        "blur": rng.uniform(0.5, 1, (channels, 3)),
        "brightness": rng.uniform(0.75, 1.25, channels),
        "contrast": rng.uniform(0.75, 1.25, channels),
        "zoom": rng.uniform(0.5, 1, channels),
        "gamma": rng.uniform(0.7, 1.5, channels),
        "angles": np.radians(rng.uniform(-30, 30, 3)),
        "planar_angle": np.asarray(np.radians(rng.uniform(-180, 180))),
        "scale": np.asarray(rng.uniform(0.7, 1.4)),
    }


def transformed(given: Any) -> dict[str, np.ndarray]:
    """Apply each transform with the parameters of `given`, which its random choices are replaced by."""
    image = torch.from_numpy(given["image"])
    every = torch.arange(len(image))
    on, off = torch.ones(len(image), dtype=torch.bool), torch.zeros(len(image), dtype=torch.bool)

    def values(name: str) -> torch.Tensor:
        return torch.from_numpy(given[name]).float()

    def change(transform: Any, **parameters: Any) -> np.ndarray:
        return transform._apply_to_image(image.clone(), **parameters).numpy()

    contrast, gamma = ContrastTransform((0.75, 1.25), True, False, 1), GammaTransform((0.7, 1.5), 0, False, 1, 1)
    of_gamma = {"apply_to_channel": every, "retain_stats": on, "gamma": values("gamma")}
    torch.manual_seed(int(given["seed"]))
    noise = {"num_apply": len(image), "apply_idx": every, "sigmas": float(given["noise"])}
    return {
        "noise": change(GaussianNoiseTransform((0, 0.1), 1, True), **noise),
        "blur": change(GaussianBlurTransform((0.5, 1)), apply_to_channel=on, sigmas=given["blur"].tolist()),
        "brightness": change(
            MultiplicativeBrightnessTransform((0.75, 1.25), False),
            apply_to_channel=every,
            multipliers=values("brightness"),
        ),
        "contrast": change(contrast, apply_to_channel=every, multipliers=values("contrast")),
        "zoom": change(
            SimulateLowResolutionTransform((0.5, 1), False, True, None),
            apply_to_channel=every,
            scales=values("zoom")[:, None].expand(-1, 3),
        ),
        "inverted_gamma": change(gamma, invert_image=on, **of_gamma),
        "gamma": change(gamma, invert_image=off, **of_gamma),
    }


def moved(given: Any) -> dict[str, np.ndarray]:
    """Turn and scale `box`, about all axes and in its planes."""
    size, results = given["image"].shape[1:], {}
    for prefix, angles in (("", given["angles"]), ("planar_", given["planar_angle"].reshape(1).repeat(2))):
        spatial = SpatialTransform(
            size[1:] if prefix else size,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_rotation=1,
            rotation=lambda image, dim, angles=angles: float(angles[dim]),
            p_scaling=1,
            scaling=float(given["scale"]),
            p_synchronize_scaling_across_axes=1,
            border_mode_seg="constant",
            padding_value_seg=-1,
        )
        volumes = {
            "image": torch.from_numpy(given["box"]),
            "segmentation": torch.from_numpy(given["label"][None].astype(np.int16)),
        }
        for transform in (Convert3DTo2DTransform(), spatial, Convert2DTo3DTransform()) if prefix else (spatial,):
            volumes = transform(**volumes)
        results[f"{prefix}moved"] = volumes["image"].numpy()
        results[f"{prefix}moved_label"] = volumes["segmentation"][0].numpy()
    return results


def steps() -> list[str]:
    """Describe the transforms that nnU-Net trains with."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    angle = np.radians(30)
    pipeline = nnUNetTrainer.get_training_transforms((64,) * 3, (-angle, angle), None, (0, 1, 2), False)
    found = []
    for step in pipeline.transforms:
        inner, probability = getattr(step, "transform", step), getattr(step, "apply_probability", 1)
        facts = {name: getattr(value, "contrast_range", value) for name, value in sorted(vars(inner).items())}
        facts = {name: value for name, value in facts.items() if isinstance(value, int | float | tuple)}
        found.append(f"{type(inner).__name__} {probability} {facts}")
    return found


if __name__ == "__main__":
    main()
