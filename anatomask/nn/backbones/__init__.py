"""The backbones by name. A new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anatomask.nn.backbones.base import BackboneConfig
from anatomask.plugins import find_class, with_extensions

BACKBONES = {
    "stunet": "anatomask.nn.backbones.stunet.STUNetConfig",
    "resenc": "anatomask.nn.backbones.resenc.ResEncConfig",
    "swin_unetr": "anatomask.nn.backbones.swin_unetr.SwinUNETRConfig",
    "unimiss": "anatomask.nn.backbones.unimiss.UniMiSSConfig",
    "unetr": "anatomask.nn.backbones.unetr.UNETRConfig",
}
"""Address of the settings of each backbone, whose file is imported on first use."""
UNNAMED = "stunet"
"""Name of the backbone in settings and headers of older versions, which knew no other and did not write it."""

SINCE: Mapping[str, Any] = {"pooling": None}
"""Fields that older versions did not have, and the value with which they built the same: not written then, so that
headers and the keys of runs hold."""


def backbone_config(name: str) -> type[BackboneConfig]:
    """Find the settings of a backbone by its name.

    Raises:
        UserError: there is none of that name.
    """
    found: type[BackboneConfig] = find_class("network", name, "BACKBONES", BACKBONES, BackboneConfig)
    return found


def backbone_names() -> list[str]:
    """Return the names of all backbones, those of extensions included."""
    return list(with_extensions("BACKBONES", BACKBONES))


def as_older_versions(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings as older versions wrote them: a `network` without the name `UNNAMED` and later fields."""
    plain: dict[str, Any] = {}
    for section, value in settings.items():
        if isinstance(value, Mapping):
            value = as_older_versions(value)
            if section == "network":
                value = without_later_fields(value)
                if value.get("name") == UNNAMED:
                    del value["name"]
        plain[section] = value
    return plain


def without_later_fields(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a network without those that are as in older versions, which did not have them."""
    return {name: value for name, value in network.items() if name not in SINCE or value != SINCE[name]}
