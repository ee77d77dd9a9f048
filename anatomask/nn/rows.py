"""Active voxels as rows, on which the sparse backends compute.

A batch's active blocks are gathered into rows (B, K·e³, C): K blocks per sample in raster order, each of e³ voxels in
raster order, where e = patch / stride is the edge of a block at the resolution in question. Every sample has the same
number of rows: where one has fewer active blocks than another, its last slots are unused and hold arbitrary values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.nn.backbones.base import ConvolutionalEncoder
from anatomask.nn.backbones.operations import NEGATIVE_SLOPE, Operations
from anatomask.nn.norm_activation import norm_activation
from anatomask.nn.norms import Pool
from anatomask.nn.sparse import Visible

TAPS = (-1, 2, 1)
"""Range (start, stop, step) of the offsets from its centre that a kernel of edge 3 reads."""

Convolve = Callable[[Tensor, nn.Conv3d, "ActiveBlocks", int], Tensor]
"""Function from (rows (B, K·e³, C), 3x3x3 convolution, blocks, e) to rows at the output's resolution.

It leaves the bias out, because the InstanceNorm that follows cancels it.
"""


@dataclass(frozen=True)
class ActiveBlocks:
    """Active blocks of a batch, and the tables that locate their voxels."""

    batch: int
    grid: tuple[int, int, int]
    """Patches along D, H, W."""
    active: Tensor
    """Visible patches (B, d, h, w) bool."""
    patches: Tensor
    """Patch in each slot (B, K), an index into the sample's grid in raster order."""
    used: Tensor | None
    """Slots that are in use, (B, K, 1, 1) bool. None: all are."""
    neighbours: Tensor
    """Slot of each of a block's 3x3x3 neighbours (B·K, 27); B·K where the neighbour is hidden or outside."""
    _tables: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, active: Tensor, visible: Visible | None = None) -> ActiveBlocks:
        """Find the blocks of `active` (B, d, h, w) bool.

        `visible` bounds the number of active patches of a sample. Where it is None, they are counted, which waits for
        the device.
        """
        batch, d, h, w = active.shape
        flat = active.flatten(1)
        slots = int(flat.sum(1).max()) if visible is None else visible.most
        patches = flat.int().argsort(dim=1, descending=True, stable=True)[:, :slots]
        used = flat.gather(1, patches)
        regular = bool(used.all()) if visible is None else visible.same

        number = torch.arange(batch * slots, device=active.device).view(batch, slots)
        number = number.masked_fill(~used, batch * slots)
        slot = torch.full_like(flat, batch * slots, dtype=torch.long).scatter(1, patches, number)
        slot = functional.pad(slot.view(batch, d, h, w), (1,) * 6, value=batch * slots)
        around = slot.unfold(1, 3, 1).unfold(2, 3, 1).unfold(3, 3, 1).reshape(batch, d * h * w, 27)
        neighbours = around.gather(1, patches[..., None].expand(batch, slots, 27))
        neighbours = neighbours.masked_fill(~used[..., None], batch * slots)
        in_use = None if regular else used[..., None, None]
        return cls(batch, (d, h, w), active, patches, in_use, neighbours.view(batch * slots, 27))

    @property
    def slots(self) -> int:
        """Number K of slots per sample."""
        return self.patches.shape[1]

    def edge(self, rows: Tensor) -> int:
        """Return the edge e of a block at the resolution of rows (B, K·e³, C)."""
        return round((rows.shape[1] / self.slots) ** (1 / 3))

    def table(self, edge: int, *axes: tuple[int, int, int]) -> Tensor:
        """Return the row numbers of the voxels at given places relative to every block, for `index_select`.

        Args:
            edge: e.
            axes: ranges (start, stop, step), whose sums are the coordinates along each of D, H and W relative to the
                block's first voxel. These may lie outside the block, by one block at most.

        Returns:
            (B·K · number³,) int32; B·K·e³ (a row of zeros) for voxels that are not active.
        """
        if (edge, axes) not in self._tables:
            device = self.patches.device
            coordinate = torch.zeros(1, dtype=torch.long, device=device)
            for axis in axes:
                coordinate = coordinate[..., None] + torch.arange(*axis, device=device)
            coordinate = coordinate.squeeze(0)
            block, voxel = torch.div(coordinate, edge, rounding_mode="floor") + 1, coordinate % edge
            slot = self.neighbours.index_select(1, _outer(block, 3).flatten())
            row = (slot * edge**3 + _outer(voxel, edge).flatten()).clamp_max(len(self.neighbours) * edge**3)
            self._tables[edge, axes] = row.flatten().int()
        return self._tables[edge, axes]

    def coordinates(self, edge: int) -> Tensor:
        """Return sample, D, H and W of every row, for blocks of `edge` voxels: (B·K·e³, 4) int32."""
        _, h, w = self.grid
        device = self.patches.device
        sample = torch.arange(self.batch, device=device)[:, None].expand_as(self.patches)
        block = torch.stack((sample, self.patches // (h * w), self.patches // w % h, self.patches % w), -1)
        axis = torch.arange(edge, device=device)
        voxel = functional.pad(torch.cartesian_prod(axis, axis, axis).view(-1, 3), (1, 0))
        scale = torch.tensor([1, edge, edge, edge], device=device)
        return (block.view(-1, 1, 4) * scale + voxel).view(-1, 4).int().contiguous()

    def rows(self, volume: Tensor) -> Tensor:
        """Gather the active voxels of (B, C, D, H, W) into rows (B, K·patch³, C); hidden voxels are not read."""
        d, h, w = self.grid
        patch = volume.shape[2] // d
        patches = volume.view(self.batch, -1, d, patch, h, patch, w, patch).permute(0, 2, 4, 6, 3, 5, 7, 1)
        chosen = patches.reshape(self.batch * d * h * w, -1).index_select(0, self._flat_patches())
        return chosen.view(self.batch, -1, volume.shape[1])

    def scatter(self, rows: Tensor, fill: Tensor) -> Tensor:
        """Write rows (B, K·e³, C) into a volume (B, C, d·e, h·e, w·e), whose other voxels are `fill` (C,)."""
        (d, h, w), channels = self.grid, rows.shape[2]
        blocks = rows.reshape(self.batch * self.slots, -1, channels)
        canvas = blocks.new_empty(self.batch * d * h * w, blocks.shape[1], channels)
        canvas = canvas.index_copy(0, self._flat_patches(), blocks)  # unused slots land where it is hidden
        canvas = torch.where(self.active.view(-1, 1, 1), canvas, fill.to(rows.dtype))
        edge = round(blocks.shape[1] ** (1 / 3))
        volume = canvas.view(self.batch, d, h, w, edge, edge, edge, channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return volume.reshape(self.batch, d * edge, h * edge, w * edge, channels).permute(0, 4, 1, 2, 3)

    def _flat_patches(self) -> Tensor:
        d, h, w = self.grid
        first = torch.arange(self.batch, device=self.patches.device)[:, None] * (d * h * w)
        return (self.patches + first).flatten()


def _outer(axis: Tensor, base: int) -> Tensor:
    """Number the voxels with coordinates `axis` along D, H and W in the raster order of a cube of edge `base`.

    `axis` is (w,), for a result (w, w, w), or (o, t) for o places of t taps each, for (o, o, o, t, t, t).
    """
    if axis.dim() == 1:
        return (axis[:, None, None] * base + axis[:, None]) * base + axis
    d, h, w = axis[:, None, None, :, None, None], axis[None, :, None, None, :, None], axis[None, None, :, None, None, :]
    return (d * base + h) * base + w


def norm_rows(
    rows: Tensor,
    norm: nn.InstanceNorm3d,
    blocks: ActiveBlocks,
    pool: Pool,
    cancelled: Tensor | None = None,
    skip: Tensor | None = None,
    activate: bool = True,
) -> Tensor:
    """Apply `norm_activation` to rows (B, K·e³, C), over the active voxels."""
    per_block = (blocks.batch, blocks.slots, -1, rows.shape[2])
    skip = None if skip is None else skip.view(per_block)
    slope = NEGATIVE_SLOPE if activate else 1
    y = norm_activation(rows.view(per_block), norm, cancelled, skip, slope, blocks.used, pool)
    return y.view_as(rows)


@dataclass(frozen=True)
class RowMap:
    """One of the encoder's maps, as rows."""

    values: Tensor
    """Rows (B, K·e³, C)."""
    blocks: ActiveBlocks
    pool: Pool

    def dense(self) -> Tensor:
        """Return (B, C, D, H, W), zero where hidden."""
        return self.blocks.scatter(self.values, self.values.new_zeros(self.values.shape[2]))

    def densify(self, norm: nn.InstanceNorm3d, token: Tensor) -> Tensor:
        """Return (B, C, D, H, W), normalised over the active voxels; hidden voxels hold `token` (1, C, 1, 1, 1)."""
        rows = norm_rows(self.values, norm, self.blocks, self.pool, activate=False)
        return self.blocks.scatter(rows, token.flatten())


@dataclass(frozen=True)
class RowOperations(Operations):
    """Operations on rows (B, K·e³, C) of the active voxels alone."""

    blocks: ActiveBlocks
    pool_of_norms: Pool
    convolve_rows: Convolve

    def convolve(
        self, x: Tensor, convolution: nn.Conv3d, norm: nn.InstanceNorm3d, skip: Tensor | None = None
    ) -> Tensor:
        """Convolve by the backend's own function, normalise over the active voxels, add `skip` and activate."""
        rows = self.convolve_rows(x, convolution, self.blocks, self.blocks.edge(x))
        return norm_rows(rows, norm, self.blocks, self.pool_of_norms, convolution.bias, skip)

    def project(self, x: Tensor, convolution: nn.Conv3d) -> Tensor:
        """Multiply every row, or those of every second voxel along each axis where the stride is 2."""
        if convolution.stride[0] == 2:
            x = self._pairs(x)[:, :, 0, :, 0, :, 0].reshape(x.shape[0], -1, x.shape[2])
        return functional.linear(x, convolution.weight.flatten(1), convolution.bias)

    def pool(self, x: Tensor) -> Tensor:
        """Average 2x2x2 voxels, which lie in the same block."""
        return self._pairs(x).mean((2, 4, 6)).reshape(x.shape[0], -1, x.shape[2])

    def normalise(self, x: Tensor, norm: nn.InstanceNorm3d) -> Tensor:
        """Normalise over the active voxels."""
        return norm_rows(x, norm, self.blocks, self.pool_of_norms, activate=False)

    def _pairs(self, x: Tensor) -> Tensor:
        """View rows as (B·K, e/2, 2, e/2, 2, e/2, 2, C)."""
        half = self.blocks.edge(x) // 2
        return x.reshape(-1, half, 2, half, 2, half, 2, x.shape[2])


def encode_rows(
    encoder: ConvolutionalEncoder, volume: Tensor, blocks: ActiveBlocks, pool: Pool, convolve: Convolve
) -> list[RowMap]:
    """Encode the active voxels alone; `convolve` computes the 3x3x3 convolutions."""
    maps = encoder(blocks.rows(volume), RowOperations(blocks, pool, convolve))
    return [RowMap(encoded, blocks, pool) for encoded in maps]
