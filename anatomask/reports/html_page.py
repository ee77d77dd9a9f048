"""Page of a report: one HTML file with tables, figures, scans and runs, which needs no network.

Texts come from outside (names of runs, cases and classes), so Jinja escapes every one, and the page's policy lets no
script run but those whose digests it names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

import anatomask
from anatomask.names import readable
from anatomask.reports.viewer import ViewedCase

FOLDER = "page"
"""Folder of the template, the style, the scripts and the licences of NiiVue."""


@dataclass(frozen=True)
class Cell:
    """Cell of a table."""

    text: str
    key: float | str | None = None
    """Value by which its column is sorted. Default: its text; a number column's cells without one stay last."""
    strong: bool = False
    dim: bool = False
    code: bool = False

    @property
    def sort_key(self) -> str:
        """Value by which its column is sorted, as text; empty if there is none."""
        return "" if self.key is None else str(self.key)


@dataclass(frozen=True)
class Column:
    """Title of a column; numbers are on the right and sorted as such."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class HtmlTable:
    """Table that sorts by a click on a title."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    notes: Sequence[str] = ()
    commands: Sequence[tuple[str, Sequence[str]]] = ()
    """What is missing, and the commands that make it."""


@dataclass(frozen=True)
class PageFigure:
    """Figure of the page."""

    title: str
    """Text in place of the figure, where it cannot be seen."""
    png: bytes
    caption: str = ""

    @property
    def address(self) -> str:
        """The figure as an address that holds it."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """Part of the page under one title."""

    title: str
    tables: Sequence[HtmlTable] = ()
    figures: Sequence[PageFigure] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class RunDetails:
    """Everything that made a run."""

    name: str
    command: str
    versions: str = ""
    settings: str = ""


@dataclass(frozen=True)
class Page:
    """Content of the page."""

    title: str
    sections: Sequence[Section]
    cases: Sequence[ViewedCase] = ()
    """Scans of the viewer."""
    runs: HtmlTable | None = None
    details: Sequence[RunDetails] = ()


def text_cell(text: str, **style: bool) -> Cell:
    """Make a cell that is sorted by its text."""
    return Cell(text, text, **style)


def render_page(page: Page) -> str:
    """Format the page as HTML; equal pages give equal texts."""
    scripts = [_text(name) for name in ("tables.js", *(("niivue.umd.js", "viewer.js") if page.cases else ()))]
    data = dict(_volumes(page.cases))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_printable
    )
    return environment.from_string(_text("report.html")).render(
        page=page,
        generator=f"anatomask {anatomask.__version__}",
        style=Markup(_text("report.css")),
        scripts=[Markup(script) for script in scripts],
        hashes=[_digest(script) for script in scripts],
        licences=_text("niivue-LICENSES.txt"),
        data=data.items(),
        viewer={"cases": [_viewed(number, case) for number, case in enumerate(page.cases)]},
    )


def is_page(text: bytes) -> bool:
    """Return whether a file is a page that `render_page` made."""
    return b'<meta name="generator" content="anatomask ' in text[:4096]


def _text(name: str) -> str:
    return (resources.files("anatomask.reports") / FOLDER / name).read_text(encoding="utf-8")


def _printable(value: Any) -> Any:
    """Show control characters of texts from outside as escapes."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "\n".join(map(readable, value.split("\n")))
    return value


def _digest(script: str) -> Markup:
    """Return what the page's policy calls a script that may run."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'")


def _volumes(cases: Sequence[ViewedCase]) -> Iterator[tuple[str, str]]:
    """Name each volume of the viewer and encode it."""
    for number, case in enumerate(cases):
        yield f"volume-{number}", base64.b64encode(case.image).decode()
        for index, label in enumerate(case.labels):
            yield f"volume-{number}-{index}", base64.b64encode(label.volume).decode()


def _viewed(number: int, case: ViewedCase) -> Mapping[str, Any]:
    """Describe a case to the viewer's script; colours are 0 to 255, for NiiVue's label maps."""
    rgb = {class_id: [round(255 * part) for part in colour] for class_id, colour in case.colours.items()}
    columns = [(0, 0, 0), *rgb.values()]
    return {
        "title": case.title,
        "description": case.description,
        "image": f"volume-{number}",
        "window": list(case.window),
        "labels": [
            {"title": label.title, "score": label.score, "id": f"volume-{number}-{index}"}
            for index, label in enumerate(case.labels)
        ],
        "colours": {
            "I": [0, *rgb],
            **{letter: [colour[part] for colour in columns] for part, letter in enumerate("RGB")},
            "A": [0, *[255] * len(rgb)],
            "labels": ["", *(case.class_names[class_id] for class_id in rgb)],
        },
        "classes": [
            {"name": case.class_names[class_id], "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
            for class_id, colour in rgb.items()
        ],
    }
