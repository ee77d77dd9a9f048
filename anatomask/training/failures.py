"""Handling of an update that was not finite: training stops or leaves it out, and writes down its cases."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from anatomask.errors import UserError
from anatomask.files import add_filename

NON_FINITE = "non_finite.jsonl"

PATIENCE = 20
"""Number of consecutive updates that may be left out: a loss scale falls from 65,536 to 1 in 16."""


@dataclass
class NonFiniteWatch:
    """Watch over every update's loss, gradient norm, and recorded scalars (such as a teacher's loss)."""

    run: Path
    cases: Callable[[int], Sequence[str]]
    """Cases of an update's batch, by its number (1 is the first)."""
    policy: Literal["stop", "skip"]
    scaled: bool
    """True if losses are scaled: then gradients overflow until the scale fits, which is no fault."""
    writes: bool = True
    in_a_row: int = field(default=0, init=False)

    def __call__(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write down an update that was not finite, with its cases.

        Raises:
            UserError: the settings say to stop then, or too many consecutive updates were left out.
        """
        bad = [name for name, value in scalars.items() if not math.isfinite(value)]
        if not bad:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if bad == ["gradient_norm"] and self.scaled and self.in_a_row < PATIENCE:
            return
        cases = list(self.cases(step))
        if self.writes:
            row = {"step": step, **{name: str(scalars[name]) for name in bad}, "cases": cases}
            with add_filename(self.run / NON_FINITE), (self.run / NON_FINITE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self.policy == "skip" and self.in_a_row < PATIENCE:
            return
        repeated = f", and so were the {self.in_a_row - 1} updates before" if self.in_a_row > 1 else ""
        raise UserError(
            f"the {bad[0]} is {scalars[bad[0]]} at update {step}{repeated}. Its cases are {', '.join(cases[:4])}"
            f"{' …' if len(cases) > 4 else ''} (all in {self.run / NON_FINITE}). The last checkpoint is good: look for "
            "extreme voxels in these cases, leave such updates out with --training.on-non-finite skip, or lower "
            "--optimiser.lr in a new run"
        )
