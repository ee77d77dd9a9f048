"""The parts that recipes are composed of: networks by size, methods, scales and targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from anatomask.data.settings import ReaderConfig
from anatomask.evaluation.settings import InferenceConfig
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.resenc import ResEncConfig
from anatomask.nn.backbones.stunet import SIZES, STUNetConfig
from anatomask.nn.backbones.swin_unetr import SwinUNETRConfig
from anatomask.nn.backbones.unetr import UNETRConfig
from anatomask.nn.backbones.unimiss import UniMiSSConfig
from anatomask.training.settings import OptimiserConfig, TrainingConfig

Fields = Mapping[str, Any]
"""Some fields of a section of the settings, by name."""

NETWORKS: Mapping[str, BackboneConfig] = {
    "stunet-small": STUNetConfig(base=8),
    "stunet-b": SIZES["b"],
    "stunet-l": SIZES["l"],
    "stunet-h": SIZES["h"],
    "resenc-small": ResEncConfig(widths=(8, 16, 32, 64, 80, 80), blocks=(1, 1, 1, 1, 1, 1)),
    "resenc-l": ResEncConfig(),
    "swin_unetr-small": SwinUNETRConfig(feature_size=8, attention_heads=(1, 2, 4, 8)),
    "swin_unetr-48": SwinUNETRConfig(),
    "unetr-small": UNETRConfig(patch_size=(64, 64, 64), width=72, attention_heads=3, feature_size=8),
    "unetr-b": UNETRConfig(),
    "unimiss-small": UniMiSSConfig(
        widths=(12, 32, 64, 128),
        depths=(1, 1, 1, 1),
        decoder_depths=(1, 1, 1),
        stem_width=16,
        patch_size=(64, 64, 64),
        slice_size=64,
    ),
    "unimiss-48": UniMiSSConfig(),
}
"""Sizes of the networks: those that are published, and a small one of each network."""

METHODS: Mapping[str, Fields] = {
    "anatomask": {"name": "anatomask"},
    "spark": {"name": "anatomask", "masking": "random"},
    "byol": {"name": "byol"},
    "moco": {"name": "moco"},
    "mae": {"name": "mae"},
    "selfmedmae": {"name": "selfmedmae"},
    "swinunetr_ssl": {"name": "swinunetr_ssl"},
    "unimiss": {"name": "unimiss"},
}
"""Fields of the section `method` that make each method what it is, its name among them."""


@dataclass(frozen=True)
class Scale:
    """Size of the networks; length, batch, arithmetic and optimiser of the trainings."""

    sizes: Mapping[str, str]
    """Name in `NETWORKS` of each network, by the name that `--network` takes."""
    pretraining: TrainingConfig
    optimiser: OptimiserConfig
    """Optimiser of the pretraining."""
    finetuning: TrainingConfig
    finetuning_optimiser: OptimiserConfig
    """Optimiser of the finetuning."""
    methods: Mapping[str, Fields] = field(default_factory=dict)
    """Fields of the section `method` that follow from this scale, by the name that `--method` takes."""
    optimisers: Mapping[str, OptimiserConfig] = field(default_factory=dict)
    """Optimisers of the pretraining that differ from `optimiser`, by name in `NETWORKS`, else in `METHODS`."""
    pretrainings: Mapping[str, TrainingConfig] = field(default_factory=dict)
    """Pretrainings that differ from `pretraining`, by name in `METHODS`."""
    finetuning_optimisers: Mapping[str, OptimiserConfig] = field(default_factory=dict)
    """Optimisers of the finetuning that differ from `finetuning_optimiser`, by name in `NETWORKS`."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """Settings of the sliding windows in `evaluate` and `predict`."""

    def pretraining_optimiser(self, network: str, method: str, authors: Fields) -> OptimiserConfig:
        """Choose the optimiser of a pretraining, by the names of its network and method here.

        What this scale has for the network, else for all, is changed by the fields of the method's `authors`. What it
        has for the method stays.
        """
        if network not in self.optimisers and method in self.optimisers:
            return self.optimisers[method]
        fields: dict[str, Any] = {**authors}
        return replace(self.optimisers.get(network, self.optimiser), **fields)


_SELFMEDMAE = OptimiserConfig(
    lr=1e-3,
    betas=(0.9, 0.95),
    weight_decay=0.05,
    decayed="matrices",
    warmup_epochs=1,
    warmup_lr=0.0,
    rate_every="update",
)
"""Optimiser of SelfMedMAE's authors, but for the learning rate and the warm-up, which are a small network's."""
_UNETR = replace(_SELFMEDMAE, layer_decay=0.75)
"""Optimiser of their finetuning, likewise."""

_TANG = OptimiserConfig(lr=4e-4, weight_decay=0.1, warmup_epochs=0, warmup_updates=50, warmup_lr=0.0)
"""Optimiser of Tang et al., but for a warm-up of 500 updates."""

_UNIMISS = OptimiserConfig(
    lr=5e-4,
    lr_end=1e-6,
    weight_decay=0.04,
    weight_decay_end=0.4,
    decayed="matrices",
    warmup_epochs=1,
    warmup_lr=0.0,
    rate_every="sample",
    clip=0.3,
    clip_of="each",
)
"""Optimiser of UniMiSS's authors, but for the learning rate and the warm-up, which are a small network's."""

PAPER = Scale(
    sizes={
        "stunet": "stunet-b",
        "resenc": "resenc-l",
        "swin_unetr": "swin_unetr-48",
        "unetr": "unetr-b",
        "unimiss": "unimiss-48",
    },
    pretraining=TrainingConfig(),
    optimiser=OptimiserConfig(),
    finetuning=TrainingConfig(epochs=1000, steps_per_epoch=250, batch_size=2, precision="bf16", checkpoint_every=250),
    finetuning_optimiser=OptimiserConfig(eps=1e-4, warmup_epochs=0),
    optimisers={
        "stunet-h": OptimiserConfig(lr=2e-5, weight_decay=3e-5, warmup_epochs=10),
        "spark": OptimiserConfig(lr=2e-4),
    },
    finetuning_optimisers={
        "swin_unetr-48": OptimiserConfig(lr=1e-4, weight_decay=1e-5, warmup_epochs=50),
        "unetr-b": replace(_UNETR, lr=3.44e-2 * 2 / 256, warmup_epochs=50),
        "unimiss-48": OptimiserConfig(weight_decay=3e-5, warmup_epochs=0, decay="poly"),
    },
)
"""Scale as published: 1000 epochs of batch 4, then 1000 epochs of 250 updates of batch 2."""

_SMALL_SIZES = {
    "stunet": "stunet-small",
    "resenc": "resenc-small",
    "swin_unetr": "swin_unetr-small",
    "unetr": "unetr-small",
    "unimiss": "unimiss-small",
}
_SMALL_BYOL = {"hidden": 512, "projection": 64}
_SMALL_MOCO = {"hidden": 512, "projection": 64, "queue": 512, "ema_decay": 0.99}
_SMALL_SELFMEDMAE = {"decoder_width": 48, "decoder_depth": 2, "decoder_heads": 3}
_SMALL_UNIMISS = {"hidden": 256, "bottleneck": 64, "outputs": 4096, "ema_decay": 0.99}
_SMALL_PRETRAINING = TrainingConfig(epochs=14, batch_size=2, checkpoint_every=100, validate_every=2)

SMALL = Scale(
    sizes=_SMALL_SIZES,
    pretraining=_SMALL_PRETRAINING,
    optimiser=OptimiserConfig(lr=1e-3, warmup_epochs=1),
    finetuning=TrainingConfig(epochs=20, steps_per_epoch=50, batch_size=2, checkpoint_every=100, validate_every=5),
    finetuning_optimiser=OptimiserConfig(lr=1e-3, warmup_epochs=0),
    methods={
        "anatomask": {"decoder_width": 32, "ema_decay": 0.95, "ema_decay_final": 0.99},
        "byol": _SMALL_BYOL,
        "moco": _SMALL_MOCO,
        "selfmedmae": _SMALL_SELFMEDMAE,
        "unimiss": _SMALL_UNIMISS,
    },
    optimisers={
        "swinunetr_ssl": _TANG,
        "selfmedmae": replace(_SELFMEDMAE, warmup_epochs=5),
        "unimiss": _UNIMISS,
    },
    pretrainings={
        **dict.fromkeys(("byol", "moco"), replace(_SMALL_PRETRAINING, epochs=40, batch_size=8, validate_every=5)),
        **dict.fromkeys(
            ("swinunetr_ssl", "unimiss"), replace(_SMALL_PRETRAINING, epochs=20, batch_size=4, validate_every=5)
        ),
        "selfmedmae": replace(_SMALL_PRETRAINING, epochs=200, batch_size=8, validate_every=20),
    },
    finetuning_optimisers={"unetr-small": _UNETR},
)
"""Scale of about half an hour per training on two CPU cores."""

TINY = Scale(
    sizes=_SMALL_SIZES,
    pretraining=TrainingConfig(epochs=10, steps_per_epoch=10, batch_size=2, checkpoint_every=50, validate_every=5),
    optimiser=OptimiserConfig(lr=1e-3, warmup_epochs=1),
    finetuning=TrainingConfig(epochs=6, steps_per_epoch=20, batch_size=2, checkpoint_every=50, validate_every=3),
    finetuning_optimiser=OptimiserConfig(lr=1e-2, warmup_epochs=1),
    methods={
        "anatomask": {"decoder_width": 32, "ema_decay": 0.8, "ema_decay_final": 0.9},
        "byol": _SMALL_BYOL,
        "moco": _SMALL_MOCO,
        "selfmedmae": _SMALL_SELFMEDMAE,
        "unimiss": _SMALL_UNIMISS,
    },
    optimisers={"swinunetr_ssl": replace(_TANG, warmup_updates=10), "selfmedmae": _SELFMEDMAE, "unimiss": _UNIMISS},
    finetuning_optimisers={"unetr-small": _UNETR},
    inference=InferenceConfig(mirror=False),
)
"""Scale of minutes on two CPU cores."""


@dataclass(frozen=True)
class Target:
    """Structures to be segmented: the data set, its voxel size, the crop, and what of it is hidden."""

    spacing: tuple[float, float, float] | None
    """Voxel size in mm of a data set that defines none. None: it is planned from the scans, as nnU-Net does."""
    crop: tuple[int, int, int]
    """Crop in voxels. A network takes the next size that fits it."""
    why: str
    """Reason for the size of a hidden patch in mm."""
    classes: int
    """Number of structures for which costs are computed."""
    finetuning_crop: tuple[int, int, int] | None = None
    """Crop of finetuning in voxels. Default: `crop`."""
    mirror_axes: tuple[int, ...] | None = None
    """Axes (0 R, 1 A, 2 S) along which finetuning mirrors. Default: as `LoaderConfig` says."""
    foreground: float = 0.5
    """Share of finetuning crops that are centred on a voxel of a random class. nnU-Net's third of a batch of two, in
    whole crops, is one of two."""
    methods: Mapping[str, Fields] = field(default_factory=dict)
    """Fields of the section `method` that follow from this target, by the name that `--method` takes."""
    layout: str = "auto"
    """Layout of the data set, as in docs/datasets.md; auto takes any."""
    title: str = ""
    """Name of the data set in tables, as in the paper's. Default: that of the source's folder."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    """Settings of reading that data set."""
    channels: int | None = None
    """Number of image channels. Default: that of the network's own settings."""


TRUNK = Target(
    spacing=(1.5, 1.5, 1.5),
    crop=(112, 112, 128),
    why="A hidden patch is 16 voxels wide, 24 mm: smaller than most organs, larger than most vessels.",
    classes=104,
)
"""Target of the paper: organs of the trunk in CT."""

HEAD_AND_NECK = Target(
    spacing=(4.0, 4.0, 3.0),
    crop=(64, 64, 64),
    why=(
        "A hidden patch is 8 voxels wide, 32x32x24 mm, about the paper's 24 mm: 16 voxels would hide a whole parotid. "
        "Masks are drawn among patches with body in them, since half of a head-and-neck scan is air."
    ),
    classes=5,
    foreground=0.66,
    methods={"anatomask": {"patch": 8, "among": "body"}, "mae": {"patch": 8}},
)
"""Target of head and neck in CT of low resolution."""

PHANTOMS = Target(
    spacing=(7.0, 7.0, 7.0),
    crop=(48, 48, 48),
    why=(
        "A hidden patch is 8 voxels wide, 56 mm at 7 mm: large, but a crop holds the whole width of the body, and an "
        "update is quick. Masks are drawn among patches with body in them."
    ),
    classes=3,
    finetuning_crop=(32, 32, 32),
    mirror_axes=(),  # so that a minute teaches where each organ lies
    foreground=0.8,
    methods={"anatomask": {"patch": 8, "among": "body"}, "mae": {"patch": 8}},
)
"""Target of the scans that `anatomask phantom` writes."""

_FINETUNED = replace(
    TRUNK,
    spacing=None,
    why=(
        "A hidden patch is 16 voxels wide, whatever that is in mm at the planned voxel size: the paper pretrains on "
        "TotalSegmentator alone."
    ),
)
"""Target on which the paper only finetunes: with TotalSegmentator's crop, at a voxel size of its own."""

TARGETS: Mapping[str, Target] = {
    "totalsegmentator": replace(TRUNK, layout="totalsegmentator", title="TotalSegmentator"),
    "flare22": replace(_FINETUNED, layout="flare22", title="FLARE22", classes=13),
    "amos22": replace(_FINETUNED, layout="amos22", title="AMOS22", classes=15),
    "autopet2": replace(
        _FINETUNED,
        layout="autopet2",
        title="AutoPETII",
        reader=ReaderConfig(positives_only=True),
        channels=2,
        classes=1,
    ),
}
"""Data sets on which the paper finetunes, by the name that `--target` takes. See docs/targets.md."""
