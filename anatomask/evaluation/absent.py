"""Rules for a class that a case's reference lacks, which tools score differently."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from anatomask.errors import UserError
from anatomask.evaluation.results import CaseScore
from anatomask.evaluation.settings import NSD_AT, AbsentRule


def by_rule(scores: Iterable[CaseScore], rule: AbsentRule) -> list[CaseScore]:
    """Give DSC and NSD to the classes that a case's reference lacks; the other scores stay as they are.

    - `totalsegmentator`, as TotalSegmentator's evaluation: they are left out (NaN).
    - `nnunet`, as `nnUNetv2_evaluate_folder`: 0 where the class is predicted, else left out.
    - `flare`, as FLARE22's evaluation: 0 where the class is predicted, else 1.

    Raises:
        UserError: the rule asks what was predicted, and an older version did not write that down.
    """
    every = list(scores)
    computed = [name for name in ("nsd", *NSD_AT) if any(not math.isnan(getattr(score, name)) for score in every)]
    found = []
    for score in every:
        if not score.voxels and rule != "totalsegmentator":
            if math.isnan(score.predicted_volume_ml):
                raise UserError(
                    f"scoring.absent: the scores of case {score.case} are of an older version, which did not write the "
                    "predicted volumes that this rule needs; evaluate the run again with --overwrite"
                )
            value = value_of_absent(rule, score.predicted_volume_ml > 0)
            nsd: dict[str, Any] = dict.fromkeys(computed, value)
            score = replace(score, dsc=value, **nsd)
        found.append(score)
    return found


def value_of_absent(rule: AbsentRule, predicted: bool) -> float:
    """Return DSC and NSD of a class that the reference lacks; NaN where a rule leaves it out."""
    if predicted:
        return math.nan if rule == "totalsegmentator" else 0.0
    return 1.0 if rule == "flare" else math.nan
