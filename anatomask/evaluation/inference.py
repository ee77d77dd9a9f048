"""Sliding-window inference of a finetuned network on whole scans."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import nibabel as nib
import numpy as np
import torch
from nibabel import orientations
from torch import Tensor, nn

from anatomask.data.normalisation import normalise
from anatomask.data.resampling import resample_logits_to_label
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.metrics import dice_scores
from anatomask.evaluation.settings import InferenceConfig

GPU_SHARE = 0.25
"""Of a GPU's free memory, what the logits of a whole case may take there."""


def predict_logits(
    network: nn.Module,
    dataset: PreparedDataset,
    case: str,
    patch_size: Sequence[int],
    mirror_axes: Sequence[int],
    config: InferenceConfig,
    device: torch.device,
) -> Tensor:
    """Logits (classes + 1, D, H, W) of a whole case on its prepared grid.

    The network is a `Segmenter`, and put into eval mode for that. A scan smaller than `patch_size` voxels is
    padded as training crops are. The logits are averaged over all mirrorings of `mirror_axes` (0 R, 1 A, 2 S). They
    are on `device`, or on the CPU where they would fill too much of a GPU.

    Raises UserError when a logit is not finite.
    """
    # Importing MONAI takes seconds, which every command would pay for the settings above.
    from monai.inferers import SlidingWindowInferer

    shape = dataset.records[case].shape
    padded = [max(extent, window) for extent, window in zip(shape, patch_size, strict=True)]
    before = [(outer - extent) // 2 for outer, extent in zip(padded, shape, strict=True)]
    voxels, _ = dataset.read_crop(case, [-margin for margin in before], padded, label=False)
    volume = normalise(torch.from_numpy(voxels).to(device), torch.from_numpy(dataset.normalisation(case)).to(device))
    stitched = _stitching_device(logits_bytes(padded, len(dataset.class_names)), device)
    inferer = SlidingWindowInferer(
        tuple(patch_size), config.batch, config.overlap, mode="gaussian", sw_device=device, device=stitched
    )
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            logits = inferer(volume[None], _mirrored(network, mirror_axes))[0]
    finally:
        network.train(training)
    if not all(bool(torch.isfinite(scores).all()) for scores in logits):  # class by class: no mask of all of them
        raise UserError(
            f"case {case}: the network predicts values that are not finite; its weights or this scan are broken. "
            "Try the run's other checkpoint, or look at the training loss"
        )
    inside = tuple(slice(margin, margin + extent) for margin, extent in zip(before, shape, strict=True))
    return logits[:, *inside]


def predict_case(
    network: nn.Module,
    dataset: PreparedDataset,
    case: str,
    patch_size: Sequence[int],
    mirror_axes: Sequence[int],
    config: InferenceConfig,
    device: torch.device,
) -> nib.Nifti1Image:
    """Label map (uint8) of a case on the grid and affine of its source file; see `predict_logits`."""
    logits = predict_logits(network, dataset, case, patch_size, mirror_axes, config, device)
    record = dataset.records[case]
    affine = np.asarray(record.original_affine)
    to_ras = orientations.io_orientation(affine)
    ras_axis = to_ras[:, 0].astype(int)  # of each axis of the source
    ras_shape = [record.original_shape[axis] for axis in np.argsort(ras_axis)]
    label = resample_logits_to_label(logits, ras_shape).cpu().numpy()
    from_ras = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), to_ras)
    return nib.Nifti1Image(orientations.apply_orientation(label, from_ras), affine)


def validation_dice(
    network: nn.Module,
    dataset: PreparedDataset,
    cases: Iterable[str],
    patch_size: Sequence[int],
    config: InferenceConfig,
    device: torch.device,
) -> dict[int, float]:
    """Mean DSC of each class over `cases`, on the prepared grid and without mirroring: what a training run watches.

    NaN for a class that no case holds.
    """
    scores: dict[int, list[float]] = {class_id: [] for class_id in dataset.class_names}
    for case in cases:
        logits = predict_logits(network, dataset, case, patch_size, (), config, device)
        prediction = logits.argmax(0).to(torch.uint8).cpu().numpy()
        _, truth = dataset.read_volume(case, label=True)
        if truth is None:
            raise UserError(f"case {case} of {dataset.shown} has no label to validate against")
        for class_id, dsc in dice_scores(prediction, truth, scores).items():
            if not math.isnan(dsc):
                scores[class_id].append(dsc)
    return {class_id: float(np.mean(values)) if values else math.nan for class_id, values in scores.items()}


def window_count(shape: Sequence[int], patch_size: Sequence[int], overlap: float) -> int:
    """Windows that cover a volume of `shape` voxels."""
    steps = [max(1, int(window * (1 - overlap))) for window in patch_size]
    return math.prod(
        math.ceil(max(extent - window, 0) / step) + 1
        for extent, window, step in zip(shape, patch_size, steps, strict=True)
    )


def logits_bytes(shape: Sequence[int], classes: int) -> int:
    """Memory of the logits (classes + 1, D, H, W), float32, of a volume of `shape` voxels."""
    return 4 * (classes + 1) * math.prod(shape)


def _stitching_device(needed: int, device: torch.device) -> torch.device:
    """Where windows are put together: on the device, or on the CPU when that takes over a quarter of its free memory.

    The rest is for the network's own activations, and for what resampling takes.
    """
    if device.type == "cuda" and needed > torch.cuda.mem_get_info(device)[0] * GPU_SHARE:
        return torch.device("cpu")
    return device


def _mirrored(network: nn.Module, axes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Windows (B, C, d, h, w) to logits (B, classes + 1, d, h, w), averaged over all mirrorings of `axes`."""
    mirrorings = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]

    def predict(windows: Tensor) -> Tensor:
        total = network(windows)[0]
        for chosen in mirrorings[1:]:  # the first is none
            dims = [axis + 2 for axis in chosen]
            total = total + network(windows.flip(dims))[0].flip(dims)
        return total / len(mirrorings)

    return predict
