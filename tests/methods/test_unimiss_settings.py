"""UniMiSS from the outside: what its epochs on slices cost and leave, and a finetuning from published weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anatomask.cli.arguments import parse
from anatomask.cli.main import main
from anatomask.config import PretrainConfig
from anatomask.recipes import RECIPES
from anatomask.stages.costs import pretraining_update, worker_cost
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.weights.files import initialise, read_weights
from tests.methods.test_unimiss import HEAD, LOADER
from tests.nn.backbones.test_unimiss import SMALL
from tests.published import Published


def test_a_dry_run_counts_an_epoch_on_volumes() -> None:
    """One on slices alone costs less, and comes first."""
    plain = PretrainConfig("x", network=SMALL, loader=LOADER, method=HEAD)
    slices = replace(plain, method=replace(HEAD, slice_epochs=2))
    assert worker_cost(slices, *pretraining_update(slices)) == worker_cost(plain, *pretraining_update(plain))


def test_a_pretraining_without_an_epoch_on_volumes_is_refused() -> None:
    """What a finetuning takes over would be as it was drawn."""
    fields: dict[str, Any] = {"network": SMALL, "loader": LOADER, "training": TrainingConfig(epochs=20)}
    fields["optimiser"] = OptimiserConfig(warmup_epochs=1)
    PretrainConfig("x", method=replace(HEAD, slice_epochs=19), **fields)
    with pytest.raises(ValueError, match=r"method\.slice_epochs 20 leaves none of the 20 epochs for volumes"):
        PretrainConfig("x", method=replace(HEAD, slice_epochs=20), **fields)


def test_published_weights_start_a_finetuning_by_its_command(
    published: Callable[[str], AbstractContextManager[Published]], tmp_path: Path
) -> None:
    """Their crops are thinner than this project's, and positions are interpolated for another."""
    with published("unimiss") as numbers:
        numbers.unread.clear()
        file = numbers.folder / f"{numbers.sizes['prefix']}_ssl_checkpoint.pt"
        assert main(["import-weights", str(file), "--output", str(tmp_path / "w"), "--dataset", "x"]) == 0
        flags = ["--data", "x", "--init", str(tmp_path / "w")]
        assert min(parse("finetune", flags, RECIPES).config.loader.patch_size) == 32
        crop = ["64", "64", "32"]
        sizes = ["--network.patch-size", *crop, "--loader.patch-size", *crop]
        config = parse("finetune", [*flags, *sizes], RECIPES).config
        assert config.network.patch_size == config.loader.patch_size == (64, 64, 32)
        initialise(config.network.segmenter(3), read_weights(tmp_path / "w"))
