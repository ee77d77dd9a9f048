"""Scans that stay on one device, and everything that a training draws from them there, without waiting for the host.

Crops are cubes. They are padded, normalised and mirrored by `anatomask.data.crops`; body patches are found as in
`anatomask.data.body`. Draws are functions of a generator of the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gpu_pack import Packed
from torch import Tensor
from torch.nn import functional

from anatomask.data.crops import flip, normalised_crops, pad_outside
from anatomask.data.fingerprint import BODY_HU
from anatomask.data.masked_draw import CROPS_TRIED
from anatomask.errors import UserError

AT_ONCE = 64
"""Number of crops that are examined together while a training is planned."""


@dataclass(frozen=True)
class Volumes:
    """Scans, one after the other in raster order, and the positions of their classes."""

    name: str
    """Name of the data set."""
    cases: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    class_names: dict[int, str]
    labelled: frozenset[str]
    codes: Tensor
    """Codes of all scans, (V,) uint8."""
    labels: Tensor
    """Labels, (V,) uint8, 0 where a scan has none."""
    levels: Tensor
    """HU of each code, (256,) int16."""
    starts: Tensor
    """First voxel of each scan, (S,)."""
    shapes: Tensor
    """Shape of each scan in voxels, (S, 3)."""
    minimum: Tensor
    """HU of voxels beyond a scan, (S, 1)."""
    normalisation: Tensor
    """Low, high, mean and std in HU, (1, 4)."""
    voxels_of_class: Tensor
    """Indices of all labelled voxels, (N,), ordered by scan and class."""
    class_starts: Tensor
    """Index at which each class of each scan begins, (S, K)."""
    class_sizes: Tensor
    """Number of voxels of each class of each scan, (S, K)."""

    @classmethod
    def on(cls, device: torch.device, packed: Packed) -> Volumes:
        """Copy packed scans to a device."""
        header, cases = packed.header, tuple(sorted(packed.codes))
        described = [header["cases"][case] for case in cases]
        codes = torch.from_numpy(np.concatenate([packed.codes[case].ravel() for case in cases]))
        blank = {case: np.zeros(packed.codes[case].shape, np.uint8) for case in cases if case not in packed.labels}
        labels = torch.from_numpy(np.concatenate([(packed.labels | blank)[case].ravel() for case in cases]))
        shapes = torch.tensor([each["shape"] for each in described])
        sizes = shapes.prod(1)
        starts = sizes.cumsum(0) - sizes
        classes = len(header["class_names"])
        found = labels.nonzero().squeeze(1)
        scan = torch.searchsorted(starts, found, right=True) - 1
        key = scan * classes + labels[found].long() - 1
        class_sizes = torch.bincount(key, minlength=len(cases) * classes)
        class_starts = class_sizes.cumsum(0) - class_sizes
        levels = functional.pad(torch.tensor(header["levels"], dtype=torch.int16), (0, 256 - len(header["levels"])))
        return cls(
            header["name"],
            cases,
            {split: tuple(members) for split, members in header["splits"].items()},
            {int(number): name for number, name in header["class_names"].items()},
            frozenset(packed.labels),
            codes.to(device),
            labels.to(device),
            levels.to(device),
            starts.to(device),
            shapes.to(device),
            torch.tensor([[float(each["minimum"])] for each in described], device=device),
            torch.tensor([header["normalisation"]], dtype=torch.float32, device=device),
            found[key.argsort(stable=True)].to(device),
            class_starts.view(len(cases), classes).to(device),
            class_sizes.view(len(cases), classes).to(device),
        )

    @property
    def device(self) -> torch.device:
        """Return the device of the scans."""
        return self.codes.device

    def label_map(self, case: str) -> Tensor:
        """Return the label map (D, H, W) of a case, all 0 where it has none."""
        scan = self.cases.index(case)
        start, shape = int(self.starts[scan]), self.shapes[scan].tolist()
        return self.labels[start : start + math.prod(shape)].view(shape)

    def numbers(self, cases: Sequence[str]) -> Tensor:
        """Return the numbers of cases, (N,) on the device."""
        return torch.tensor([self.cases.index(case) for case in cases], device=self.device)

    def crops(self, scans: Tensor, origins: Tensor, edge: int, *, label: bool) -> dict[str, Tensor]:
        """Read crops as `anatomask.data.samples.stored_crop` does, a batch at a time.

        Args:
            scans: (B,) numbers of the scans.
            origins: (B, 3) first voxels, which may lie outside.
            edge: e, edge of a crop in voxels.
            label: read `label` (B, e, e, e) too, 0 beyond the scan.

        Returns:
            `image` (B, 1, e, e, e) HU, `inside` (B, 3, 2), `minimum` (B, 1), `normalisation` (B, 1, 4), `label`.
        """
        shapes = self.shapes[scans]
        place = self.starts[scans].view(-1, 1, 1, 1)
        for axis in range(3):
            coordinate = origins[:, axis, None] + torch.arange(edge, device=self.device)
            coordinate = coordinate.clamp_min(0).minimum(shapes[:, axis, None] - 1)
            view = [len(scans), 1, 1, 1]
            view[axis + 1] = edge
            place = place + coordinate.view(view) * shapes[:, axis + 1 :].prod(1).view(-1, 1, 1, 1)
        inside = torch.stack([-origins, shapes - origins], 2).clamp(0, edge)
        sample = {
            "image": self.levels[self.codes[place].long()][:, None],
            "inside": inside,
            "minimum": self.minimum[scans],
            "normalisation": self.normalisation.expand(len(scans), 1, 4),
        }
        if label:
            nothing = torch.zeros(len(scans), 1, device=self.device)
            sample["label"] = pad_outside(self.labels[place][:, None], inside, nothing)[:, 0]
        return sample

    def random_origins(self, scans: Tensor, edge: int, generator: torch.Generator) -> Tensor:
        """Draw origins (B, 3), uniform over those inside each scan; an axis shorter than the crop is centred."""
        uniform = torch.rand(len(scans), 3, generator=generator, device=self.device, dtype=torch.float64)
        room = self.shapes[scans] - edge
        return torch.where(room >= 0, (uniform * (room + 1)).long(), -((-room) // 2))

    def centred_origins(self, scans: Tensor, edge: int, generator: torch.Generator) -> Tensor:
        """Draw origins (B, 3) of crops about a voxel of a class: each class that a scan has is as likely as another."""
        uniform = torch.rand(len(scans), 2, generator=generator, device=self.device, dtype=torch.float64)
        sizes = self.class_sizes[scans]
        present = (sizes > 0).cumsum(1)
        wanted = (uniform[:, :1] * present[:, -1:]).long() + 1
        chosen = ((present == wanted) & (sizes > 0)).int().argmax(1, keepdim=True)
        number = (uniform[:, 1:] * sizes.gather(1, chosen)).long() + self.class_starts[scans].gather(1, chosen)
        voxel = self.voxels_of_class[number.clamp_max(len(self.voxels_of_class) - 1).squeeze(1)] - self.starts[scans]
        shapes = self.shapes[scans]
        _, h, w = shapes.unbind(1)
        centre = torch.stack([voxel // (h * w), voxel // w % h, voxel % w], 1)
        room = shapes - edge
        moved = (centre - edge // 2).clamp_min(0).minimum(room)
        return torch.where(room >= 0, moved, -((-room) // 2))

    def body_patches(self, sample: dict[str, Tensor], patch: int, share: float) -> Tensor:
        """Find the patches of crops of which at least `share` is body: (B, n) bool."""
        outside = torch.full_like(sample["minimum"], BODY_HU)
        body = pad_outside(sample["image"], sample["inside"], outside) > BODY_HU
        shares = functional.avg_pool3d(body.float(), patch)
        return (shares >= share).flatten(1)


@dataclass(frozen=True)
class PretrainingPlan:
    """Plan of what a pretraining reads: U updates of B crops."""

    volumes: Volumes
    edge: int
    """Edge of a crop in voxels."""
    scans: Tensor
    """Numbers of the scans, (U, B)."""
    origins: Tensor
    """Origins of the crops, (U, B, 3)."""
    flips: Tensor
    """Axes that are mirrored, (U, B, 3) bool."""
    among: Tensor
    """Patches with body in the mirrored crop, (U, B, n) bool."""
    fewest: int
    """Smallest number of body patches in any crop: one bound for all updates keeps the shapes of compiled networks."""

    @classmethod
    def draw(
        cls, volumes: Volumes, cases: Sequence[str], updates: int, batch: int, edge: int, patch: int,
        share: float, seed: int,
    ) -> PretrainingPlan:  # fmt: skip
        """Draw the plan from a seed.

        Raises:
            UserError: several crops of a scan hold no body.
        """
        generator = torch.Generator(volumes.device).manual_seed(seed)
        total = updates * batch
        scans = shuffled(volumes.numbers(cases), total, generator)
        flips = torch.rand(total, 3, generator=generator, device=volumes.device) < 0.5
        grid = [edge // patch] * 3
        patches = grid[0] ** 3
        origins = scans.new_zeros(total, 3)
        among = torch.zeros(total, patches, dtype=torch.bool, device=volumes.device)
        empty = torch.arange(total, device=volumes.device)
        for _ in range(CROPS_TRIED):
            origins[empty] = volumes.random_origins(scans[empty], edge, generator)
            for some in empty.split(AT_ONCE):
                sample = volumes.crops(scans[some], origins[some], edge, label=False)
                found = volumes.body_patches(sample, patch, share).view(-1, 1, *grid)
                among[some] = flip(found, flips[some]).flatten(1)
            empty = empty[~among[empty].any(1)]
            if not len(empty):
                break
        else:
            raise UserError(f"{CROPS_TRIED} crops of {volumes.cases[int(scans[empty[0]])]} hold no body")
        rows = (updates, batch)
        return cls(
            volumes,
            edge,
            scans.view(rows),
            origins.view(*rows, 3),
            flips.view(*rows, 3),
            among.view(*rows, patches),
            int(among.sum(1).min()),
        )

    def batch(self, update: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Read what update number `update` trains on as `MaskedDraw` would send it, and draw its `noise` (B, 2, n)."""
        among = self.among[update]
        sample = self.volumes.crops(self.scans[update], self.origins[update], self.edge, label=False)
        noise = torch.rand(len(among), 2, among.shape[1], generator=generator, device=among.device)
        candidates = torch.full((len(among),), self.fewest)  # a bound, on the host
        return {**sample, "flip": self.flips[update], "among": among, "candidates": candidates, "noise": noise}


def finetuning_batch(
    volumes: Volumes, scans: Tensor, edge: int, foreground: float, axes: Sequence[int],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Draw augmented crops (B, 1, e, e, e) of labelled scans (B,), normalised, with their labels.

    Args:
        volumes: the scans.
        scans: numbers of those that are read.
        edge: of a crop in voxels.
        foreground: share of the crops that are centred on a voxel of a random class.
        axes: along which crops are mirrored.
        generator: decides all of it.
    """
    device = volumes.device
    centred = torch.rand(len(scans), 1, generator=generator, device=device) < foreground
    origins = torch.where(
        centred & (volumes.class_sizes[scans].sum(1, keepdim=True) > 0),
        volumes.centred_origins(scans, edge, generator),
        volumes.random_origins(scans, edge, generator),
    )
    sample = volumes.crops(scans, origins, edge, label=True)
    image, label = augmented(normalised_crops(sample), sample["label"][:, None], generator)
    flips = torch.rand(len(scans), 3, generator=generator, device=device) < 0.5
    flips = torch.stack([flips[:, axis] & (axis in axes) for axis in range(3)], 1)
    return flip(image, flips), flip(label, flips)


def augmented(image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rotate, scale, brighten and add noise, each crop by its own draw: a part of what nnU-Net does.

    Rotation up to 30 degrees about each axis and scaling by 0.7 to 1.4 have probability 0.2 together; noise of standard
    deviation up to 0.1 has 0.1; brightness by 0.75 to 1.25 has 0.15.

    Args:
        image: (B, 1, e, e, e), normalised.
        label: (B, 1, e, e, e) uint8.
        generator: of the device.
    """
    batch, device = len(image), image.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, device=device)

    moving = uniform(0, 1, batch, 1) < 0.2
    angle = torch.where(moving, uniform(-math.pi / 6, math.pi / 6, batch, 3), 0)
    scale = torch.where(moving, uniform(0.7, 1.4, batch, 1), 1)
    turn = _rotation(angle) / scale[:, :, None]
    with torch.autocast(device.type, enabled=False):
        grid = functional.affine_grid(functional.pad(turn, (0, 1)), list(image.shape), align_corners=False)
        turned = functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
        nearest = functional.grid_sample(label.float(), grid, "nearest", "border", align_corners=False)
    still = ~moving.view(-1, 1, 1, 1, 1)
    image, label = torch.where(still, image, turned), torch.where(still, label, nearest.to(label.dtype))
    noise = torch.randn(image.shape, generator=generator, device=device)
    amount = torch.where(uniform(0, 1, batch, 1) < 0.1, uniform(0, 0.1, batch, 1), 0)
    bright = torch.where(uniform(0, 1, batch, 1) < 0.15, uniform(0.75, 1.25, batch, 1), 1)
    return image * bright[..., None, None, None] + noise * amount[..., None, None, None], label


def _rotation(angle: Tensor) -> Tensor:
    """Build matrices (B, 3, 3) that turn about the first, then the second, then the third axis by angles (B, 3)."""
    matrix = torch.eye(3, device=angle.device).expand(len(angle), 3, 3)
    for axis, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        turn = torch.eye(3, device=angle.device).repeat(len(angle), 1, 1)
        cosine, sine = angle[:, axis].cos(), angle[:, axis].sin()
        turn[:, first, first], turn[:, second, second] = cosine, cosine
        turn[:, first, second], turn[:, second, first] = -sine, sine
        matrix = turn @ matrix
    return matrix


def shuffled(items: Tensor, total: int, generator: torch.Generator) -> Tensor:
    """Repeat items (N,) to `total` of them: every N consecutive ones from a multiple of N are a permutation."""
    rounds = -(-total // len(items))
    orders = [torch.randperm(len(items), generator=generator, device=items.device) for _ in range(rounds)]
    return items[torch.cat(orders)[:total]]
