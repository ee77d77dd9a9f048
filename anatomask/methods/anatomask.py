"""AnatoMask (Li et al., ECCV 2024): the teacher shows what is hard to reconstruct, the student learns that."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor

from anatomask import masking
from anatomask.data.body import body_bounds
from anatomask.data.crops import flip, normalised_crops
from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.samples import LoaderConfig
from anatomask.errors import UserError
from anatomask.masking import Among
from anatomask.methods.base import MethodConfig, StepResult
from anatomask.methods.masked import Examination, MaskedBatch, MaskedMethod, Picture, check_patches
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backends import BackendName, choose_backend
from anatomask.nn.masked_autoencoder import MaskedAutoencoder, MaskedReconstruction, patch_statistics
from anatomask.nn.norms import NormScope
from anatomask.nn.sparse import Visible, expand_active
from anatomask.nn.submanifold import require_spconv

if TYPE_CHECKING:
    from anatomask.data.shards import PreparedDataset


@dataclass(frozen=True)
class AnatoMaskConfig(MethodConfig):
    """Settings of AnatoMask. The recipe `spark` is masking `random`, which needs no teacher."""

    name = "anatomask"
    encoder = "student.encoder."

    mask_ratio: float = 0.6
    """Share γ of the patches that is hidden."""
    patch: Literal[8, 16, 32] = 16
    """Edge in voxels of a patch, which is hidden as a whole: 24 mm in the paper, 16 voxels of 1.5 mm. The pretrained
    encoder has the stages whose stride is at most this: four for 8, five for 16 and 32."""
    among: Among = "all"
    """Patches that may be hidden and are scored. all: every one; body: those with enough voxels of body, which is above
    -500 HU in CT and above Otsu's threshold elsewhere; foreground: those with enough voxels of -175 to 250 HU, the
    window of SubFore (arXiv 2509.07534), CT only."""
    body_share: float = 0.25
    """Share of a patch's voxels that must be body or foreground for it to be hidden. Read unless among is all."""
    masking: Literal["anatomask", "random"] = "anatomask"
    """Choice of the hidden patches. anatomask: some are those that the teacher reconstructs worst (r0, rT), the others
    are random; random: all are, as in SparK."""
    r0: float = 0.0
    """Share of the hidden patches that are hard ones at the start of training."""
    rT: float = 0.5
    """Share of the hidden patches that are hard ones at the end of training (r0 > rT: hard to easy, Table 2)."""
    significance: Literal["highest", "lowest"] = "highest"
    """Teacher loss of the patches that count as hard: the highest, or the lowest (Table 2)."""
    guidance: Literal["normalised", "raw"] = "normalised"
    """Target of the teacher's loss: patch-normalised voxels, or raw ones as in the published code."""
    count: Literal["text", "algorithm1"] = "text"
    """Number of hard patches: floor(r γ n) as in the text and code, or ceil(r n) as in Algorithm 1."""
    teacher: Literal["ema", "frozen"] = "ema"
    """Weights of the teacher. ema: they follow the student's; frozen: they stay as initialised (Table 2, no
    self-distillation)."""
    decoder: Literal["hierarchical", "simple"] = "hierarchical"
    """Reconstruction decoder (Table 1)."""
    decoder_width: int | None = None
    """Width of the decoder's deepest level. Default: that of the encoder's deepest stage (16 x base, or 8 x base for
    patches of 8 voxels)."""
    norm_scope: NormScope = "sample"
    """Statistics of the encoder's InstanceNorm: each sample's own, or pooled over the batch as in the published code
    (over all workers' samples where norms are synchronised)."""
    sparse_backend: BackendName = "auto"
    """Backend that computes the sparse encoder; the results are the same. auto: the fastest, which is written to the
    run's config."""
    teacher_precision: Literal["training", "bf16", "fp16"] = "training"
    """Arithmetic of the teacher's pass, which needs no gradient: half precision, or that of the training."""
    ema_decay: float = 0.999
    """EMA decay of the teacher at the first step."""
    ema_decay_final: float = 0.9999
    """EMA decay from the end of the first quarter of training on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(16, 65_536, "decoder_width")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1 (exclusive), not {self.mask_ratio}")
        if not 0 < self.body_share <= 1:
            raise ValueError(f"body_share must lie in (0, 1], not {self.body_share}")
        for name in ("r0", "rT"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        for name in ("ema_decay", "ema_decay_final"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if self.decoder_width is not None and self.decoder_width % 16:
            raise ValueError(f"decoder_width must be a multiple of 16, not {self.decoder_width}")

    def label(self) -> str:
        """Return the name in tables."""
        return "AnatoMask" if self.masking == "anatomask" else "SparK"

    def stages(self, network: BackboneConfig) -> int:
        """Count the encoder stages that are trained: those whose stride a patch holds."""
        return network.pretrained_stages(self.patch)

    def draw(self, loader: LoaderConfig) -> MaskedDraw:
        """Return what draws a crop and the random numbers of its masks."""
        return MaskedDraw(loader, self.patch, self.among, self.body_share)

    def build(self, network: BackboneConfig) -> AnatoMask:
        """Build student and teacher."""
        return AnatoMask(self, network)

    def check_crop(self, size: Sequence[int]) -> None:
        """Check that the crop divides into patches some of which are hidden, some visible.

        Raises:
            ValueError: it does not.
        """
        check_patches(size, self.patch, self.mask_ratio)

    def check_data(self, dataset: PreparedDataset) -> None:
        """Check that masks can be drawn on a data set.

        Raises:
            UserError: they are to be drawn among soft tissue, and the data set has no CT.
        """
        if self.among != "all":
            body_bounds(dataset, next(iter(dataset.records)), self.among)

    def resolved(self) -> Self:
        """Decide which sparse backend computes.

        Raises:
            UserError: spconv is asked for and not installed.
        """
        if self.sparse_backend == "auto":
            return replace(self, sparse_backend=choose_backend(self.mask_ratio))
        if self.sparse_backend == "spconv":
            try:
                require_spconv()
            except ModuleNotFoundError as error:
                raise UserError(f"--method.sparse-backend spconv: {error}") from error
        return self

    def countable(self) -> Self:
        """Return the same with the backend `blocks` for spconv, whose operations torch does not see."""
        return replace(self, sparse_backend="blocks") if self.sparse_backend == "spconv" else self

    def plan(self, loader: LoaderConfig, spacing: Sequence[float]) -> list[tuple[str, str]]:
        """Return rows on the size and number of patches, on the choice of the hidden ones, and on the backend."""
        size = " x ".join(f"{self.patch * side:g}" for side in spacing)
        patches = math.prod(edge // self.patch for edge in loader.patch_size)
        among = "of all patches" if self.among == "all" else f"of those with {self.among} in them"
        return [
            (
                "patch",
                f"{self.patch} voxels = {size} mm, {patches} in a crop, a share of {self.mask_ratio:g} {among} is "
                "hidden",
            ),
            ("sparse backend", self.sparse_backend),
        ]


def ema_decay(progress: float, config: AnatoMaskConfig) -> float:
    """Compute the EMA decay at `progress` = t/T: linear over the first quarter of training, then constant."""
    ramp = min(max(4 * progress, 0.0), 1.0)
    return config.ema_decay + ramp * (config.ema_decay_final - config.ema_decay)


class AnatoMask(MaskedMethod):
    """Student and teacher. With masking `random` it is SparK, which has no teacher."""

    def __init__(self, config: AnatoMaskConfig, network: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.student = self._build()
        self.teacher: MaskedAutoencoder | None = None
        if config.masking == "anatomask":
            self.teacher = self._build() if config.teacher == "frozen" else copy.deepcopy(self.student)
            self.teacher.requires_grad_(False).eval()
        chosen = config.sparse_backend
        self.set_sparse_backend(choose_backend(config.mask_ratio) if chosen == "auto" else chosen)

    def _build(self) -> MaskedAutoencoder:
        config = self.config
        return MaskedAutoencoder(self.network, config.decoder, config.decoder_width, config.norm_scope, config.patch)

    def set_sparse_backend(self, name: str) -> None:
        """Choose how both sparse encoders compute; raises as `MaskedAutoencoder.set_sparse_backend`."""
        for model in (self.student, self.teacher):
            if model is not None:
                model.set_sparse_backend(name)

    def train(self, mode: bool = True) -> AnatoMask:
        """Set the student's mode; the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def trainable(self) -> MaskedAutoencoder:
        """Return the student."""
        return self.student

    def networks(self) -> Sequence[MaskedAutoencoder]:
        """Return the student, and the teacher where there is one."""
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    def batch(self, sample: Mapping[str, Tensor]) -> MaskedBatch:
        """Pad, normalise and mirror the crops that `MaskedDraw` drew."""
        volume = flip(normalised_crops(sample), sample["flip"]).contiguous(memory_format=self.memory_format)
        candidates = sample.get("candidates")  # on the host: the device is not asked
        fewest = 0 if candidates is None else int(candidates.min())
        return MaskedBatch(volume, sample["noise"], sample.get("among"), fewest)

    def dummy_batch(self, samples: int, size: Sequence[int]) -> MaskedBatch:
        """Return samples that hold nothing, all of whose patches may be hidden."""
        patches = math.prod(edge // self.config.patch for edge in size)
        volume = torch.empty(samples, self.network.in_channels, *size).contiguous(memory_format=self.memory_format)
        among = None if self.config.among == "all" else torch.ones(samples, patches, dtype=torch.bool)
        return MaskedBatch(volume, torch.empty(samples, 2, patches), among, patches)

    def training_step(self, batch: MaskedBatch, progress: float) -> StepResult:
        """Compute one step of Algorithm 1 at `progress` = t/T.

        Scalars: r_t and hard_share (the share of masked patches that are hard ones); teacher_loss where the teacher
        computes, which it does not while no patch is hard; ema_decay where the teacher follows.
        """
        config, noise, among = self.config, batch.noise, batch.among
        visible = self._visible(noise.shape[2], batch.fewest if among is not None else None)
        ratio = masking.hard_ratio(progress, config.r0, config.rT) if self.teacher is not None else 0.0
        scalars: dict[str, float | Tensor] = {"r_t": ratio, "hard_share": 0.0}
        if self.teacher is not None and masking.num_hard(noise.shape[2], config.mask_ratio, ratio, config.count):
            first = masking.random_mask(noise[:, 0], config.mask_ratio, among)
            with torch.no_grad(), self._teacher_precision(batch.volume.device.type):
                guess = self._reconstruct(self.teacher, batch.volume, first, visible)
                hidden, hard = self._self_mask(self._guidance(guess), first, noise[:, 1], ratio, among)
                scalars["teacher_loss"] = guess.loss if among is None else guess.mean_sample_loss
                scalars["hard_share"] = hard.sum() / hidden.sum()
        else:
            hidden = masking.random_mask(noise[:, 1], config.mask_ratio, among)
        if self.teacher is not None and config.teacher == "ema":
            scalars["ema_decay"] = ema_decay(progress, config)
        result = self._reconstruct(self.student, batch.volume, hidden, visible)
        loss = result.loss if among is None else result.mean_sample_loss
        return StepResult(loss, {name: _on_device(value, loss) for name, value in scalars.items()})

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Let the teacher follow the student (parameters and buffers), after each update of the optimiser."""
        if self.teacher is None or self.config.teacher == "frozen":
            return
        weight = 1 - ema_decay(progress, self.config)
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), weight)
        for teacher, student in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            if teacher.is_floating_point():
                teacher.lerp_(student, weight)
            else:  # BatchNorm's counter
                teacher.copy_(student)

    @torch.no_grad()
    def examine(self, volume: Tensor, noise: Tensor, among: Tensor | None = None) -> Examination:
        """Show one volume under M random masks to student and teacher, in eval mode.

        Masks follow from the teacher's loss, or where there is none from the student's, with the largest r_t of the
        training.

        Args:
            volume: (1, C, D, H, W), normalised.
            noise: (M, 2, n) as in training, a sample per mask.
            among: (1, n) bool, the patches that may be hidden. None: all.
        """
        among = None if among is None else among.expand(len(noise), -1)
        hidden = masking.random_mask(noise[:, 0], self.config.mask_ratio, among)
        visible = self._visible(noise.shape[2], None) if among is None else None
        volumes = volume.expand(len(noise), *volume.shape[1:])
        was_training = self.student.training
        self.student.eval()
        student = self._reconstruct(self.student, volumes, hidden, visible)
        self.student.train(was_training)
        teacher = None if self.teacher is None else self._reconstruct(self.teacher, volumes, hidden, visible)

        guide = teacher or student
        guidance, ratio = self._guidance(guide), max(self.config.r0, self.config.rT)
        self_masks, hard = self._self_mask(guidance, hidden, noise[:, 1], ratio, among)
        times = hidden.sum(0, keepdim=True)
        patch_loss = guidance.sum(0, keepdim=True) / times
        one = None if among is None else among[:1]
        self_mask, _ = self._self_mask(patch_loss, times > 0, noise[:1, 1], ratio, one)
        grid = guide.active.shape[1:]
        mean, deviation = patch_statistics(volume, self.config.patch)
        shown = expand_active(guide.active[:1], self.config.patch)
        reconstruction = torch.where(shown, volume, guide.reconstruction[:1].float() * deviation + mean)
        return Examination(
            random_masks=hidden,
            student_loss=student.patch_loss.masked_fill(~hidden, math.nan),
            teacher_loss=None if teacher is None else teacher.patch_loss.masked_fill(~hidden, math.nan),
            self_masks=self_masks,
            hard=hard,
            picture=Picture(
                volume=volume[0],
                random_mask=hidden[0].view(grid),
                reconstruction=reconstruction[0],
                patch_loss=patch_loss[0].view(grid),
                self_mask=self_mask[0].view(grid),
            ),
        )

    def _visible(self, patches: int, fewest: int | None) -> Visible:
        """Bound the number of visible patches per sample, of which at least `fewest` may be hidden (None: all may).

        Where samples differ, the bound is rounded up to an eighth of the grid: few shapes then recur, for which
        compilers and allocators are prepared.
        """
        if fewest is None:
            return Visible(patches - masking.num_hidden(patches, self.config.mask_ratio))
        most = patches - masking.num_hidden(fewest, self.config.mask_ratio)
        eighth = -(-patches // 8)
        return Visible(min(patches, -(-most // eighth) * eighth), same=False)

    def _reconstruct(
        self, model: MaskedAutoencoder, volume: Tensor, hidden: Tensor, visible: Visible | None
    ) -> MaskedReconstruction:
        grid = [side // self.config.patch for side in volume.shape[2:]]
        return model(volume, ~hidden.view(len(hidden), *grid), visible)

    def _teacher_precision(self, device: str) -> AbstractContextManager[object]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.teacher_precision)
        if dtype is None or not torch.amp.is_autocast_available(device):
            return nullcontext()
        return torch.autocast(device, dtype)

    def _guidance(self, guess: MaskedReconstruction) -> Tensor:
        return guess.patch_loss if self.config.guidance == "normalised" else guess.patch_loss_raw

    def _self_mask(
        self, patch_loss: Tensor, hidden: Tensor, noise: Tensor, ratio: float, among: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        return masking.self_mask(
            patch_loss, hidden, noise, ratio, config.mask_ratio, config.significance, config.count, among
        )


def _on_device(value: float | Tensor, like: Tensor) -> Tensor:
    """Return a detached scalar on the device of `like`; a float is filled in there, not copied."""
    return value.detach() if isinstance(value, Tensor) else torch.full((), value, device=like.device)
