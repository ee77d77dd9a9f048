"""What pip installs: exact versions, every package, and a citation that parses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
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


def test_the_wheel_is_one_package_with_its_spaces(tmp_path: Path) -> None:
    """It is built of what git tracks, and its sweeps are found from it, not from this checkout."""
    source, wheels, installed = tmp_path / "source", tmp_path / "wheels", tmp_path / "installed"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.rstrip("\0").split("\0"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*pip, str(wheels), str(source)], check=True, cwd=tmp_path)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert {path.name.split("-")[0] for path in installed.iterdir()} == {"anatomask"}
    page = installed / "anatomask" / "reports" / "page"
    assert {path.name for path in (ROOT / "anatomask/reports/page").iterdir()} == {path.name for path in page.iterdir()}
    licences = {path.name for path in installed.glob("*.dist-info/licenses/**/*") if path.is_file()}
    assert licences == {"LICENSE", "niivue-LICENSES.txt"}
    script = "import anatomask; from anatomask.sweeps.space import load_space; load_space('table3_mask_ratio')"
    found = subprocess.run(
        [sys.executable, "-c", f"{script}; print(anatomask.__file__)"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(installed)


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
    assert not {path.stem for path in (ROOT / "pipelines").glob("*.py")} & (sys.stdlib_module_names - {"__init__"})
