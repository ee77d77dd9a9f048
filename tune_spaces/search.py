"""Free search over what is hidden (mask ratio, size of a patch, where), the masking dynamics (r0 > rT: hard to easy),
the decoder and the learning rate.
"""

import optuna

from anatomask.sweeps.space import Search


def suggest(trial: optuna.Trial) -> None:
    """Return the fields and their ranges."""
    trial.suggest_float("method.mask_ratio", 0.4, 0.9)
    trial.suggest_float("method.r0", 0.0, 1.0)
    trial.suggest_float("method.rT", 0.0, 1.0)
    trial.suggest_categorical("method.decoder", ["hierarchical", "simple"])
    trial.suggest_categorical("method.patch", [8, 16])
    trial.suggest_categorical("method.among", ["all", "body"])
    trial.suggest_float("optimiser.lr", 3e-5, 3e-3, log=True)


SPACE = Search(suggest)
