"""Finetuned networks as their weights describe them, and the check that a data set is what they were made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anatomask.data.fingerprint import Fingerprint
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.nn.backbones.base import Segmenter
from anatomask.weights.files import load_matching, network_of, read_weights
from anatomask.weights.header import require_fields
from anatomask.weights.tensor_files import Weights

MOST_CLASSES = 255
"""Number of classes that a label map of bytes can hold."""


def build_network(weights: Weights) -> Segmenter:
    """Build the segmentation network that weights describe.

    Raises:
        UserError: tensors do not fit; the message names them.
    """
    check_tensors(weights)  # first, for a header may describe a network that no memory holds
    network = network_of(weights.header).segmenter(weights.header["architecture"]["classes"])
    load_matching(network, weights.tensors)
    return network


def check_tensors(weights: Weights) -> None:
    """Check that the tensors are those of the network that the header describes.

    Raises:
        UserError: tensors do not fit; the message names them.
    """
    with torch.device("meta"):
        network = network_of(weights.header).segmenter(weights.header["architecture"]["classes"])
    load_matching(network, weights.tensors)


def read_network(folder: Path) -> Weights:
    """Read the weights of a finetuned network from a folder.

    Raises:
        UserError: the folder holds no weights, or as `check_network`.
    """
    weights = read_weights(folder)
    check_network(weights, folder)
    return weights


def check_network(weights: Weights, source: object) -> None:
    """Check that weights are a finetuned network that can predict scans.

    Raises:
        UserError: the weights are of another kind, the header lacks what a prediction needs, or tensors do not fit it
            or hold values that are not finite; the message names `source`.
    """
    require_segmentation(weights, source)
    network_of(weights.header)
    if "fingerprint" not in weights.header:
        raise UserError(f"{source} does not say how its data were normalised (imported?); finetune from it with --init")
    require_fields(weights.header, source, "patch_size", "mirror_axes", "spacing", "class_names", "initialisation")
    require_fields(weights.header, source, "architecture.classes")
    if (classes := weights.header["architecture"]["classes"]) > MOST_CLASSES:
        raise UserError(f"{source} has {classes} classes; a label map holds {MOST_CLASSES}, so merge some of them")
    channels, named = network_of(weights.header).in_channels, len(weights.header["fingerprint"]["channels"])
    if channels != named:
        raise UserError(
            f"{source} reads {channels} channels and says how {named} of them {'is' if named == 1 else 'are'} "
            "normalised (exported with --in-channels?); finetune from it with --init"
        )
    check_tensors(weights)
    for name, tensor in weights.tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{source}: {name} holds values that are not finite; use the run's other checkpoint (--checkpoint), or "
                "look at the loss of its training"
            )


def require_segmentation(weights: Weights, source: object) -> None:
    """Check that weights are those of a segmentation network.

    Raises:
        UserError: they are not; the message names `source`.
    """
    kind = weights.header.get("kind")
    if kind != "segmentation":
        raise UserError(f"{source} holds {kind} weights, not a segmentation network; run `anatomask finetune` first")


def match_dataset(header: Mapping[str, Any], dataset: PreparedDataset, source: str) -> PreparedDataset:
    """Return the data set with the normalisation of the network's training data.

    Raises:
        UserError: channels or their order, spacing, classes or normalisation schemes are not those of the weights
            `source`.
    """
    fingerprint = Fingerprint.from_dict(header["fingerprint"])
    require_channel_order(header, dataset.channel_names, dataset.shown)
    class_names = {int(class_id): name for class_id, name in header["class_names"].items()}
    pairs = (
        ("channels", network_of(header).in_channels, len(dataset.channel_names)),
        ("classes", class_names, dataset.class_names),
        ("normalisation", [channel.scheme for channel in fingerprint.channels], list(dataset.info.schemes)),
    )
    for name, wanted, given in pairs:
        if wanted != given:
            raise UserError(_mismatch(name, source, wanted, dataset.shown, given))
    if not np.allclose(header["spacing"], dataset.spacing, rtol=1e-3):
        raise UserError(
            _mismatch("spacing", source, f"{header['spacing']} mm", dataset.shown, f"{list(dataset.spacing)} mm")
        )
    return PreparedDataset(dataset.storage, dataset.info, dataset.records, dataset.splits, fingerprint)


def require_channel_order(header: Mapping[str, Any], names: Sequence[str], data: str) -> None:
    """Check that data do not hold the channels that a network reads in another order.

    Args:
        header: of the network's weights.
        names: of the data's channels, in their order.
        data: name of the data in the message.

    Raises:
        UserError: they do.
    """
    read = [str(channel["name"]).lower() for channel in header["fingerprint"]["channels"]]
    given = [name.lower() for name in names]
    if given != read and sorted(given) == sorted(read):
        raise UserError(
            f"{data} has the channels {', '.join(names)}, in another order than the network, which was trained on "
            f"{', '.join(channel['name'] for channel in header['fingerprint']['channels'])}; put the files and their "
            "names into that order"
        )


def _mismatch(name: str, source: str, wanted: Any, data: str, given: Any) -> str:
    return (
        f"{name}: {source} was trained with {wanted}, {data} has {given}; "
        "prepare the data as the network's own were, or name another run or data set"
    )
