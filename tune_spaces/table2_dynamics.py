"""Table 2 of the paper: self-distillation, which patches count as hard, and the masking dynamics."""

from anatomask.sweeps.space import Table

EASY_TO_HARD = {"method.r0": 0.0, "method.rT": 0.5}
HARD_TO_EASY = {"method.r0": 0.5, "method.rT": 0.0}


def row(masking: str, teacher: str, significance: str, dynamics: dict[str, float]) -> dict[str, str | float]:
    """Return a row of the table. The first one, random masks, does not use the other fields."""
    return {
        "method.masking": masking,
        "method.teacher": teacher,
        "method.significance": significance,
        **dynamics,
    }


SPACE = Table(
    {
        "self_distillation=no; significance=none; dynamics=none": row("random", "ema", "highest", EASY_TO_HARD),
        "self_distillation=no; significance=high; dynamics=easy-to-hard": row(
            "anatomask", "frozen", "highest", EASY_TO_HARD
        ),
        "self_distillation=yes; significance=high; dynamics=easy-to-hard": row(
            "anatomask", "ema", "highest", EASY_TO_HARD
        ),
        "self_distillation=yes; significance=low; dynamics=easy-to-hard": row(
            "anatomask", "ema", "lowest", EASY_TO_HARD
        ),
        "self_distillation=yes; significance=high; dynamics=hard-to-easy": row(
            "anatomask", "ema", "highest", HARD_TO_EASY
        ),
    },
    paper="2",
)
