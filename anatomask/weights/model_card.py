"""Model card of exported weights: the `README.md` of a folder as the Hugging Face hub lays one out.

It begins with fields in YAML, by which the hub lists the weights, and says in words what they are and how to load them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from anatomask.nn.backbones.base import BackboneConfig
from anatomask.weights.exporting import UNKNOWN, Export
from anatomask.weights.files import HEADER, TENSORS, method_label, network_of

MODEL_CARD = "README.md"
TASKS = {"pretraining": "image-feature-extraction", "segmentation": "image-segmentation"}
"""Names of the hub for what weights of each kind are for."""
METRICS = ("dsc", "nsd")
FACES = "RAS"
"""Axes of volumes: to the right, to the front, to the head."""


def model_card(name: str, export: Export, licence: str = UNKNOWN, scores: Mapping[str, Any] | None = None) -> str:
    """Write the model card.

    Args:
        name: title of the card.
        export: weights that lie beside it, in our own format.
        licence: identifier of a licence on the hub.
        scores: `summary.json` of an evaluation of these very weights. Default: they were not scored.
    """
    front = yaml.safe_dump(_front_matter(name, export.header, licence, scores), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{guide(name, export, licence, scores, _loading(export.header))}"


def guide(name: str, export: Export, licence: str, scores: Mapping[str, Any] | None, loading: str) -> str:
    """Write the card without the hub's fields; `loading` is its part on how to use the weights."""
    parts = [
        f"# {name}",
        describe_network(export.header),
        _table(("", ""), _facts(export)),
        loading,
        _scores(scores),
        _licence(licence),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(
    name: str, header: Mapping[str, Any], licence: str, scores: Mapping[str, Any] | None
) -> dict[str, Any]:
    kind = header["kind"]
    tags = ["medical", "3d", "self-supervised" if kind == "pretraining" else "segmentation", network_of(header).name]
    fields = {"license": licence, "library_name": "anatomask", "pipeline_tag": TASKS[kind], "tags": tags}
    if scores is None:
        return fields
    over = f"mean over {scores['cases']} cases"
    means = {metric: scores[metric]["mean"] for metric in METRICS}
    found = [
        {"type": metric, "name": f"{metric.upper()}, {over}", "value": mean}
        for metric, mean in means.items()
        if mean is not None
    ]
    dataset = {"type": scores["dataset"], "name": scores["dataset"], "split": scores.get("split")}
    result = {"task": {"type": TASKS[kind]}, "dataset": dataset, "metrics": found}
    return {**fields, "model-index": [{"name": name, "results": [result]}]}


def describe_network(header: Mapping[str, Any]) -> str:
    """Say in a sentence what weights are of, and how they were trained."""
    network, dataset = network_of(header).label(), header.get("dataset", "unknown data")
    if header["kind"] == "pretraining":
        method = method_label(header)
        return f"Encoder of {network} for 3D medical images, pretrained without labels by {method} on {dataset}."
    start = (header.get("initialisation") or {}).get("method", "unknown weights")
    began = "from scratch" if start == "scratch" else f"from weights of: {start}"
    return f"{network} for the segmentation of 3D medical images, trained with labels on {dataset}, {began}."


def _facts(export: Export) -> list[tuple[str, str]]:
    """List what a user of the weights must know, from their header; what it lacks is left out."""
    header = export.header
    network: BackboneConfig = network_of(header)
    numbers = sum(tensor.numel() for tensor in export.content.values())
    channels = (header.get("fingerprint") or {}).get("channels", ())
    classes = header.get("class_names") or {}
    rows = [
        ("network", f"{network.label()}, {numbers / 1e6:.2f} M parameters in {export.exported} tensors"),
        ("strides", export.strides),
        ("image channels", "; ".join(map(_channel, channels)) or str(network.in_channels)),
        ("voxel size", _product(header.get("spacing"), " mm along R, A, S")),
        ("crop", _product(header.get("patch_size"), " voxels")),
        ("mirrored along", " ".join(FACES[axis] for axis in header.get("mirror_axes", ()))),
        ("classes", ", ".join(f"{number} {classes[number]}" for number in sorted(classes, key=int))),
        ("labelled training cases", str(header.get("train_cases", ""))),
    ]
    return [row for row in rows if row[1]]


def _channel(channel: Mapping[str, Any]) -> str:
    """Say how a channel is normalised."""
    name, scheme = channel["name"], channel["scheme"]
    if scheme in ("ct", "quantitative"):
        low, high, mean, std = (channel[key] for key in ("percentile_00_5", "percentile_99_5", "mean", "std"))
        return f"{name}: clipped to {low:g} to {high:g}, minus {mean:.4g}, divided by {std:.4g}"
    return f"{name}: " + ("normalised by its own mean and deviation" if scheme == "zscore" else "as it is")


def _product(edges: Sequence[float] | None, unit: str) -> str:
    return " x ".join(f"{edge:g}" for edge in edges) + unit if edges else ""


def _loading(header: Mapping[str, Any]) -> str:
    whole = header["kind"] == "segmentation"
    load, name = ("load_network", "network") if whole else ("load_encoder", "encoder")
    lines = ["## How to load", "", "With the Python package `anatomask`, and this folder as `weights`:", ""]
    lines += ["```python", "import anatomask", "", f'{name} = anatomask.{load}("weights")', "```", "", "```sh"]
    lines += ["anatomask finetune --init weights --data shards"]
    lines += ["anatomask predict --run weights --source scans --out predictions"] if whole else []
    lines += ["```", "", f"`{TENSORS}` is a plain safetensors file; `{HEADER}` is a readable copy of its header."]
    return "\n".join(lines)


def _scores(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return "## Scores\n\nNone are known: these weights were not evaluated."
    rows = [(metric.upper(), *_percent(scores[metric])) for metric in METRICS]
    split, tolerances = scores.get("split"), scores.get("nsd_tolerance_mm") or {}
    seen = " They were trained on, so the scores say nothing of new scans." if split == "train" else ""
    text = (
        f"On {scores['dataset']}, {scores['cases']} cases of the split {split}.{seen} A case's score is the mean over "
        f"its classes; mean and SD are over cases. NSD at {_range(tolerances.values())} mm."
    )
    return f"## Scores\n\n{text}\n\n{_table(('measure', 'mean [%]', 'SD'), rows)}"


def _range(values: Iterable[float]) -> str:
    found = sorted(set(values))
    if not found:
        return "an unstated number of"
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}, by class,"


def _percent(score: Mapping[str, float | None]) -> tuple[str, str]:
    mean, sd = ("–" if score[part] is None else f"{100 * float(score[part] or 0):.1f}" for part in ("mean", "sd"))
    return mean, sd


def _licence(licence: str) -> str:
    text = "Nobody has stated one: ask whoever trained them." if licence == UNKNOWN else f"`{licence}`"
    return f"## Licence of the weights\n\n{text}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
