"""The pretraining methods by name. A new one is a file of its own and a line here."""

from __future__ import annotations

from importlib import import_module

from anatomask.errors import UserError
from anatomask.methods.base import MethodConfig

METHODS = {
    "anatomask": "anatomask.methods.anatomask.AnatoMaskConfig",
    "byol": "anatomask.methods.byol.BYOLConfig",
}
"""Where the settings of each method are. Its file is imported when the method is asked for."""


def method_config(name: str) -> type[MethodConfig]:
    """Find the settings of a method by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in METHODS:
        raise UserError(f"method {name}: no such method; there are {', '.join(METHODS)}")
    module, _, settings = METHODS[name].rpartition(".")
    found: type[MethodConfig] = getattr(import_module(module), settings)
    return found
