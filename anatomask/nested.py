"""Settings as nested mappings: read from YAML, a sweep's point or a weights' header, and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from anatomask.data.addresses import public_address
from anatomask.errors import UserError
from anatomask.methods import method_config
from anatomask.methods.base import MethodConfig
from anatomask.names import shown
from anatomask.nn.backbones import backbone_config
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.settings import check_value

T = TypeVar("T")


def overlay(default: T, changes: Mapping[str, Any], source: str, prefix: str = "") -> T:
    """Return `default` with the fields of `changes`, nested sections field by field.

    Raises:
        UserError: a field does not exist, has the wrong type or is out of range; the message names it and `source`.
    """
    types = get_type_hints(type(default))
    hints = {one.name: types[one.name] for one in dataclasses.fields(default)}  # type: ignore[arg-type]
    values = {}
    for name, value in changes.items():
        where = f"{source}: {prefix}{name if isinstance(name, str) else shown(name)}"
        if name not in hints:
            raise UserError(f"{where}: no such field; there are {', '.join(hints)}")
        current = getattr(default, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise UserError(f"{where} must be a mapping of fields")
            if isinstance(current, BackboneConfig | MethodConfig) and "name" in value:
                value = {**value}
                find = method_config if isinstance(current, MethodConfig) else backbone_config
                chosen = find(str(value.pop("name")))
                current = current if isinstance(current, chosen) else chosen()
            values[name] = overlay(current, value, source, f"{prefix}{name}.")
        else:
            try:
                check_value(name, value, hints[name])
                values[name] = TypeAdapter(hints[name]).validate_python(value)
            except ValidationError as error:
                raise UserError(f"{where}: {error.errors()[0]['msg'].lower()}, not {shown(value)}") from error
            except ValueError as error:
                raise UserError(f"{source}: {prefix}{error}") from error
    try:
        return dataclasses.replace(default, **values)  # type: ignore[type-var]
    except ValueError as error:
        raise UserError(f"{source}: {prefix}{error}") from error


def overlay_dotted(default: T, fields: Mapping[str, Any], source: str) -> T:
    """Return `default` with fields named by their dotted paths, as `{"method.mask_ratio": 0.8}`; raise as `overlay`."""
    changes: dict[str, Any] = {}
    for path, value in fields.items():
        *sections, name = path.split(".")
        section = changes
        for key in sections:
            section = section.setdefault(key, {})
        section[name] = value
    return overlay(default, changes, source)


def plain(config: Any) -> dict[str, Any]:
    """Convert a configuration to nested dictionaries and lists, as in YAML and JSON; addresses lose credentials."""
    return dict(_plain(config))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        name = {"name": value.name} if isinstance(value, BackboneConfig | MethodConfig) else {}
        return name | {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return public_address(value) if isinstance(value, str) else value
