"""Mixed transformer (MiT) of UniMiSS (Xie et al., ECCV 2022), whose encoder and decoder read volumes and slices.

Source: YtongXie/UniMiSS-code, `UniMiSS/models`, commit 68be0a4. Volumes are (B, C, D, H, W) here, slices (B, C, H, W).
Each has parts of its own, under the names "3D" and "2D"; norms, attention and MLPs are shared. In a pretraining, a cls
token goes with the tokens from stage to stage; in segmentation there is none, and no 2D part.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.nn.backbones.base import Encoder
from anatomask.nn.interpolation import bicubic
from anatomask.nn.recompute import Recomputable

if TYPE_CHECKING:
    from anatomask.nn.backbones.unimiss import UniMiSSConfig

BOTH, VOLUMES = ("2D", "3D"), ("3D",)
"""Names of the parts of a pretraining, and of those of segmentation."""
CONVOLUTIONS: dict[str, Any] = {"2D": nn.Conv2d, "3D": nn.Conv3d}
NORMS: dict[str, Any] = {"2D": nn.InstanceNorm2d, "3D": nn.InstanceNorm3d}
UPSAMPLINGS: dict[str, Any] = {"2D": nn.ConvTranspose2d, "3D": nn.ConvTranspose3d}
SPREAD = 0.02
"""Standard deviation of fresh positions, cls tokens and linear layers."""


class ConvNorm(nn.Module):
    """Convolution without bias – InstanceNorm – leaky ReLU of volumes or of slices."""

    def __init__(self, path: str, in_width: int, width: int, kernel: int, stride: int | tuple[int, ...]) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[path](in_width, width, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = NORMS[path](width, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """Compute a map of another width and size."""
        return functional.leaky_relu(self.norm(self.conv(x)), 0.01)


class Attention(nn.Module):
    """Attention whose keys and values come from a map that is `reduction` times smaller along each axis."""

    def __init__(self, width: int, heads: int, reduction: int, bias: bool, paths: Sequence[str]) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias)
        self.kv = nn.Linear(width, 2 * width, bias)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.reduction = nn.ModuleDict(
                {path: CONVOLUTIONS[path](width, width, reduction, reduction) for path in paths}
            )
            self.norm = nn.LayerNorm(width)
        else:
            self.reduction = nn.ModuleDict()

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """Compute (B, N, width) of tokens (B, N, width), the last of which are the voxels of a map of size `grid`."""
        keys, values = self.kv(self._reduced(tokens, grid)).chunk(2, -1)
        queries, keys, values = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.q(tokens), keys, values)
        )
        weights = (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(-1)
        return self.proj((weights @ values).transpose(1, 2).flatten(2))

    def _reduced(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        if not self.reduction:
            return tokens
        cls, voxels = split_tokens(tokens, grid)
        reduced = self.reduction[f"{len(grid)}D"](as_map(voxels, grid))
        normed: Tensor = self.norm(torch.cat((cls, reduced.flatten(2).mT), 1))
        return normed


class Block(Recomputable, nn.Module):
    """Attention and an MLP four times as wide, each with a norm before it and a residual connection."""

    def __init__(
        self, width: int, heads: int, reduction: int, paths: Sequence[str], *, bias: bool, epsilon: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, epsilon)
        self.attn = Attention(width, heads, reduction, bias, paths)
        self.norm2 = nn.LayerNorm(width, epsilon)
        layers = [("fc1", nn.Linear(width, 4 * width)), ("act", nn.GELU()), ("fc2", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """Compute tokens (B, N, width) of such tokens, the last of which are the voxels of a map of size `grid`."""
        new: Tensor = self.recomputed(self._compute, tokens, grid)
        return new

    def _compute(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens), grid)
        return tokens + self.mlp(self.norm2(tokens))


class Stage(nn.Module):
    """Embedding that halves or doubles the resolution, learned positions, and blocks."""

    def __init__(
        self,
        embedding: dict[str, nn.Module],
        positions: dict[str, int],
        blocks: Sequence[Block],
        width: int,
        cls: nn.Module | None,
    ) -> None:
        """Set up the stage.

        Args:
            embedding: module that computes the map, by the name of its path.
            positions: number of tokens with a learned position, by path.
            blocks: blocks of the stage.
            width: width of its tokens.
            cls: module that computes the cls token from that of the stage before; None: there is no cls token.
        """
        super().__init__()
        self.embedding = nn.ModuleDict(embedding)
        self.positions = nn.ParameterDict(
            {path: nn.Parameter(torch.empty(1, count, width)) for path, count in positions.items()}
        )
        self.blocks = nn.ModuleList(blocks)
        if cls is not None:
            self.cls = cls
        for table in self.positions.values():
            nn.init.trunc_normal_(table, std=SPREAD)

    def forward(self, x: Tensor, cls: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the stage's map and cls token of the map x and the cls token (B, 1, width) of the stage before.

        `skip` is added to the embedded map. Without a cls token, (B, 0, …) stands for it.
        """
        path = f"{x.dim() - 2}D"
        x = self.embedding[path](x)
        x = x if skip is None else x + skip
        grid = x.shape[2:]
        cls = self.cls(cls) if hasattr(self, "cls") else cls.new_empty(len(x), 0, x.shape[1])
        tokens = torch.cat((cls, x.flatten(2).mT), 1) + fitting_positions(self.positions[path], grid)
        for block in self.blocks:
            tokens = block(tokens, grid)
        cls, voxels = split_tokens(tokens, grid)
        return as_map(voxels, grid), cls


class MiTEncoder(Encoder):
    """Stem and four stages."""

    def __init__(self, config: UniMiSSConfig, paths: Sequence[str] = VOLUMES) -> None:
        """Set up the encoder; with both `paths` it has a cls token."""
        super().__init__()
        self.config = config
        self.widths, self.strides = (config.stem_width, *config.widths), config.strides
        cls = len(paths) > 1
        self.stem = nn.ModuleDict(
            {
                path: ConvNorm(
                    path,
                    config.in_channels * (3 if path == "2D" else 1),
                    config.stem_width,
                    kernel=7,
                    stride=2 if path == "2D" else (1, 2, 2),
                )
                for path in paths
            }
        )
        if cls:
            self.cls = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, config.widths[0]), std=SPREAD))
        self.stages = nn.ModuleDict()
        for number, width in enumerate(config.widths, start=1):
            before = self.widths[number - 1]
            heads, factor = config.attention_heads[number - 1], config.reduction[number - 1]
            self.stages[str(number)] = Stage(
                {path: ConvNorm(path, before, width, kernel=3, stride=2) for path in paths},
                _tokens(config, number, paths),
                [Block(width, heads, factor, paths, bias=True, epsilon=1e-6) for _ in range(config.depths[number - 1])],
                width,
                (nn.Identity() if number == 1 else nn.Linear(before, width)) if cls else None,
            )
        self.apply(draw_weights)

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Encode (B, C, R, A, S) of the network's patch size into maps of the strides of stem and stages."""
        maps, _ = self.features(volume.movedim(-1, 2))
        return [encoded.movedim(2, -1) for encoded in maps]

    def features(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Encode volumes (B, C, D, H, W) or slices (B, 3·C, H, W) into five maps and the cls token (B, 1, width).

        Raises:
            ValueError: the volumes are of another size than positions.
        """
        size = tuple(image.shape[2:])
        if len(size) == 3 and (*size[1:], size[0]) != self.config.patch_size:
            raise ValueError(
                f"the network unimiss has positions for {self.config.patch_size} voxels, not {(*size[1:], size[0])}"
            )
        x = self.stem[f"{len(size)}D"](image)
        cls = self.cls.expand(len(x), -1, -1) if hasattr(self, "cls") else x.new_empty(len(x), 0, 0)
        maps = [x]
        for stage in self.stages.values():
            x, cls = stage(x, cls)
            maps.append(x)
        return maps, cls

    def parts(self) -> Sequence[nn.Module]:
        """Return the stem and the stages."""
        return [self.stem, *self.stages.values()]


class MiTDecoder(nn.Module):
    """Three stages, each of which doubles the resolution, and the norm that follows the last."""

    def __init__(self, config: UniMiSSConfig, paths: Sequence[str] = VOLUMES) -> None:
        """Set up the decoder; with both `paths` it has a cls token."""
        super().__init__()
        self.stages = nn.ModuleList()
        before = config.widths[-1]
        for number, width in enumerate(config.decoder_widths):
            heads, factor = config.decoder_heads[number], config.decoder_reduction[number]
            self.stages.append(
                Stage(
                    {path: UPSAMPLINGS[path](before, width, 2, 2) for path in paths},
                    _tokens(config, 3 - number, paths),
                    [
                        Block(width, heads, factor, paths, bias=False, epsilon=1e-5)
                        for _ in range(config.decoder_depths[number])
                    ],
                    width,
                    nn.Linear(before, width) if len(paths) > 1 else None,
                )
            )
            before = width
        self.norm = nn.LayerNorm(before)
        self.apply(draw_weights)

    def forward(self, maps: Sequence[Tensor], cls: Tensor) -> tuple[list[Tensor], Tensor]:
        """Decode the encoder's five maps and cls token into three maps and a cls token, not normalised yet."""
        decoded, x = [], maps[4]
        for stage, skip in zip(self.stages, maps[3:0:-1], strict=True):
            x, cls = stage(x, cls, skip)
            decoded.append(x)
        return decoded, cls


def _tokens(config: UniMiSSConfig, stage: int, paths: Sequence[str]) -> dict[str, int]:
    """Count the positions of a stage of the encoder, by path: with one for the cls token where there are two paths."""
    counts = {"2D": (config.slice_size // config.strides[stage]) ** 2, "3D": math.prod(config.grid(stage))}
    return {path: counts[path] + int(len(paths) > 1) for path in paths}


class MiT(nn.Module):
    """Encoder and decoder of a pretraining, for volumes and slices."""

    def __init__(self, config: UniMiSSConfig) -> None:
        super().__init__()
        self.encoder = MiTEncoder(config, BOTH)
        self.decoder = MiTDecoder(config, BOTH)

    def forward(self, image: Tensor) -> Tensor:
        """Return the cls token (B, width) of volumes (B, C, D, H, W) or of slices (B, 3·C, H, W)."""
        _, cls = self.decoder(*self.encoder.features(image))
        embedding: Tensor = self.decoder.norm(cls[:, 0])
        return embedding


def split_tokens(tokens: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Split (B, N, width) into the cls token, if there is one, and the voxels of a map of size `grid`."""
    voxels = math.prod(grid)
    cls, rest = tokens.split((tokens.shape[1] - voxels, voxels), 1)
    return cls, rest


def as_map(voxels: Tensor, grid: Sequence[int]) -> Tensor:
    """View (B, N, width) as a map (B, width, *grid)."""
    return voxels.mT.unflatten(2, tuple(grid))


def fitting_positions(table: Tensor, grid: Sequence[int]) -> Tensor:
    """Return the positions (1, 1 + N, width) of a map of size `grid`.

    Those of slices are interpolated from a square `table` of another size as published: bicubic, by scale factors for
    sizes that are 0.1 larger, while the cls token's remains. Those of volumes are as they are.
    """
    edge = math.isqrt(table.shape[1] - 1)
    if len(grid) == 3 or tuple(grid) == (edge, edge):
        return table
    height, width = grid
    factors = (height + 0.1) / edge, (width + 0.1) / edge
    square = as_map(table[:, 1:], (edge, edge))
    return torch.cat((table[:, :1], bicubic(square, factors).flatten(2).mT), 1)


def resized_rows(table: Tensor, rows: int) -> Tensor:
    """Interpolate a table (1, N, width) linearly along its tokens, whatever their places are, to `rows` of them.

    The published loader calls SciPy, whose rounding decides whether the last token lies outside, and is 0.
    """
    if table.shape[1] == rows:
        return table
    from scipy import ndimage  # the only use of it among the networks

    zoomed = ndimage.zoom(table[0].detach().float().numpy(), (rows / table.shape[1], 1), order=1)
    return torch.from_numpy(zoomed)[None].to(table.dtype)


@torch.no_grad()
def draw_weights(module: nn.Module) -> None:
    """Draw the weights of a linear layer or a convolution as published, for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=SPREAD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
