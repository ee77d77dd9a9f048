"""Prediction of one raw case: it is read, resampled, predicted on its own grid, and written."""

from __future__ import annotations

import gzip
import math
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from anatomask.data.datasets.base import RawCase, is_nifti
from anatomask.data.fingerprint import Fingerprint
from anatomask.data.memory import in_units
from anatomask.data.modality import require_kind
from anatomask.data.nifti import require_spacing
from anatomask.data.preprocess import shared_grid
from anatomask.data.scans import PreparedScan, Scan, prepare, read_channels
from anatomask.data.storage import Storage
from anatomask.errors import UserError, unexpected
from anatomask.evaluation.ensemble import predictor_of
from anatomask.evaluation.label_names import name_classes
from anatomask.evaluation.placement import ForwardPass, bytes_to_predict
from anatomask.evaluation.settings import InferenceConfig
from anatomask.files import flush
from anatomask.weights.tensor_files import Weights

LABEL_MAP, PROBABILITIES = ".nii.gz", ".npz"
"""Endings of the files of a case."""
ARRAY = "probabilities"
"""Name of the array in the file of probabilities."""


def predict_scan(
    weights: Sequence[Weights],
    scan: PreparedScan,
    inference: InferenceConfig | None = None,
    device: torch.device | None = None,
    probabilities: np.ndarray | None = None,
) -> nib.Nifti1Image:
    """Segment a prepared scan by one network, or by the mean of several.

    Args:
        weights: weights of finetuned networks that `require_alike` accepts.
        scan: scan prepared for the first of them.
        inference: settings of the sliding windows. Default: the settings of `anatomask evaluate`.
        device: where the networks compute. Default: the CPU.
        probabilities: (classes + 1, D, H, W) float on the scan's own grid, which is filled.

    Returns:
        The label map (uint8, 0 background) on the scan's own grid; its header is the scan's, with the names of classes.

    Raises:
        UserError: a logit is not finite.
    """
    image = predictor_of(weights, inference, device).label_map(scan, probabilities)
    name_classes(image, class_names(weights[0]))
    return image


def class_names(weights: Weights) -> dict[int, str]:
    """List the names of the classes 1 … K that a network finds."""
    return {int(number): name for number, name in sorted(weights.header["class_names"].items())}


@dataclass(frozen=True)
class Prediction:
    """Common parts of the predictions of all scans, apart from the weights."""

    folder: Storage
    """Folder of the label maps."""
    cases: Mapping[str, RawCase]
    """Scans by the names of their cases."""
    inference: InferenceConfig
    probabilities: bool
    """True if the softmax is written, too."""

    def finish(self, weights: Sequence[Weights], case: str, device: torch.device) -> None:
        """Predict one scan and write it; the label map is written last and marks the case as finished.

        Raises:
            UserError: the scan cannot be read, or is not what the networks read; the message names the file.
            OSError: the folder cannot be written.
        """
        scan = prepared_case(self.cases[case], weights[0])
        shape = (len(class_names(weights[0])) + 1, *scan.original_shape)
        path = Path(self.folder.root) / f"{case}{PROBABILITIES}"
        with probability_file(path, shape) if self.probabilities else nullcontext() as probabilities:
            label = predict_scan(weights, scan, self.inference, device, probabilities)
        write_label_map(self.folder, case, label)


def write_label_map(folder: Storage, case: str, label: nib.Nifti1Image) -> None:
    """Write the label map of a case, atomically; equal label maps give equal bytes.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.write(f"{case}{LABEL_MAP}", gzip.compress(label.to_bytes(), compresslevel=3, mtime=0))


def require_apart(source: Path, out: Path, source_field: str, out_field: str) -> None:
    """Check that label maps are not written among the scans; the fields are those that name the paths.

    Raises:
        UserError: one of both folders lies in the other.
    """
    inside, around = out.resolve(), source.resolve()
    if source.is_dir() and (inside.is_relative_to(around) or around.is_relative_to(inside)):
        raise UserError(
            f"{out_field} {out} and {source_field} {source} lie in one another, so that predictions would be taken "
            f"for scans; choose an {out_field} beside the {source_field}"
        )


def prepared_case(raw: RawCase, weights: Weights) -> PreparedScan:
    """Read a scan, and prepare it for a network.

    Raises:
        UserError: as `read_scan_of` and `prepare`, or the file breaks the library that reads it.
    """
    try:
        return prepare(read_scan_of(raw, weights), weights.header)
    except UserError:
        raise
    except Exception as error:  # whatever a broken file makes its library do
        raise UserError(unexpected(raw.images[0].path, error)) from error


def read_scan_of(raw: RawCase, weights: Weights) -> Scan:
    """Read a scan for a network.

    Raises:
        UserError: a file cannot be read or does not say its spacing, the channels are not as many as the network's,
            or their values are a label map's or another modality's. The message names the file.
    """
    channels = Fingerprint.from_dict(weights.header["fingerprint"]).channels
    if len(raw.images) != len(channels):
        names = ", ".join(channel.name for channel in channels)
        raise UserError(
            f"{raw.images[0].path} has {len(raw.images)} channel{'s' * (len(raw.images) > 1)}, the network reads "
            f"{len(channels)} ({names}); give one file per channel, as <case>_0000.nii.gz and so on, or leave it out"
        )
    for image in raw.images:
        if is_nifti(image.path):
            require_spacing(image.path)
    scan = read_channels(raw.images)
    require_kind(str(raw.images[0].path), list(scan.voxels), channels)
    return scan


def bytes_of(raw: RawCase, weights: Sequence[Weights], inference: InferenceConfig, forward: ForwardPass) -> int:
    """Bound the bytes of main memory that predicting a scan takes, by its header; `forward` is of `forward_pass`.

    Raises:
        UserError: the header cannot be read.
    """
    header = weights[0].header
    channels = len(header["fingerprint"]["channels"])
    return bytes_to_predict(
        shared_grid(raw),
        header["spacing"],
        channels,
        len(weights),
        header["architecture"]["classes"],
        header["patch_size"],
        inference,
        forward,
    )


@contextmanager
def probability_file(path: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield an array on the disk, (K, D, H, W) float16, and then compress it into `path`, atomically.

    Raises:
        UserError: the disk has no room for the file.
        OSError: the file cannot be written.
    """
    size = 2 * math.prod(shape)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise UserError(
            f"{path} takes {in_units(size)} before it is compressed, and {in_units(free)} are free; free some space, "
            "choose another --out, or leave --probabilities out"
        )
    scratch, packed = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp") for _ in range(2))
    try:
        array = np.lib.format.open_memmap(scratch, "w+", np.float16, shape)
        with scratch.open("r+b") as file:  # else a disk that fills up would end the process
            os.posix_fallocate(file.fileno(), 0, scratch.stat().st_size)
        yield array
        array.flush()
        del array
        os.utime(scratch, (0, 0))  # which the archive keeps, so that equal arrays are equal bytes
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
            archive.write(scratch, f"{ARRAY}.npy")
        flush(packed)
        packed.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
        packed.unlink(missing_ok=True)
