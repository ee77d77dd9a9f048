"""What a sweep runs at the same time: the arithmetic of resources, and the order of a trial's stages."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anatomask.cli.arguments import parse
from anatomask.cluster_settings import AtOnce, ClusterConfig
from anatomask.cluster_shares import TrainingResources, TrialResources, arrange_trial, divide
from anatomask.config import EvaluateConfig, FinetuneConfig
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.files import write_text
from anatomask.names import file_name
from anatomask.recipes import RECIPES
from anatomask.runs.store import Store
from anatomask.stages import sweep
from anatomask.sweeps.chain import build_chain
from anatomask.sweeps.graph import Stage, run_in_order
from anatomask.sweeps.trials import run_trial
from tests.sweeps.test_sweep import SETTINGS


@pytest.mark.parametrize(
    ("total", "config", "concurrent", "named"),
    [
        ({"CPU": 2}, ClusterConfig(), 3, "3 trials at once do not fit on 2 CPUs; lower --concurrent"),
        ({"CPU": 2}, ClusterConfig(workers=2), 2, "lower --concurrent or --cluster.workers"),
        ({"CPU": 8, "GPU": 2}, ClusterConfig(), 3, "3 trials at once with --cluster.workers 1 need 3 GPUs"),
        ({"CPU": 8, "GPU": 2}, ClusterConfig(workers=2), 2, "need 4 GPUs, and there are 2"),
        ({"CPU": 1}, ClusterConfig(workers=2), 1, "lower --cluster.workers"),
        ({"CPU": 8}, ClusterConfig(gpu=True), 1, "need 1 GPUs, and there are 0"),
        (
            {"CPU": 2},
            ClusterConfig(),
            (1, 3),
            "^3 finetunings side by side do not fit on 2 CPUs; lower --finetunings-a",
        ),
        (
            {"CPU": 64, "GPU": 8},
            ClusterConfig(workers=2),
            (2, 3),
            "^2 trials at once × 3 finetunings side by side with --cluster.workers 2 need 12 GPUs, and there are 8; "
            "lower --concurrent or --finetunings-at-once or --cluster.workers$",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    total: dict[str, float], config: ClusterConfig, concurrent: int | tuple[int, int], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        divide([total], config, *(concurrent if isinstance(concurrent, tuple) else (concurrent,)))


@given(
    cpus=st.integers(1, 64),
    gpus=st.integers(0, 8),
    workers=st.integers(1, 4),
    readers=st.integers(1, 4),
    concurrent=st.integers(1, 8),
)
def test_trainings_at_once_never_take_more_than_there_is(
    cpus: int, gpus: int, workers: int, readers: int, concurrent: int
) -> None:
    try:
        each = divide([{"CPU": cpus, "GPU": gpus}], ClusterConfig(workers=workers, readers=readers), concurrent)
    except UserError:
        return
    taken = each.workers * (each.worker_cpus + each.readers * each.reader_cpus)
    assert concurrent * taken <= cpus + 1e-9
    assert each.reader_cpus >= 0.1
    assert each.gpu == (gpus > 0)
    assert not each.gpu or concurrent * each.workers <= gpus


NODE = st.fixed_dictionaries({"CPU": st.integers(0, 12).map(float), "GPU": st.sampled_from([0.0, 0.0, 1.0, 4.0])})


@given(
    nodes=st.lists(NODE, min_size=1, max_size=6),
    workers=st.integers(1, 8),
    readers=st.integers(1, 4),
    concurrent=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
@example([{"CPU": 4.0, "GPU": 0.0}] * 2, 6, 1, 1, random.Random(2))
@example([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 64.0, "GPU": 0.0}], 1, 4, 3, random.Random(0))  # readers beside all GPUs
def test_all_readers_find_a_place_wherever_the_workers_were_put(
    nodes: list[dict[str, float]], workers: int, readers: int, concurrent: int, order: random.Random
) -> None:
    """The trainings begin one after the other: the workers of each go where there is room, and then its readers."""
    try:
        each = divide(nodes, ClusterConfig(workers=workers, readers=readers), concurrent)
    except UserError:
        return
    free = [dict(node) for node in nodes]
    reader = {"CPU": each.reader_cpus}
    for holds in ([each.per_worker] * workers + [reader] * (workers * readers)) * concurrent:
        room = [node for node in free if all(node[kind] + 1e-6 >= amount for kind, amount in holds.items())]
        assert room
        chosen = order.choice(room)
        for kind, amount in holds.items():
            chosen[kind] -= amount
    assert 1 <= each.threads <= max(1, max(node["CPU"] for node in nodes))


@pytest.mark.parametrize(
    ("nodes", "workers", "threads"),
    [
        ([{"CPU": 2.0}], 1, 2),
        ([{"CPU": 64.0, "GPU": 8.0}], 8, 8),
        ([{"CPU": 64.0, "GPU": 8.0}], 1, 64),
        ([{"CPU": 4.0}, {"CPU": 96.0, "GPU": 8.0}], 8, 12),  # the head's CPUs are no worker's
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0, "GPU": 8.0}], 4, 8),
        ([{"CPU": 48.0, "GPU": 4.0}] * 2, 4, 12),  # all on one node, where Ray packs them
        ([{"CPU": 16.0}] * 2, 2, 8),
        ([{"CPU": 4.0, "GPU": 8.0}, {"CPU": 8.0}], 8, 1),
        ([{"GPU": 1.0}, {"CPU": 12.0, "GPU": 4.0}], 4, 3),
    ],
)
def test_threads_are_those_of_the_nodes_that_train(nodes: list[dict[str, float]], workers: int, threads: int) -> None:
    assert divide(nodes, ClusterConfig(workers=workers)).threads == threads
    assert divide(nodes, ClusterConfig(workers=workers, threads=5)).threads == 5


@given(
    cpus=st.integers(1, 64),
    gpus=st.integers(0, 8),
    workers=st.integers(1, 3),
    trials=st.integers(1, 4),
    most=st.integers(1, 6),
    asked=st.none() | st.integers(1, 8),
)
def test_finetunings_side_by_side_never_take_more_than_their_trial_may(
    cpus: int, gpus: int, workers: int, trials: int, most: int, asked: int | None
) -> None:
    """With GPUs, as many run by themselves as fit; without, one; and as many as are asked for, or none at all."""
    config, at_once = ClusterConfig(workers=workers), AtOnce(trials, asked, most)

    def fit(number: int) -> TrainingResources:
        return divide([{"CPU": cpus, "GPU": gpus}], config, trials, number)

    try:
        found = arrange_trial(fit, at_once)
    except UserError:
        with pytest.raises(UserError):
            fit(min(asked or 1, most))
        return
    for each, number in ((found.pretraining, 1), (found.finetuning, found.side_by_side)):
        taken = number * each.workers * (each.worker_cpus + each.readers * each.reader_cpus)
        assert trials * taken <= cpus + 1e-9
        assert not each.gpu or trials * number * each.workers <= gpus
    if asked is not None or not gpus:
        assert found.side_by_side == min(asked or 1, most)
    elif found.side_by_side < most:
        with pytest.raises(UserError):
            fit(found.side_by_side + 1)


@pytest.mark.parametrize(("start", "side_by_side"), [("first", 2), ("pretrained", 3), ("pretrained", 1)])
def test_finetunings_run_side_by_side_as_far_as_they_do_not_need_each_other(
    start: str, side_by_side: int, labelled: PreparedDataset, tmp_path: Path
) -> None:
    """The finetunings of a time meet at a barrier, which breaks if they do not all come."""
    folders = [labelled.path, *(str(shutil.copytree(labelled.path, tmp_path / name)) for name in ("b", "c"))]
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", *folders, "--start-from", start, "--seeds", "0"]
    config = parse("sweep", [*argv, "--runs", str(tmp_path / "runs")], RECIPES).config
    assert config.at_once.most == (2 if start == "first" else 3)
    for folder, split in zip(folders[1:], ("test", "unlabeled"), strict=True):  # else they were one data set
        (Path(folder) / "splits.json").write_text(json.dumps({"train": ["one"], "val": ["two"], split: []}))
    chain, began, done = build_chain(config), list[str](), dict[str, int]()
    barrier, lock = threading.Barrier(side_by_side), threading.Lock()
    first = file_name(Path(labelled.path).name)

    def run(one: Stage, folder: Path, needed: Mapping[str, str]) -> None:
        with lock:
            fresh = one.name not in done
            began.append(one.name)
            assert all(need.name in done for need in one.needs.values())
        if fresh and one.verb == "finetune" and not (start == "first" and one.config.data == labelled.path):
            barrier.wait(timeout=20)
        with lock:
            done[one.name] = done.get(one.name, 0) + 1
        if one.verb == "evaluate":
            write_text(folder / "summary.json", '{"dsc": {"mean": 0.5}, "nsd": {"mean": null}}')

    run_trial(chain, "000-x", {}, run, side_by_side)
    assert began[0].startswith("pretrain") and len(began) == len(done) == 7
    if start == "first":
        assert began[1] == chain.stages({})[f"finetune-{first}-seed0"].name
    if side_by_side == 1:
        assert began == [one.name for one in chain.stages({}).values()]
    scores = run_trial(chain, "001-y", {}, run, side_by_side)  # all is there
    assert set(done.values()) == {2} and list(scores.values()) == [0.5] * 3


@pytest.mark.parametrize(
    ("trials", "side_by_side", "given", "threads"), [(1, 1, None, None), (1, 1, 3, 3), (1, 2, 3, 1), (2, 1, None, 1)]
)
def test_beside_other_trainings_the_scoring_of_a_case_takes_one_cpu(
    trials: int, side_by_side: int, given: int | None, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case of several CPUs would wait until a node has as many free at once."""
    scored = list[EvaluateConfig]()

    def score(config: EvaluateConfig) -> dict[str, str]:
        scored.append(config)
        return {}

    monkeypatch.setattr(sweep.evaluate, "score_run", score)
    one = Stage("evaluate", EvaluateConfig(run="needed", cluster=ClusterConfig(threads=given)), "digest")
    each = divide([{"CPU": 8.0}], ClusterConfig())
    resources = TrialResources(each, each, side_by_side, trials)
    sweep.run_stage(one, Path("store/run"), {"run": "trained"}, resources, Store(Path()))
    assert [(config.run, config.out, config.cluster.threads) for config in scored] == [
        ("trained", "store/run", threads)
    ]


def test_after_a_failure_no_stage_begins_and_those_that_run_end() -> None:
    stages = {name: Stage("finetune", FinetuneConfig(data=name), name) for name in "abcd"}
    stages["e"] = Stage("evaluate", EvaluateConfig(run="x"), "e", {"run": stages["b"]})
    other, ended = threading.Event(), list[str]()

    def run(name: str, stage: Stage) -> None:
        if name == "a":
            raise UserError("a is bad")
        other.wait(20)
        ended.append(name)

    release = threading.Timer(0.2, other.set)
    release.start()
    with pytest.raises(UserError, match="a is bad"):
        run_in_order(stages, run, 2)
    assert ended == ["b"]
