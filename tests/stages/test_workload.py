"""Workload of many trainings: sums of what each takes, and the speed that finished ones have reached."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from anatomask.config import PretrainConfig
from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.nested import plain
from anatomask.recipes import RECIPES
from anatomask.runs.store import Store
from anatomask.stages.workload import Remaining, kind_of, load_of, reached_rates, workload_rows
from anatomask.terminal.progress import duration
from anatomask.training.estimate import PretrainPlanConfig


@pytest.fixture
def config() -> PretrainConfig:
    settings: PretrainConfig = RECIPES["tiny"].settings("pretrain")
    return replace(settings, data="x", plan=PretrainPlanConfig(tflops=1, share_of_peak=1.0))


def test_all_of_them_take_their_sum(config: PretrainConfig, tmp_path: Path) -> None:
    flops = load_of(config).cost.flops
    left = [Remaining(config, 1000), Remaining(replace(config, seed=1), 500)]
    rows = dict(workload_rows(left, 4, Store(tmp_path)))
    assert rows["operations"] == f"{4 * 1500 * flops / 1e15:.3g} PFLOP in 8 trainings"
    assert rows["time"].startswith(f"about {duration(4 * 1500 * flops / 1e12)} of one device")
    assert "time here" not in rows
    assert workload_rows([], 4, Store(tmp_path)) == [("left to train", "nothing")]


def test_a_checkpoint_holds_weights_teacher_and_moments(config: PretrainConfig) -> None:
    method = config.method.build(config.network)
    trained = sum(one.numel() for one in method.parameters() if one.requires_grad)
    others = sum(one.numel() for one in method.parameters() if not one.requires_grad)
    buffers = sum(one.numel() for one in method.buffers())
    assert load_of(config).checkpoint_bytes == 4 * (3 * trained + others + buffers)


def test_the_speed_that_runs_of_the_same_kind_have_reached_gives_the_time_here(
    config: PretrainConfig, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    for name, ratio, rate in (("pretrain-0", 0.6, 2.0), ("pretrain-1", 0.9, 50.0)):
        run = store.path(name)
        run.mkdir(parents=True)
        made = replace(config, method=AnatoMaskConfig(mask_ratio=ratio), seed=7)
        (run / "config.yaml").write_text(yaml.safe_dump(plain(made)))
        (run / "metrics.jsonl").write_text(
            json.dumps({"step": 1, "train/loss": 1, "train/samples_per_second": rate}) + "\n"
        )
    (store.path("pretrain-2")).mkdir()
    (store.path("pretrain-2") / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": 1, "train/samples_per_second": 9}\n'
    )
    assert sorted(reached_rates(store).values()) == [2.0, 50.0]
    asked = replace(config, method=AnatoMaskConfig(mask_ratio=0.6))
    assert reached_rates(store)[kind_of(asked)] == 2.0
    rows = dict(workload_rows([Remaining(asked, 1200)], 1, store))
    assert rows["time here"].startswith(f"about {1200 * asked.training.batch_size / 2 / 60:.0f} min one after another")
