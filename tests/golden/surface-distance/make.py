"""Write numbers.json: what other libraries say of the masks of tests/evaluation/mask_pairs.py.

python make.py REAL_DATA, in the environment that README.md makes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))

import cc3d  # type: ignore[import-not-found]  # noqa: E402
import numpy as np  # noqa: E402
import surface_distance  # type: ignore[import-not-found]  # noqa: E402

from tests.evaluation.mask_pairs import random_pairs, real_pairs  # noqa: E402


def untouched(mask: np.ndarray, other: np.ndarray) -> tuple[int, int, int]:
    """Count the components of 18 neighbours, those that the other mask does not touch, and the voxels of these."""
    labels = cc3d.connected_components(mask, connectivity=18)
    sizes = [int((labels == index).sum()) for index in range(1, labels.max() + 1) if not other[labels == index].any()]
    return int(labels.max()), len(sizes), sum(sizes)


numbers = {}
for pair in [*random_pairs(200), *real_pairs(Path(sys.argv[1]))]:
    distances = surface_distance.compute_surface_distances(pair.reference, pair.prediction, pair.spacing)
    numbers[pair.name] = {
        "dsc": float(surface_distance.compute_dice_coefficient(pair.reference, pair.prediction)),
        "nsd": float(surface_distance.compute_surface_dice_at_tolerance(distances, pair.tolerance)),
        "hd95_mm": float(surface_distance.compute_robust_hausdorff(distances, 95)),
        "lesions": untouched(pair.reference, pair.prediction),
        "predicted_lesions": untouched(pair.prediction, pair.reference),
    }
lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in numbers.items())
(HERE / "numbers.json").write_text(f"{{\n{lines}\n}}\n")
