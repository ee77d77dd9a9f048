"""MONAI bundle of a finetuned network: its description, the configuration that `monai.bundle run` executes, its guide.

What computes are components of the package `anatomask` (`anatomask.evaluation.bundle`), which the machine that runs the
bundle needs: reading, resampling, normalisation and windows have one implementation. Source of the format: MONAI's
bundle specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from anatomask import __version__
from anatomask.errors import UserError
from anatomask.evaluation.settings import InferenceConfig
from anatomask.nn.backbones import backbone_config
from anatomask.plugins import PREFIX
from anatomask.weights.exporting import UNKNOWN
from anatomask.weights.files import network_of
from anatomask.weights.model_card import METRICS, describe_network

METADATA, INFERENCE, GUIDE, LICENCE = "configs/metadata.json", "configs/inference.json", "docs/README.md", "LICENSE"
"""Files of a bundle, apart from the weights."""
MODELS = "models"
"""Folder of a bundle that holds the weights in our own format."""
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""Address of the JSON schema that MONAI's bundles of today name; `monai.bundle verify_metadata` downloads it."""
COMPONENTS = "anatomask.evaluation"
UNSTATED = "not stated"


def require_importable(header: Mapping[str, Any]) -> None:
    """Check that a bundle's components can build the network where no `--plugin` is given.

    Raises:
        UserError: a file that `--plugin` loaded defines it.
    """
    network = backbone_config(network_of(header).name)
    if network.__module__.startswith(PREFIX):
        raise UserError(
            f"--format monai-bundle is for networks that MONAI's process can import; {network.name} is defined by a "
            "file of --plugin: install that as a package (docs/backbones.md), or choose --format monai"
        )


def metadata(
    name: str, header: Mapping[str, Any], licence: str = UNKNOWN, scores: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe the network in the fields of MONAI's bundle specification.

    Args:
        name: name of the bundle.
        header: header of a finetuned network.
        licence: identifier of the licence of the weights.
        scores: `summary.json` of an evaluation of these very weights. Default: they were not scored.
    """
    channels = [channel["name"] for channel in header["fingerprint"]["channels"]]
    classes = {"0": "background", **header["class_names"]}
    shared = {
        "type": "image",
        "spatial_shape": list(header["patch_size"]),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
    }
    image = {
        **shared,
        "format": "magnitude",
        "modality": ", ".join(channels),
        "num_channels": len(channels),
        "channel_def": {str(number): f"{channel}, normalised" for number, channel in enumerate(channels)},
    }
    pred = {**shared, "format": "labels", "num_channels": len(classes), "channel_def": classes}
    needed = {package: version(package) for package in ("nibabel", "safetensors")}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by anatomask {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"anatomask": __version__, **needed},
        "name": name,
        "task": f"Segmentation of {len(classes) - 1} classes in {image['modality']}",
        "description": describe_network(header),
        "authors": UNSTATED,
        "copyright": UNSTATED,
        "license": UNSTATED if licence == UNKNOWN else licence,
        "data_source": str(header.get("dataset", UNSTATED)),
        "data_type": "nifti",
        **({} if scores is None else {"eval_metrics": {f"mean_{name}": scores[name]["mean"] for name in METRICS}}),
        "intended_use": "Research. It was not made for diagnosis.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def inference(header: Mapping[str, Any]) -> dict[str, Any]:
    """Write the configuration of `monai.bundle run`, which segments a folder of scans as `anatomask predict` does."""
    settings = InferenceConfig()
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "weights": {"_target_": f"{COMPONENTS}.network.read_network", "folder": f"$@bundle_root + '/{MODELS}'"},
        "network_def": {"_target_": f"{COMPONENTS}.bundle.FullResolution", "weights": "@weights"},
        "preprocessing": {
            "_target_": f"{COMPONENTS}.prediction.prepared_case",
            "_mode_": "callable",
            "weights": "@weights",
        },
        "dataset": {
            "_target_": f"{COMPONENTS}.bundle.ScanDataset",
            "data": "@dataset_dir",
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": f"{COMPONENTS}.predictor.Predictor",
            "network": "$@network_def.to(@device).segmenter",
            "patch_size": list(header["patch_size"]),
            "classes": header["architecture"]["classes"],
            "mirror_axes": list(header["mirror_axes"]),
            "inference": {
                "_target_": f"{COMPONENTS}.settings.InferenceConfig",
                "overlap": settings.overlap,
                "batch": settings.batch,
            },
            "device": "@device",
        },
        "evaluator": {
            "_target_": f"{COMPONENTS}.bundle.Evaluator",
            "dataset": "@dataset",
            "inferer": "@inferer",
            "weights": "@weights",
            "output_dir": "@output_dir",
        },
        "run": ["$@evaluator.run()"],
    }


def how_to_run() -> str:
    """Write the part of the guide that says how the bundle is run."""
    return f"""## How to run

The bundle needs the Python package `anatomask` {__version__}, which reads, resamples and normalises the scans and
slides the windows, and `fire`, as every `monai.bundle` command does. In the folder of the bundle:

```sh
python -m monai.bundle run --config_file {INFERENCE} --dataset_dir SCANS --output_dir LABELS
```

- `SCANS` is one NIfTI file, or a folder in any layout that `anatomask predict` reads. A network of several channels
  reads `<case>_0000.nii.gz`, `<case>_0001.nii.gz` and so on.
- `LABELS` receives `<case>.nii.gz`, a label map (uint8, 0 background) on the scan's own grid. It is that of
  `anatomask predict --run {MODELS} --source SCANS --out LABELS`, which also resumes and uses several GPUs.
- In another folder, add `--bundle_root` and the path of the bundle.
- `network_def` in `{INFERENCE}` turns normalised volumes (B, C, D, H, W), axes right-anterior-superior, into
  logits at full resolution.
- `{MODELS}` is a folder of weights, in safetensors, for `anatomask finetune --init` and `anatomask.load_network`."""


def licence_note(licence: str = UNKNOWN) -> str:
    """Write the bundle's note on licences."""
    stated = (
        "Nobody has stated a licence of these weights: ask whoever trained them before you pass them on."
        if licence == UNKNOWN
        else f"Licence of these weights, as whoever exported them stated it: {licence}"
    )
    package = (
        "The package anatomask, which runs them, is under the Apache License 2.0; none of its code is in this bundle."
    )
    return f"{stated}\n\n{package}\n"
