"""Recipes: functions that return a whole configuration, every stage of it.

Fields that only the user knows (folders) are left `MISSING`, and the command line requires them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any

from tyro import MISSING

from anatomask.config import (
    EvaluateConfig,
    ExportWeightsConfig,
    FinetuneConfig,
    ImportWeightsConfig,
    PrepareConfig,
    PretrainConfig,
    ReportConfig,
    SurveyConfig,
    SweepConfig,
)
from anatomask.data.samples import LoaderConfig
from anatomask.data.settings import PhantomConfig, PreprocessConfig
from anatomask.evaluation.settings import InferenceConfig
from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.nn.backbones.stunet import SIZES, STUNetConfig
from anatomask.training.settings import OptimiserConfig, TrainingConfig

Recipe = Mapping[str, Any]


def with_sweep(recipe: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Add a sweep made of its stages to a recipe."""

    @wraps(recipe)
    def complete() -> Recipe:
        stages = recipe()
        sweep = SweepConfig(
            space=MISSING,
            pretrain_data=MISSING,
            finetune_data=MISSING,
            pretrain=replace(stages["pretrain"], data=""),
            finetune=replace(stages["finetune"], data=""),
            inference=stages["evaluate"].inference,
        )
        return {**stages, "sweep": sweep}

    return complete


@with_sweep
def paper_b() -> Recipe:
    """STU-Net-B as published: 1000 epochs, 112x112x128 voxels of 1.5 mm, batch 4; then 1000 of 250 steps, batch 2.

    A hidden patch is 16 voxels wide, 24 mm: smaller than most organs, larger than most vessels.
    """
    network = SIZES["b"]
    return {
        "phantom": PhantomConfig(out=MISSING),
        "survey": SurveyConfig(source=MISSING),
        "prepare": PrepareConfig(
            source=MISSING, out=MISSING, preprocess=PreprocessConfig(default_spacing=(1.5, 1.5, 1.5))
        ),
        "pretrain": PretrainConfig(data=MISSING, network=network),
        "finetune": FinetuneConfig(
            data=MISSING,
            network=network,
            optimiser=OptimiserConfig(eps=1e-4, warmup_epochs=0),
            training=TrainingConfig(
                epochs=1000, steps_per_epoch=250, batch_size=2, precision="bf16", checkpoint_every=250
            ),
        ),
        "evaluate": EvaluateConfig(run=MISSING),
        "report": ReportConfig(runs=MISSING),
        "export-weights": ExportWeightsConfig(run=MISSING, format=MISSING),
        "import-weights": ImportWeightsConfig(file=MISSING, output=MISSING),
    }


@with_sweep
def paper_l() -> Recipe:
    """STU-Net-L; all else as `paper-b`."""
    return _with_network(paper_b(), SIZES["l"])


@with_sweep
def paper_h() -> Recipe:
    """STU-Net-H: lr 2e-5, weight decay 3e-5, 10 epochs of warm-up in pretraining; all else as `paper-b`."""
    recipe = _with_network(paper_b(), SIZES["h"])
    optimiser = OptimiserConfig(lr=2e-5, weight_decay=3e-5, warmup_epochs=10)
    return {**recipe, "pretrain": replace(recipe["pretrain"], optimiser=optimiser)}


@with_sweep
def spark() -> Recipe:
    """The SparK baseline of the paper at size B: random masks, no teacher, lr 2e-4."""
    recipe = paper_b()
    return {
        **recipe,
        "pretrain": replace(
            recipe["pretrain"], method=AnatoMaskConfig(masking="random"), optimiser=OptimiserConfig(lr=2e-4)
        ),
    }


@with_sweep
def tiny() -> Recipe:
    """Minutes on two CPU cores: the smallest network that still finds organs in phantoms. For demos and tests.

    A hidden patch is 16 voxels wide, 64 mm at 4 mm: large, but with 27 of them in a crop an update is quick.
    """
    network = STUNetConfig(base=8, depth=1)
    loader = LoaderConfig(patch_size=(48, 48, 48))
    return {
        "phantom": PhantomConfig(out=MISSING),
        "survey": SurveyConfig(source=MISSING),
        "prepare": PrepareConfig(
            source=MISSING, out=MISSING, preprocess=PreprocessConfig(default_spacing=(4.0, 4.0, 4.0))
        ),
        "pretrain": PretrainConfig(
            data=MISSING,
            network=network,
            method=AnatoMaskConfig(decoder_width=64, ema_decay=0.8, ema_decay_final=0.9),
            loader=loader,
            optimiser=OptimiserConfig(lr=1e-3, warmup_epochs=1),
            training=TrainingConfig(epochs=10, steps_per_epoch=10, batch_size=2, checkpoint_every=50, validate_every=5),
        ),
        "finetune": FinetuneConfig(
            data=MISSING,
            network=network,
            loader=replace(loader, foreground=0.8),
            optimiser=OptimiserConfig(lr=3e-3, warmup_epochs=0),
            training=TrainingConfig(epochs=12, steps_per_epoch=20, batch_size=2, checkpoint_every=50, validate_every=6),
        ),
        "evaluate": EvaluateConfig(run=MISSING, inference=InferenceConfig(mirror=False)),
        "report": ReportConfig(runs=MISSING),
        "export-weights": ExportWeightsConfig(run=MISSING, format=MISSING),
        "import-weights": ImportWeightsConfig(file=MISSING, output=MISSING),
    }


@with_sweep
def small() -> Recipe:
    """Half an hour per training on two CPU cores, for real scans of low resolution (head and neck at 4x4x3 mm).

    A hidden patch is 8 voxels wide, 32x32x24 mm, about the paper's 24 mm: 16 voxels would hide a whole parotid. Masks
    are drawn among patches with body in them, since half of a head-and-neck scan is air.
    """
    network = STUNetConfig(base=8, depth=1)
    loader = LoaderConfig(patch_size=(64, 64, 64))
    return {
        "phantom": PhantomConfig(out=MISSING),
        "survey": SurveyConfig(source=MISSING),
        "prepare": PrepareConfig(
            source=MISSING, out=MISSING, preprocess=PreprocessConfig(default_spacing=(4.0, 4.0, 3.0))
        ),
        "pretrain": PretrainConfig(
            data=MISSING,
            network=network,
            method=AnatoMaskConfig(patch=8, among="body", decoder_width=32, ema_decay=0.95, ema_decay_final=0.99),
            loader=loader,
            optimiser=OptimiserConfig(lr=1e-3, warmup_epochs=1),
            training=TrainingConfig(epochs=14, batch_size=2, checkpoint_every=100, validate_every=2),
        ),
        "finetune": FinetuneConfig(
            data=MISSING,
            network=network,
            loader=replace(loader, foreground=0.66),
            optimiser=OptimiserConfig(lr=1e-3, warmup_epochs=0),
            training=TrainingConfig(
                epochs=20, steps_per_epoch=50, batch_size=2, checkpoint_every=100, validate_every=5
            ),
        ),
        "evaluate": EvaluateConfig(run=MISSING),
        "report": ReportConfig(runs=MISSING),
        "export-weights": ExportWeightsConfig(run=MISSING, format=MISSING),
        "import-weights": ImportWeightsConfig(file=MISSING, output=MISSING),
    }


def _with_network(recipe: Recipe, network: STUNetConfig) -> Recipe:
    return {
        **recipe,
        "pretrain": replace(recipe["pretrain"], network=network),
        "finetune": replace(recipe["finetune"], network=network),
    }


RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "tiny": tiny,
    "small": small,
    "paper-b": paper_b,
    "paper-l": paper_l,
    "paper-h": paper_h,
    "spark": spark,
}
