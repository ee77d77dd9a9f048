from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anatomask.cli.main import main as anatomask
from anatomask.data.samples import LoaderConfig
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.training import memory
from anatomask.training.cost import StepCost
from anatomask.training.memory import require_memory
from anatomask.training.settings import TrainingConfig

GIB = 2**30


@pytest.mark.parametrize(
    ("batch", "workers", "gpu", "update", "refused"),
    [
        (4, 1, False, None, ""),  # crops of 3 MiB: no arithmetic
        (1000, 1, False, 15, ""),
        (1000, 1, False, 17, "takes at least 17 GiB, and this machine has 10 GiB"),
        (1000, 2, False, 9, "takes at least 18 GiB, and this machine has 10 GiB"),  # they share it
        (1000, 2, True, 9, ""),  # a GPU each
        (1000, 2, True, 17, "takes at least 17 GiB, and the GPU has 10 GiB"),
        (100_000, 1, False, None, "takes at least 41 GiB"),  # the crops alone
        (100_000, 8, True, 14, ""),
    ],
)
def test_what_is_far_beyond_the_memory_is_refused(
    batch: int, workers: int, gpu: bool, update: int | None, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "device_memory", lambda gpu: 10 * GIB)

    def cost() -> StepCost:
        assert update is not None, "the arithmetic was asked for"
        return StepCost(0, GIB, (update - 1) * GIB)

    def check() -> None:
        loader = LoaderConfig(patch_size=(48, 48, 48))  # 0.42 MiB
        require_memory(TrainingConfig(batch_size=batch), loader, 1, workers, gpu, cost)

    if not refused:
        return check()
    with pytest.raises(UserError, match=refused):
        check()


@pytest.mark.parametrize(
    ("verb", "batch", "gibibytes"), [("pretrain", "900000", 0), ("pretrain", "5000", 1), ("finetune", "5000", 1)]
)
def test_a_batch_that_cannot_fit_is_refused_before_anything_starts(
    verb: str,
    batch: str,
    gibibytes: int,
    prepared: Callable[..., PreparedDataset],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if gibibytes:
        monkeypatch.setattr(memory, "device_memory", lambda gpu: gibibytes * GIB)
    image = np.random.default_rng(0).integers(0, 1000, (32, 32, 32)).astype(np.int16)
    label = (image > 500).astype(np.uint8)
    argv = [verb, "--recipe", "tiny", "--data", prepared(image, label=label).path, "--runs", str(tmp_path / "runs")]
    argv += ["--training.batch-size", batch, "--loader.patch-size", "32", "32", "32", "--cluster.gpu", "False"]
    argv += ["--splits", "train"] if verb == "pretrain" else []
    assert anatomask(argv) == 1
    shown = capsys.readouterr().err
    assert f"training.batch_size {batch} of 32x32x32 voxels takes at least" in shown
    assert "lower --training.batch-size" in shown
    assert not (tmp_path / "runs").exists()
