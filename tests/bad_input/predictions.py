"""Bad scans, runs and folders for predictions."""

from __future__ import annotations

import json

import numpy as np

from tests.bad_input.kinds import PREDICT, Kind, Spoil
from tests.bad_input.spoiling import cut, directory, duplicate, every, header, text, volume, weights

SCAN, LABEL = "scans/imagesTr/anna_0000.nii.gz", "scans/labelsTr/anna.nii.gz"
TENSORS = "runs/finetuned/checkpoints/step_00000004/model.safetensors"
SAME = "predict --recipe tiny --run runs/finetuned runs/other --source scans/imagesTr --out predicted"
LOST = {"qform_code": 0, "sform_code": 0}


def bad_scan(name: str, spoil: Spoil, says: str) -> Kind:
    """Return the kind of a scan that is not predicted, while the others are."""
    return Kind(name, PREDICT, says, spoil, skips=True)


def copied_run(change: Spoil) -> Spoil:
    """Add a second run, and change the weights of the first."""
    return every(duplicate("runs/finetuned", "runs/other"), change)


KINDS = [
    bad_scan(
        "a scan with more channels than the network",
        duplicate(SCAN, "scans/imagesTr/anna_0001.nii.gz"),
        r"anna_0000.nii.gz has 2 channels, the network reads 1 \(CT\); give one file per channel",
    ),
    bad_scan(
        "an MR for a network of CTs",
        volume(SCAN, lambda voxels: np.abs(voxels)),
        "anna_0000.nii.gz is no CT in HU .*the network reads CT; give a CT",
    ),
    bad_scan(
        "a label map among the scans",
        duplicate(LABEL, "scans/imagesTr/organs.nii.gz"),
        r"organs.nii.gz is a label map, not a scan \(its 3 values .* 0, 1, 2\); leave it out",
    ),
    bad_scan(
        "a scan without spacing", header(SCAN, **LOST, pixdim=[1] * 8), "anna_0000.nii.gz has no spacing .*write the"
    ),
    bad_scan(
        "a scan with voxels of 0 mm",
        header(SCAN, **LOST, pixdim=[1, 0, 2, 2, 0, 0, 0, 0]),
        "anna_0000.nii.gz has no spacing",
    ),
    bad_scan("a damaged scan to predict", cut(SCAN), "anna_0000.nii.gz .*get it again"),
    Kind(
        "predictions of no scans",
        f"{PREDICT} --source empty",
        "empty holds no scans .*choose another",
        directory("empty"),
    ),
    Kind(
        "predictions of a folder that is not there",
        f"{PREDICT} --source nowhere",
        "nowhere: there is no such file or folder; check",
    ),
    Kind("predictions of a text", f"{PREDICT} --source scans/dataset.json", "dataset.json is not a NIfTI file; name a"),
    Kind(
        "predictions by a pretraining",
        f"{PREDICT} --run runs/pretrained",
        "pretraining weights, not a segmentation network; run",
    ),
    Kind(
        "predictions by one run twice",
        f"{PREDICT} --run runs/finetuned",
        "run names runs/finetuned twice",
    ),
    Kind("predictions by no run", "predict --source scans/imagesTr --out predicted", "run"),
    Kind(
        "predictions by runs of other classes",
        SAME,
        "runs/finetuned was trained with .*runs/other with .*give runs of one",
        copied_run(weights(TENSORS, lambda t, h: h.update(class_names={"1": "liver", "2": "heart"}))),
    ),
    Kind(
        "predictions by runs of another spacing",
        SAME,
        "spacing: runs/finetuned .*; give runs",
        copied_run(weights(TENSORS, lambda t, h: h.update(spacing=[3.0, 2.0, 2.0]))),
    ),
    Kind(
        "predictions into a folder with others",
        PREDICT,
        "predicted/anna.nii.gz is there, but no prediction of anatomask; choose another --out",
        text("predicted/anna.nii.gz", "x"),
    ),
    Kind(
        "predictions into the folder of the scans", f"{PREDICT} --out scans/imagesTr/new", "lie in one another.*choose"
    ),
    Kind(
        "predictions into a folder with a damaged claim",
        PREDICT,
        "prediction.json is damaged",
        text("predicted/prediction.json", "5"),
    ),
    *(
        Kind(
            f"predictions over a claim whose cases are {cases}{' to overwrite' if flags else ''}",
            f"{PREDICT} {flags}",
            "prediction.json is damaged .cases is no list of names",
            text("predicted/prediction.json", json.dumps({"source": 1, "weights": [], "cases": cases})),
        )
        for cases in (5, [1])
        for flags in ("", "--overwrite")
    ),
    Kind("predictions into a file", PREDICT, "predicted.*choose another", text("predicted", "x")),
    Kind("predictions into a bucket", f"{PREDICT} --out s3://bucket/out", "must be on this machine; name local"),
]
