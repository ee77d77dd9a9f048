from __future__ import annotations

import subprocess
import sys

import pytest

from anatomask.cli.main import VERBS

HEAVY = ("ray", "monai", "scipy", "nibabel", "matplotlib", "pandas", "pyarrow", "torch.distributed.tensor")
"""Packages that take a large part of a second to import each, and that no settings need."""

ONLY_WORKERS = ("monai", "matplotlib", "tensorboard", "optuna", "sympy", "torch.distributed.tensor")
"""Packages that networks, losses and records need, and neither the driver of a training nor Ray's controller."""


def imported(code: str) -> set[str]:
    """Modules that a new process has imported after `code`."""
    script = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(shown.stderr.split("\n"))


@pytest.mark.parametrize("verb", ["evaluate", "pretrain", "sweep"])
def test_help_of_a_verb_imports_nothing_heavy(verb: str) -> None:
    assert verb in VERBS
    modules = imported(f"from anatomask.cli.main import main; main(['{verb}', '--help'])")
    assert "anatomask.config" in modules and not modules & set(HEAVY)


def test_the_table_of_recipes_imports_nothing_heavy() -> None:
    modules = imported("from anatomask.cli.main import main; main(['recipes'])")
    assert "anatomask.recipes.catalogue" in modules and not modules & set(HEAVY)


def test_the_usage_imports_next_to_nothing() -> None:
    modules = imported("from anatomask.cli.main import main; main(['--help'])")
    assert "anatomask.config" not in modules and not modules & {*HEAVY, "torch", "numpy"}


@pytest.mark.parametrize("module", ["stages.pretrain", "stages.finetune", "training.ray_train"])
def test_the_driver_of_a_training_imports_nothing_of_its_workers(module: str) -> None:
    modules = imported(f"import anatomask.{module}")
    assert "torch" in modules and not modules & set(ONLY_WORKERS)


@pytest.mark.parametrize(("code", "taken_down"), [(0, True), (1, True), (130, False), (143, False)])
def test_only_a_program_that_no_signal_has_ended_is_taken_down_in_order(code: int, taken_down: bool) -> None:
    """What Ray left behind where it was interrupted can crash a process that takes its time to end."""
    script = (
        "import atexit; atexit.register(print, 'taken down')\n"
        f"from anatomask.cli import main\nmain.main = lambda argv: print('said') or {code}\nmain.program(['pretrain'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split("\n")[:-1]) == (code, ["said", *["taken down"] * taken_down])
