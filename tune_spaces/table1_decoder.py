"""Table 1 of the paper: the simple and the hierarchical decoder, under random masks and under AnatoMask's.

The four trials are otherwise equal, learning rate included (the published SparK baseline took twice AnatoMask's).
"""

from anatomask.sweeps.space import grid

SPACE = grid({"method.decoder": ("simple", "hierarchical"), "method.masking": ("random", "anatomask")}, paper="1")
