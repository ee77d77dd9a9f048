"""Batches of drawn samples, as the loader makes them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from anatomask.data.samples import Draw, SampleSequence, stacked
from anatomask.data.shards import PreparedDataset
from anatomask.training.loop import to_device


def drawn_batch(dataset: PreparedDataset, draw: Draw, samples: Iterable[int]) -> dict[str, Tensor]:
    """Draw the samples with these numbers of the case "one", and stack them."""
    sequence = SampleSequence(("one",), 0)
    drawn = [{"sample": np.asarray(k), **draw(dataset, "one", sequence.rng(k))} for k in samples]
    return to_device(stacked(drawn), torch.device("cpu"))
