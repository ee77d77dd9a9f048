"""The pretraining methods by name. A new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anatomask.errors import UserError
from anatomask.methods.base import MethodConfig
from anatomask.plugins import find_class, with_extensions

METHODS = {
    "anatomask": "anatomask.methods.anatomask.AnatoMaskConfig",
    "byol": "anatomask.methods.byol.BYOLConfig",
    "mae": "anatomask.methods.mae.MAEConfig",
    "moco": "anatomask.methods.moco.MoCoConfig",
    "selfmedmae": "anatomask.methods.selfmedmae.SelfMedMAEConfig",
    "swinunetr_ssl": "anatomask.methods.swinunetr_ssl.SwinUNETRSSLConfig",
    "unimiss": "anatomask.methods.unimiss.UniMiSSMethodConfig",
}
"""Address of the settings of each method, whose file is imported on first use."""


def method_config(name: str) -> type[MethodConfig]:
    """Find the settings of a method by its name.

    Raises:
        UserError: there is none of that name.
    """
    found: type[MethodConfig] = find_class("method", name, "METHODS", METHODS, MethodConfig)
    return found


def method_names() -> list[str]:
    """Return the names of all methods, those of extensions included."""
    return list(with_extensions("METHODS", METHODS))


def method_of(header: Mapping[str, Any]) -> MethodConfig:
    """Read the settings of the method that the header of pretrained weights describes.

    Raises:
        UserError: the header describes no method that is known here.
    """
    described = {name: value for name, value in (header.get("method") or {}).items() if name not in ("name", "label")}
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in described.items()}
    config = method_config(str((header.get("method") or {}).get("name")))
    try:
        return config(**fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"the header's method cannot be read ({error}): give weights that anatomask wrote") from error
