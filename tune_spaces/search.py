"""Free search over the mask ratio, the masking dynamics (r0 > rT: hard to easy) and the decoder."""

import optuna

from anatomask.sweeps.space import Search


def suggest(trial: optuna.Trial) -> None:
    """Return the fields and their ranges."""
    trial.suggest_float("method.mask_ratio", 0.4, 0.9)
    trial.suggest_float("method.r0", 0.0, 1.0)
    trial.suggest_float("method.rT", 0.0, 1.0)
    trial.suggest_categorical("method.decoder", ["hierarchical", "simple"])


SPACE = Search(suggest)
