"""What pip installs: exact versions, every package, and a citation that parses."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, Requirement]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def test_every_constraint_is_one_exact_version() -> None:
    for pin in pins().values():
        assert re.fullmatch(r"==[0-9][0-9A-Za-z.]*", str(pin.specifier)), pin


def test_every_requirement_is_constrained(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    wanted += pyproject["build-system"]["requires"]
    missing = [line for line in wanted if canonicalize_name(Requirement(line).name) not in pins()]
    assert not missing


def test_one_spconv_for_each_python(pyproject: dict[str, Any]) -> None:
    """All spconv wheels own the same folder: two of them in one environment would overwrite each other."""
    extra = [Requirement(line) for line in pyproject["project"]["optional-dependencies"]["spconv"]]
    for version in ("3.11", "3.12"):
        environment = {"python_version": version, "python_full_version": f"{version}.0"}
        assert sum(r.marker is None or r.marker.evaluate(environment) for r in extra) == 1


def test_packages_are_those_on_disk(pyproject: dict[str, Any]) -> None:
    """The wheel holds one top-level package: the spaces of sweeps lie in it, the programs for `ray submit` do not."""
    package = ROOT / "anatomask"
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in package.rglob("__init__.py")}
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in package.rglob("*.py")}
    settings = pyproject["tool"]["setuptools"]
    assert set(settings["packages"]) == {*found, "anatomask.tune_spaces"} == {*folders, "anatomask.tune_spaces"}
    assert settings["package-dir"] == {"anatomask.tune_spaces": "tune_spaces"}


def test_data_files_are_packaged(pyproject: dict[str, Any]) -> None:
    patterns = pyproject["tool"]["setuptools"]["package-data"]["*"]
    files = [path for path in (ROOT / "anatomask").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    data = [path for path in files if path.suffix != ".py"]
    assert data and all(any(path.match(pattern) for pattern in patterns) for path in data)


def test_the_installed_versions_are_the_constrained_ones() -> None:
    import importlib.metadata

    for name in ("torch", "ray", "monai", "numpy", "pyarrow", "optuna"):
        assert importlib.metadata.version(name).split("+")[0] == str(pins()[name].specifier).removeprefix("==")


def test_version_is_the_same_everywhere(pyproject: dict[str, Any]) -> None:
    import anatomask

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert anatomask.__version__ == pyproject["project"]["version"] == str(citation["version"])


def test_the_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert [author["family-names"] for author in paper["authors"]] == ["Li", "Luan", "Wu", "Pan", "Chen", "Yang"]
    assert "2407.06468" in paper["url"] and paper["year"] == 2024


def test_no_file_of_pipelines_shadows_the_standard_library() -> None:
    import sys

    assert not {path.stem for path in (ROOT / "pipelines").glob("*.py")} & (sys.stdlib_module_names - {"__init__"})
