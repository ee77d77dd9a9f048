"""Identity of a run: its settings and the content of its inputs, never the paths of either."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from anatomask.nn.backbones import as_older_versions

WATCHED = (
    "loader.read_ahead",
    *(
        f"training.{field}"
        for field in ("checkpoint_every", "checkpoint_minutes", "log_every", "on_non_finite", "trackers")
    ),
)
OF_SWEEPS = tuple(
    f"{stage}.{field}"
    for stage in ("pretrain", "finetune")
    for field in (
        "training.trackers",
        "training.checkpoint_minutes",
        "cluster.wait_minutes",
        "cluster.gpu_type",
        "plan.links",
    )
)
"""Fields of a sweep's stages that are not in the keys of older sweeps either."""
ELSEWHERE = (
    *("name", "runs", "out", "cluster", "plan", "trials", "concurrent", "finetunings_at_once", "storage"),
    "finetune_gpu_type",
    *WATCHED,
    *OF_SWEEPS,
)
"""Fields that decide where, under what name, how far and how watched a run goes, not what it computes."""

SINCE: Mapping[str, Any] = {
    "fold": None,
    "seeds": [],
    "probe": {"prune": "never", "first": 0.125, "factor": 2, "epochs": 10, "startup": 4},
    "scoring": {"metrics": None, "absent": "totalsegmentator"},
    **{
        f"{section}optimiser.{field}": value
        for section in ("", "pretrain.", "finetune.")
        for field, value in (
            ("warmup_updates", None),
            ("decayed", "all"),
            ("rate_every", "epoch"),
            ("weight_decay_end", None),
            ("lr_end", 0.0),
            ("clip_of", "all"),
        )
    },
}
"""Fields that older versions did not have, and the value with which they computed the same: left out, so that the keys
of older runs hold."""

RESULTS = {"pretrain": 1, "pretrain byol": 2, "finetune": 2, "evaluate": 2}
"""Number of each verb, or of a verb with one method, which is raised when equal settings and inputs begin to give other
results."""


def identity(settings: Mapping[str, Any], inputs: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings that decide what a run computes, without the fields `inputs`, which name what it reads."""
    usual = [name for name, value in SINCE.items() if _at(settings, name) == value]
    return _without(as_older_versions(settings), (*ELSEWHERE, *usual, *inputs))


def run_key(verb: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the key of a run, 64 hexadecimal digits: equal keys compute equal results.

    Args:
        verb: verb of the command line, such as `pretrain`.
        settings: the complete configuration.
        inputs: a digest of what each input holds, by the field of the settings that names it.
    """
    content = {
        "verb": verb,
        "results": _results(verb, settings),
        "settings": identity(settings, list(inputs)),
        "inputs": dict(inputs),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _results(verb: str, settings: Mapping[str, Any]) -> int:
    method = settings.get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    return RESULTS.get(f"{verb} {name}", RESULTS.get(verb, 1))


def _at(settings: Mapping[str, Any], field: str) -> Any:
    """Return the value of a field by its dotted name; None where there is none."""
    value: Any = settings
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _without(settings: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Return nested settings without the fields of those dotted names."""
    kept = {name: value for name, value in settings.items() if name not in fields}
    for field in fields:
        section, _, rest = field.partition(".")
        if rest and isinstance(kept.get(section), Mapping):
            kept[section] = _without(kept[section], [rest])
    return kept
