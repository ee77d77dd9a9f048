"""Draw of masked methods: a crop, and the random numbers of its masks. Reading processes import no torch for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from anatomask.data.body import body_bounds, body_shares
from anatomask.data.samples import LoaderConfig, Sample, random_origin, stored_crop
from anatomask.errors import UserError

if TYPE_CHECKING:
    from anatomask.data.shards import PreparedDataset
    from anatomask.masking import Among

CROPS_TRIED = 16
"""Number of crops of a case that are drawn at most until one holds body."""


@dataclass(frozen=True)
class MaskedDraw:
    """Draw of a `stored_crop`, `flip` (3,) bool and mask `noise` (2, patches).

    Where masks are drawn among some patches alone, `among` (patches,) bool marks these, and `candidates` is their
    number.
    """

    loader: LoaderConfig
    patch: int = 16
    """Edge of a patch in voxels."""
    among: Among = "all"
    """Patches that may be hidden."""
    body_share: float = 0.25
    """Share of a patch's voxels that must be body or foreground for the patch to be hidden."""

    def __call__(self, dataset: PreparedDataset, case: str, rng: np.random.Generator) -> Sample:
        """Draw one label-free random crop of `case`.

        Raises:
            UserError: none of `CROPS_TRIED` crops holds body.
        """
        size = self.loader.patch_size
        sample: Sample = {}
        for _ in range(1 if self.among == "all" else CROPS_TRIED):
            origin = random_origin(dataset.records[case].shape, size, rng)
            sample = stored_crop(dataset, case, origin, size, label=False)
            if self.among == "all":
                break
            sample["among"] = self.candidates(dataset, case, sample["image"], sample["inside"])
            if sample["among"].any():
                break
        else:
            raise UserError(
                f"{dataset.shown}: {CROPS_TRIED} crops of case {case} hold no patch of which a share of "
                f"{self.body_share:g} is {self.among}: lower --method.body-share, leave the case out, or choose "
                "--method.among all"
            )
        among = sample.get("among")
        patches = int(np.prod([edge // self.patch for edge in size]))
        flips = rng.random(3) < 0.5
        if among is not None:  # the device mirrors the crop, and masks are drawn on what it has then
            sample["among"] = mirrored(among, [edge // self.patch for edge in size], flips)
            sample["candidates"] = np.asarray(among.sum())
        return {**sample, "flip": flips, "noise": rng.random((2, patches), dtype=np.float32)}

    def candidates(self, dataset: PreparedDataset, case: str, image: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Find the patches of a crop (C, D, H, W) that may be hidden: (patches,) bool. Raises as `body_bounds`."""
        channel, lowest, highest = body_bounds(dataset, case, self.among)
        return body_shares(image[channel], inside, lowest, highest, self.patch) >= self.body_share


def mirrored(patches: np.ndarray, grid: Sequence[int], axes: np.ndarray) -> np.ndarray:
    """Mirror one value per patch (n,) of a `grid` along the axes that are True in (3,) `axes`."""
    return np.ascontiguousarray(np.flip(patches.reshape(grid), tuple(np.flatnonzero(axes).tolist()))).ravel()
