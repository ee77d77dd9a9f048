"""Choice of the slice of a label map that shows most."""

from __future__ import annotations

import numpy as np


def best_slice(label: np.ndarray) -> int:
    """Find the axial slice (index along S) of (R, A, S) `label` that shows most classes, each at its fullest."""
    classes = np.unique(label[label > 0])
    if not classes.size:
        return label.shape[2] // 2
    areas = np.array([(label == class_id).sum(axis=(0, 1)) for class_id in classes], float)
    return int((areas / areas.max(axis=1, keepdims=True)).sum(axis=0).argmax())
