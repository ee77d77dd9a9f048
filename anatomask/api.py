"""Python interface, on torch alone: weights and scans in a notebook. See docs/python.md."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from anatomask.data.crops import pad_to
from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.samples import LoaderConfig
from anatomask.data.scans import PreparedScan, Scan, prepare, read_files
from anatomask.errors import UserError
from anatomask.evaluation.absent import value_of_absent
from anatomask.evaluation.ensemble import require_alike
from anatomask.evaluation.metrics import SURFACE_METRICS, ClassScore, score_classes
from anatomask.evaluation.network import build_network, check_network, require_segmentation
from anatomask.evaluation.prediction import predict_scan
from anatomask.evaluation.settings import NSD_AT, AbsentRule, InferenceConfig, Metric
from anatomask.methods import method_of
from anatomask.methods.masked import MaskedMethod, Picture, self_mask_of
from anatomask.nn.backbones.base import Encoder, Segmenter
from anatomask.weights.files import encoder_tensors, load_matching, network_of, read_source, trained_stages
from anatomask.weights.header import require_fields

Source = str | Path
"""Path of weights: a run's folder, a folder of weights, or a `.safetensors` file of ours."""


def load_encoder(source: Source, checkpoint: str = "last") -> Encoder:
    """Load the encoder of pretrained or finetuned weights.

    Args:
        source: a run's folder, a folder of weights (imported ones, too), or a `.safetensors` file of ours.
        checkpoint: checkpoint of a run, `last` or `best`.

    Returns:
        The encoder on the CPU, in eval mode, with the stages that were trained: `encoder(volume)` turns
        (B, C, D, H, W) to a map per stage. Its `widths` and `strides` describe these maps.

    Raises:
        UserError: there are no weights, they are damaged, or tensors are missing.
    """
    weights = read_source(source, checkpoint)
    network = network_of(weights.header)
    encoder = network.encoder(trained_stages(weights.header))
    tensors = encoder_tensors(weights, network)
    load_matching(encoder, {name.removeprefix("encoder."): tensor for name, tensor in tensors.items()})
    return encoder.eval()


def load_network(source: Source, checkpoint: str = "best") -> Segmenter:
    """Load the whole segmentation network of finetuned weights.

    Args:
        source: as in `load_encoder`.
        checkpoint: checkpoint of a run, `best` (the last where none was chosen) or `last`.

    Returns:
        The network on the CPU, in eval mode: `network(volume)[0]` are the logits (B, classes + 1, D, H, W) of
        (B, C, D, H, W), normalised.

    Raises:
        UserError: there are no weights, they are damaged, or of a pretraining, which has no segmentation network.
    """
    weights = read_source(source, checkpoint)
    require_segmentation(weights, source)
    require_fields(weights.header, source, "architecture.classes")
    return build_network(weights).eval()


def read_scan(path: str | Path | Sequence[str | Path]) -> Scan:
    """Read a scan from NIfTI files.

    Args:
        path: one file, or a file per channel in the network's order, all on one grid.

    Returns:
        `voxels` (C, D, H, W) with axes as the file has them, CT in HU; `affine` (4, 4) to mm; `spacing` in mm.

    Raises:
        UserError: a file is missing, damaged, not 3-D or not finite, or the grids differ; the message names it.
    """
    files = [path] if isinstance(path, str | Path) else path
    return read_files([Path(file) for file in files])


def prepare_scan(scan: Scan, source: Source | Mapping[str, Any]) -> PreparedScan:
    """Resample and normalise a scan as the training data of weights were.

    Args:
        scan: from `read_scan`.
        source: weights as in `load_encoder`, whose header gives spacing and normalisation; or these fields as a
            mapping, `spacing` (mm) and `fingerprint` (as in `model.json`).

    Returns:
        `volume` (C, D, H, W) float32, normalised, axes right-anterior-superior; `spacing` in mm; `affine`.

    Raises:
        UserError: the header lacks the normalisation of the training data, or the scan has other channels, is
            constant, or takes more memory than is free.
    """
    header = source if isinstance(source, Mapping) else read_source(source).header
    shown = "the mapping" if isinstance(source, Mapping) else source
    require_fields(header, shown, "spacing", "fingerprint")
    return prepare(scan, header)


def features(encoder: Encoder, volume: Tensor) -> list[Tensor]:
    """Encode a whole volume.

    Args:
        encoder: from `load_encoder`.
        volume: (C, D, H, W), normalised, as `PreparedScan.volume`. Each side is padded at its end, with the channel's
            minimum, to a multiple of the encoder's largest stride. UNETR and MiT have positions for their crop alone.

    Returns:
        A map (width, D/stride, H/stride, W/stride) of the padded volume per stage, highest resolution first, on the
        encoder's device and without gradients.
    """
    stride = max(encoder.strides)
    shape = [-(-edge // stride) * stride for edge in volume.shape[1:]]
    if max(shape) == stride:  # over a single voxel no variance can be taken
        shape = [2 * stride] * 3
    device = next(encoder.parameters()).device
    with torch.no_grad():
        return [stage[0] for stage in encoder(pad_to(volume.to(device), shape)[None])]


def self_mask(source: Source, scan: PreparedScan, masks: int = 4, seed: int = 0, checkpoint: str = "last") -> Picture:
    """Find what a pretrained method would hide of a scan: its self-mask, and the patch losses that lead to it.

    As in section 3.2 of the paper, the teacher reconstructs the scan under random masks; the patches that it
    reconstructs worst are hidden, and random ones until the mask is full. Their share is the largest of the training.

    Args:
        source: weights of a pretraining by a masked method, as in `load_encoder`.
        scan: from `prepare_scan`. Where a whole scan takes too much memory, cut its `stored` to a box.
        masks: number of random masks, over which patch losses are averaged.
        seed: seed of the masks.
        checkpoint: checkpoint of a run, `last` or `best`.

    Returns:
        `patch_loss` (d, h, w), NaN where a patch was never hidden; `self_mask` (d, h, w) bool, True = hidden; and
        `volume`, `random_mask`, `reconstruction` of the first mask; `patch`, the edge of a patch in voxels.

    Raises:
        UserError: the weights are not of a masked method, or no patch of the scan may be hidden.
    """
    weights = read_source(source, checkpoint)
    if weights.header.get("kind") != "pretraining" or not weights.header.get("method"):
        raise UserError(f"{source} holds no pretraining; give the folder of a run of `anatomask pretrain`")
    require_fields(weights.header, source, "patch_size")
    settings = method_of(weights.header).countable()
    method = settings.build(network_of(weights.header))
    draw = settings.draw(LoaderConfig(patch_size=tuple(weights.header["patch_size"])))
    if not (isinstance(method, MaskedMethod) and isinstance(draw, MaskedDraw)):
        raise UserError(f"{source}: {settings.label()} has no self-mask; give a run of AnatoMask or SparK")
    load_matching(method, weights.tensors)
    return self_mask_of(method, draw, scan, masks, seed)


def predict(
    run: Source | Sequence[Source],
    scan: Scan,
    checkpoint: str = "best",
    inference: InferenceConfig | None = None,
    device: str | torch.device | None = None,
) -> nib.Nifti1Image:
    """Segment a scan, as `anatomask predict` and `anatomask evaluate` do with the same weights.

    Args:
        run: weights of a finetuning, as in `load_encoder`; or several, which are averaged.
        scan: from `read_scan`.
        checkpoint: checkpoint of a run, `best` (the last where none was chosen) or `last`.
        inference: settings of the sliding windows. Default: the settings of `anatomask predict`.
        device: where the network computes. Default: a GPU where there is one.

    Returns:
        The label map (uint8, 0 background) on the scan's own grid and affine, with its header and the names of the
        classes. `nibabel.save` writes it.

    Raises:
        UserError: the weights are not a finetuned network, or cannot be averaged; or as `prepare_scan`.
    """
    sources = [run] if isinstance(run, str | Path) else list(run)
    weights = [read_source(source, checkpoint) for source in sources]
    for one, source in zip(weights, sources, strict=True):
        check_network(one, source)
    require_alike(weights, sources)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return predict_scan(weights, prepare(scan, weights[0].header), inference, chosen)


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    labels: Iterable[int],
    tolerance_mm: float | Mapping[int, float] = 3.0,
    *,
    metrics: Collection[Metric] = SURFACE_METRICS,
    absent: AbsentRule = "totalsegmentator",
) -> dict[int, ClassScore]:
    """Score a label map against another on the same grid.

    Args:
        prediction: (D, H, W) whole numbers.
        reference: (D, H, W) whole numbers, the ground truth.
        spacing_mm: voxel size in mm along D, H, W.
        labels: labels to score, from 1 on; other values count as background.
        tolerance_mm: tolerance of the NSD in mm, for all labels or for each.
        metrics: what is computed beside DSC and volumes: `nsd`, `hd95`, `lesions`; `nsd_1mm`, `nsd_2mm`, at these
            tolerances.
        absent: DSC and NSD of a label that the reference lacks: NaN (`totalsegmentator`); 0 where it is predicted, else
            NaN (`nnunet`); 0 where it is predicted, else 1 (`flare`).

    Returns:
        For each label `dsc` and `nsd` (fractions), `hd95_mm` (NaN where either map lacks the label), `voxels` of the
        reference, `volume_ml` and `predicted_volume_ml`; and `lesions`, None unless it is among the metrics. See
        docs/evaluation.md.

    Raises:
        ValueError: the shapes differ, values are not whole numbers, the spacing is not three lengths, a label is below
            1 or lacks a tolerance above or equal to 0, or a metric or the rule is none of those above.
    """
    chosen = [int(label) for label in labels]
    if not chosen or min(chosen) < 1:
        raise ValueError(f"labels must be whole numbers from 1 on, not {chosen}")
    for name, label_map in (("prediction", prediction), ("reference", reference)):
        if label_map.dtype.kind not in "iu" or label_map.min() < 0:
            raise ValueError(f"{name} must hold whole numbers from 0 on, not {label_map.dtype}")
    tolerance = tolerance_mm if isinstance(tolerance_mm, Mapping) else dict.fromkeys(chosen, tolerance_mm)
    if missing := set(chosen) - tolerance.keys():
        raise ValueError(f"tolerance_mm has none for label {min(missing)}")
    if len(spacing_mm) != 3 or not all(0 < edge < math.inf for edge in spacing_mm):
        raise ValueError(f"spacing_mm must be three lengths above 0 in mm, not {tuple(spacing_mm)}")
    tolerances = {label: tolerance[label] for label in chosen}
    if not all(0 <= mm < math.inf for mm in tolerances.values()):
        raise ValueError(f"tolerance_mm must be lengths from 0 on in mm, not {tolerance_mm}")
    for name, given, known in (("metrics", set(metrics), get_args(Metric)), ("absent", {absent}, get_args(AbsentRule))):
        if unknown := given - set(known):
            raise ValueError(f"{name} must be among {', '.join(known)}, not {min(unknown)}")
    scores = score_classes(prediction, reference, spacing_mm, tolerances, metrics)
    for label, score in scores.items():
        if not score.voxels and absent != "totalsegmentator":
            value = value_of_absent(absent, score.predicted_volume_ml > 0)
            nsd: dict[str, Any] = {name: value for name in metrics if name in ("nsd", *NSD_AT)}
            scores[label] = replace(score, dsc=value, **nsd)
    return scores
