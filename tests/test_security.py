"""Nothing in the programs runs what a file says: looked up in their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("anatomask", "pipelines", "tune_spaces", "benchmarks")
UNSAFE = {"eval", "exec", "yaml.load", "yaml.load_all", "yaml.Loader", "yaml.UnsafeLoader"}
UNSAFE_ANYWHERE = {"read_pickle", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "ray.cloudpickle", "dill", "joblib", "shelve", "marshal"}
PICKLING = {"dump", "dumps", "UnpicklingError", "PicklingError", "HIGHEST_PROTOCOL"}
OWN_RESULTS = {
    "anatomask/stages/mapping.py": ["pickle.loads"],
    "benchmarks/scaling_index.py": ["ray.cloudpickle.loads"],
}
"""Between processes of one run; the benchmark's lie in a temporary folder that it made."""


def runs_what_it_reads(source: str) -> Iterator[str]:
    """Dotted names of the uses that could run code out of a file."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def dotted(node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return f"{dotted(node.value)}.{node.attr}"
        return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = dotted(node)
            module, _, last = name.rpartition(".")
            if name in UNSAFE or last in UNSAFE_ANYWHERE or (module in UNPICKLERS and last not in PICKLING):
                yield name
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if name == "torch.load" and not is_constant(given.get("weights_only"), True):
                yield name
            if "allow_pickle" in given and not is_constant(given["allow_pickle"], False):
                yield name


def is_constant(node: ast.expr | None, value: bool) -> bool:
    """Whether an argument is written out as that value."""
    return isinstance(node, ast.Constant) and node.value is value


def test_no_source_runs_what_it_reads() -> None:
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): list(runs_what_it_reads(path.read_text())) for path in sources}
    assert len(found) > 50
    assert {path: uses for path, uses in found.items() if uses} == OWN_RESULTS


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "import pickle as p\np.Unpickler(file)",
        "from pickle import loads as parse\nparse(text)",
        "from ray import cloudpickle\nread = cloudpickle.loads",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=flag)",
        "from torch import load\nload(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import pandas\npandas.read_pickle(path)",
        "import yaml\nyaml.load(text, Loader)",
        "import yaml\nyaml.unsafe_load(text)",
        "eval(text)",
    ],
)
def test_it_would_be_found(source: str) -> None:
    assert len(list(runs_what_it_reads(source))) == 1


def test_what_is_safe_is_let_pass() -> None:
    safe = [
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, allow_pickle=False)\nnp.load(path)",
        "import yaml\nyaml.safe_load(text)",
        "import pickle\npickle.dumps(1)",
        "network.eval()",
    ]
    assert not list(runs_what_it_reads("\n".join(safe)))
