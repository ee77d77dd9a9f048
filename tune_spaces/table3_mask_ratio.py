"""Table 3 of the paper: the mask ratio."""

from anatomask.sweeps.space import grid

SPACE = grid({"method.mask_ratio": (0.6, 0.8, 0.9)}, paper="3")
