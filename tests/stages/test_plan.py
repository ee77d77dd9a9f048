"""What the dry runs of prepare and pretrain say of more cases and more devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anatomask.cli.arguments import parse
from anatomask.data.shards import PreparedDataset
from anatomask.recipes import RECIPES
from anatomask.stages import prepare, pretrain


def figures(text: str) -> list[float]:
    """The numbers in a cell."""
    return [float(part) for part in text.replace(",", "").replace(";", "").split() if part.replace(".", "").isdigit()]


def test_preparing_more_cases(real_data: Path, tmp_path: Path) -> None:
    """Bytes and hours grow with the cases; voxels and cases are those of the source."""
    argv = [
        "--source",
        str(real_data / "openkbp"),
        "--out",
        str(tmp_path / "out"),
        "--preprocess.spacing",
        "4",
        "4",
        "3",
    ]
    given = dict(prepare.plan(parse("prepare", argv, RECIPES).config))
    more = dict(prepare.plan(parse("prepare", [*argv, "--plan.cases", "203000"], RECIPES).config))
    assert (given["planned for"], more["planned for"]) == ("these 203 cases", "203000 cases like these 203")
    assert figures(given["voxels"])[1] == figures(more["voxels"])[1] == pytest.approx(0.9, rel=0.2)
    assert figures(more["voxels"])[0] == pytest.approx(1000 * figures(given["voxels"])[0], rel=0.01)
    assert figures(more["shards"])[0] == 203000
    for cell, place in (("shards", 1), ("size before compression", 0)):
        assert figures(more[cell])[place] == pytest.approx(1000 * figures(given[cell])[place], rel=0.1)
    assert 0.1 < figures(more["shards"])[1] / figures(more["size before compression"])[0] < 0.9
    assert figures(more["CPU time"])[0] > 1
    assert not (tmp_path / "out").exists()

    nothing = dict(prepare.plan(parse("prepare", [*argv, "--plan.sample", "0"], RECIPES).config))
    assert "voxels" in nothing and "shards" not in nothing


def test_pretraining_on_more_cases_and_devices(prepared: Callable[..., PreparedDataset], tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 1000, (64, 64, 64)).astype(np.int16)
    dataset = prepared(image)
    argv = ["--recipe", "tiny", "--data", dataset.path, "--runs", str(tmp_path / "runs"), "--plan.tflops", "100"]
    argv += ["--splits", "train", "--training.steps-per-epoch", "None", "--loader.patch-size", "32", "32", "32"]

    def rows(*more: str) -> dict[str, str]:
        return dict(pretrain.plan(parse("pretrain", [*argv, *more], RECIPES).config))

    one, many = rows(), rows("--plan.cases", "5000", "--cluster.workers", "2")
    assert one["shards"].startswith("1 files") and many["shards"].startswith("5000 files")
    assert figures(many["shards"])[1] == pytest.approx(5000 * dataset.shard_sizes()["one"] / 1e9, rel=0.02)
    assert figures(many["updates"])[0] == 10 * 2500
    assert figures(many["crops"])[0] == 10 * 5000
    megabytes, with_footers = (figures(plan["reading"])[0] for plan in (one, many))
    assert 32**3 * 2 / 1e6 < megabytes < with_footers < dataset.shard_sizes()["one"] / 1e6 + 0.01
    bandwidth = [figures(plan["read bandwidth"])[0] for plan in (one, many)]
    rates = [figures(plan["samples"])[0] for plan in (one, many)]
    assert bandwidth[0] == pytest.approx(megabytes * rates[0], rel=0.02)
    assert bandwidth[1] == pytest.approx(2 * with_footers * rates[1], rel=0.02)
    fast = rows("--plan.share-of-peak", "0.6")
    assert figures(fast["samples"])[0] == pytest.approx(2 * rates[0], rel=0.02)
    assert math.isclose(figures(fast["read bandwidth"])[0], 2 * bandwidth[0], rel_tol=0.02)
    assert one[""].endswith("with --training.recompute-activations") and many[""].endswith("with both")
    shared = rows("--cluster.workers", "2", "--training.recompute-activations")
    assert figures(shared["memory"])[0] == figures(many[""])[0]  # the option that was named
    assert not (tmp_path / "runs").exists()
