"""Header of weights, which anyone may have written: the types of its fields, and which fields a use needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anatomask.data.fingerprint import Scheme
from anatomask.errors import UserError
from anatomask.names import shown
from anatomask.parsing import from_json

Width = Annotated[int, Field(ge=1, le=65_536)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ClassId = Annotated[str, Field(pattern=r"^[0-9]{1,5}$")]


class _Fields(BaseModel):
    """Fields that are checked where they are given; unknown ones are ignored."""

    model_config = ConfigDict(strict=True)


class _Architecture(_Fields):
    name: str | None = None
    in_channels: Width = 1
    base: Annotated[int, Field(ge=1, le=4_096)] = 1
    depth: Annotated[int, Field(ge=1, le=100)] = 1
    widths: Annotated[list[Width], Field(min_length=1, max_length=32)] | None = None
    pooling: Annotated[list[list[Width]], Field(max_length=32)] | None = None
    classes: Width = 1


class _Method(_Fields):
    name: str
    label: str | None = None
    patch: Annotated[int, Field(ge=1, le=1_024)] = 16


class _Initialisation(_Fields):
    method: str
    run: str | None = None


class _Imported(_Fields):
    form: str = ""
    assumed: list[str] = []


class _Channel(_Fields):
    name: str
    scheme: Scheme
    percentile_00_5: Finite
    percentile_99_5: Finite
    mean: Finite
    std: Finite


class _Fingerprint(_Fields):
    channels: list[_Channel]


class _Fold(_Fields):
    number: Annotated[int, Field(ge=0)]
    of: Annotated[int, Field(ge=1)]
    cases: str
    others: str


class _Header(_Fields):
    format: Annotated[int, Field(ge=1)] = 1
    kind: str | None = None
    architecture: _Architecture | None = None
    method: _Method | None = None
    dataset: str | None = None
    data: str | list[str] | None = None
    fold: _Fold | None = None
    patch_size: Annotated[list[Annotated[int, Field(ge=16, le=4_096)]], Field(min_length=3, max_length=3)] | None = None
    mirror_axes: list[Annotated[int, Field(ge=0, le=2)]] | None = None
    spacing: Annotated[list[Millimetres], Field(min_length=3, max_length=3)] | None = None
    fingerprint: _Fingerprint | None = None
    class_names: dict[ClassId, str] | None = None
    train_fraction: Finite | None = None
    initialisation: _Initialisation | None = None
    encoder: str = ""
    whole: str = ""
    stages: Annotated[int, Field(ge=1, le=100)] = 1
    missing: list[str] = []
    not_transferred: list[str] = []
    imported: _Imported = _Imported()


def parse_header(text: str) -> dict[str, Any]:
    """Parse the header in a file of weights.

    Raises:
        ValueError: the text is not JSON, or a field that is known here is of another type or out of range.
    """
    header = from_json(text)
    if not isinstance(header, dict):
        raise ValueError("it holds no fields")
    try:
        _Header.model_validate(header)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{field}: {first['msg'].lower()}, not {shown(first['input'])}") from error
    return header


def require_fields(header: Mapping[str, Any], source: object, *names: str) -> None:
    """Check that a header gives the fields `names`; a dotted name is that of a field in a section.

    Raises:
        UserError: a field is missing; the message names it and the weights' `source`.
    """
    for name in names:
        value: Any = header
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            raise UserError(f"the header of {source} lacks {name}: give weights that anatomask wrote")
