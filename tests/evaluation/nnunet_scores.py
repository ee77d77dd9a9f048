"""Scores of label maps by nnU-Net: `python nnunet_scores.py INPUT.npz OUTPUT.npz`, in its own environment."""

from __future__ import annotations

import sys

import numpy as np


def main() -> None:
    """Score the files of the folder `predictions` against those of `references`, in the order of their names."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    given = np.load(sys.argv[1])
    labels = given["labels"].tolist()
    folders = str(given["references"]), str(given["predictions"])
    found = compute_metrics_on_folder(*folders, None, SimpleITKIO(), ".nii.gz", labels, None, 1)
    cases = sorted(found["metric_per_case"], key=lambda case: case["prediction_file"])
    np.savez(
        sys.argv[2],
        dice=[[case["metrics"][label]["Dice"] for label in labels] for case in cases],
        voxels=[[case["metrics"][label]["n_ref"] for label in labels] for case in cases],
        mean=[found["mean"][label]["Dice"] for label in labels],
    )


if __name__ == "__main__":
    main()
