"""The four data sets of the paper: what `--target` makes of them, on the real stand-ins, without training."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anatomask.cli.arguments import parse
from anatomask.cli.main import main
from anatomask.config import FinetuneConfig
from anatomask.data.fingerprint import Fingerprint, case_histograms
from anatomask.data.index import write_index
from anatomask.data.records import PreparedCase
from anatomask.data.shards import PreparedDataset, write_case
from anatomask.data.source import Source, read_source
from anatomask.errors import UserError
from anatomask.evaluation.settings import ScoringConfig
from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.nn.backbones.stunet import SIZES, STUNet, STUNetConfig, STUNetEncoder
from anatomask.recipes import RECIPES, TARGETS
from anatomask.reports.paper import published
from anatomask.stages.costs import finetuning_update, worker_cost
from anatomask.stages.finetune import build_job
from anatomask.training.finetuning import FinetuningTask
from anatomask.weights.exporting import export_weights, write_export
from anatomask.weights.files import describe_architecture, read_weights, write_weights
from anatomask.weights.tensor_files import Weights
from tests.recipes.test_training import losses

NETWORK = STUNetConfig(base=2)
STEM = "encoder.stages.0.0.conv1.weight"
MEMORY_BYTES = 24e9
TOLERANCES = {
    "totalsegmentator": [3.0] * 104,
    "flare22": [5.0, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3],
    "amos22": [3.0] * 15,
    "autopet2": [3.0],
}
FURTHER_METRICS = {"autopet2": ("lesions",), "amos22": ("nsd_1mm", "nsd_2mm")}
CHANNELS = {
    "totalsegmentator": [("CT", "ct")],
    "flare22": [("CT", "ct")],
    "amos22": [("CT or MR", "zscore")],
    "autopet2": [("CTres", "ct"), ("SUV", "quantitative")],
}


@pytest.fixture(scope="module")
def source(real_data: Path) -> Callable[[str], Source]:
    """Reads a stand-in as `prepare --target` does."""

    @cache
    def read(target: str) -> Source:
        argv = ["--target", target, "--source", str(real_data / target), "--out", "x"]
        config = parse("prepare", argv, RECIPES).config
        return read_source(
            Path(config.source), config.dataset, config.name, config.reader, config.preprocess, config.split
        )

    return read


@pytest.fixture(scope="module")
def data(source: Callable[[str], Source], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PreparedDataset]:
    """Makes a prepared data set with a stand-in's channels and classes, of one case of noise with two organs."""

    @cache
    def make(target: str) -> PreparedDataset:
        info, root, shape = source(target).info, str(tmp_path_factory.mktemp(target)), (40, 36, 32)
        noise = np.random.default_rng(0).integers(-200, 200, (len(info.schemes), *shape))
        images = tuple(
            one.astype(np.int16 if scheme == "ct" else np.float16)
            for one, scheme in zip(noise, info.schemes, strict=True)
        )
        label = np.zeros(shape, np.uint8)
        label[5:20, 5:20, 5:20], label[25:30, 5:20, 5:20] = 1, len(info.class_names)
        affine = np.diag([*info.spacing, 1.0])
        case = PreparedCase("one", "one", images, info.schemes, label, affine, shape, affine, label)
        record = write_case(root, case, info.brick, info.codec)
        histograms = [
            case_histograms(image[None], label, (scheme,))[0]
            for image, scheme in zip(images, info.schemes, strict=True)
        ]
        fingerprint = Fingerprint.from_histograms(info.channel_names, info.schemes, histograms)
        write_index(root, info, [record], {"train": ["one"]}, fingerprint)
        return PreparedDataset.open(root)

    return make


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of a pretraining, of its finetuning on TotalSegmentator, and in the form that STU-Net is published in."""
    root = tmp_path_factory.mktemp("starts")
    method = AnatoMaskConfig()
    encoder = STUNetEncoder(NETWORK, stages=5).state_dict()
    header: dict[str, Any] = {"kind": "pretraining", "dataset": "TotalSegmentator", "stages": 5}
    header |= {"architecture": describe_architecture(NETWORK)}
    header |= {"method": {"name": method.name, "patch": 16}, "encoder": method.encoder}
    write_weights(root / "pretrained", {f"{method.encoder}{name}": one for name, one in encoder.items()}, header)
    whole = Weights(
        STUNet(NETWORK, 104).state_dict(),
        {"kind": "segmentation", "architecture": describe_architecture(NETWORK, 104), "dataset": "TotalSegmentator"},
    )
    write_weights(root / "finetuned", whole.tensors, whole.header)
    file = root / "base_ep4k.model"
    write_export(file, "stunet", export_weights(whole, "stunet", ".model"))
    argv = [str(file), "--output", str(root / "published"), "--dataset", "TotalSegmentator"]
    assert main(["import-weights", *argv]) == 0
    return {name: root / name for name in ("pretrained", "finetuned", "published")}


@pytest.mark.parametrize("target", TARGETS)
def test_a_data_set_is_prepared_as_docs_targets_says(target: str, source: Callable[[str], Source]) -> None:
    found = source(target)
    info = found.info
    assert (info.reader, info.name) == (target, TARGETS[target].title)
    assert list(zip(info.channel_names, info.schemes, strict=True)) == CHANNELS[target]
    assert [info.nsd_tolerance[number] for number in sorted(info.class_names)] == TOLERANCES[target]
    assert len(info.class_names) == TARGETS[target].classes
    if target == "totalsegmentator":
        assert info.spacing == (1.5, 1.5, 1.5)
    else:
        assert any("are planned from" in remark for remark in found.raw.remarks)
    assert ScoringConfig().metrics_of(info.reader) == ("nsd", "hd95", *FURTHER_METRICS.get(target, ()))


def test_the_titles_are_those_of_the_paper() -> None:
    """So the published numbers stand beside ours."""
    assert {target.title for target in TARGETS.values()} == {score.dataset for score in published()}


@pytest.mark.parametrize("target", TARGETS)
def test_finetuning_has_the_published_settings_but_for_channels(target: str) -> None:
    config = parse("finetune", ["--target", target, "--data", "x"], RECIPES).config
    channels = len(CHANNELS[target])
    assert config.network == STUNetConfig(in_channels=channels, base=32) and SIZES["b"].base == 32
    assert config.loader.patch_size == (112, 112, 128) and config.loader.foreground == 0.5
    training, optimiser = config.training, config.optimiser
    assert (training.epochs, training.steps_per_epoch, training.batch_size) == (1000, 250, 2)
    assert (optimiser.name, optimiser.lr, optimiser.eps, optimiser.decay) == ("adamw", 1e-4, 1e-4, "cosine")
    pretraining = parse("pretrain", ["--target", target, "--data", "x"], RECIPES).config
    assert pretraining.network == config.network and pretraining.loader.patch_size == (112, 112, 128)
    sweep = ["--target", target, "--space", "table1_decoder", "--pretrain-data", "x", "--finetune-data", "y"]
    assert parse("sweep", sweep, RECIPES).config.finetune.network == config.network


@pytest.mark.parametrize("start", ["scratch", "pretrained", "finetuned", "published"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_data_set_is_finetuned_from_every_start(
    target: str, start: str, data: Callable[[str], PreparedDataset], starts: dict[str, Path], tmp_path: Path
) -> None:
    dataset = data(target)
    argv = ["--recipe", "tiny", "--target", target, "--data", dataset.path, "--runs", str(tmp_path)]
    argv += ["--loader.patch-size", "32", "32", "32"]
    argv += ["--network.base", "2"] if start == "scratch" else ["--init", str(starts[start])]
    task = task_of(parse("finetune", argv, RECIPES).config)
    network, header = task.network, task.header
    assert header["architecture"] == describe_architecture(network.config, TARGETS[target].classes)
    assert header["mirror_axes"] == ([0, 1, 2] if target == "autopet2" else [1, 2])
    if start == "scratch":
        assert header["loaded"]["tensors"] == 0
        return
    left_out = header["not_transferred"]
    loaded = [name for name in network.state_dict() if name not in left_out]
    assert len(loaded) == header["loaded"]["tensors"] and not [name for name in loaded if name.startswith("heads.")]
    if start == "pretrained":
        assert {name[:16] for name in loaded} == {f"encoder.stages.{stage}" for stage in range(5)}
    else:
        assert {name.partition(".")[0] for name in left_out} == {"heads"}
    tensors = read_weights(starts[start]).tensors
    stem, found = next(one for name, one in tensors.items() if name.endswith(STEM)), network.state_dict()[STEM]
    assert torch.equal(found, stem.repeat(1, len(CHANNELS[target]), 1, 1, 1))


def task_of(config: FinetuneConfig) -> FinetuningTask:
    """Build what a worker trains."""
    task = build_job(config).build_task(torch.device("cpu"))
    assert isinstance(task, FinetuningTask)
    return task


def test_weights_of_two_channels_keep_them(starts: dict[str, Path], tmp_path: Path) -> None:
    """PET/CT weights without `--target`."""
    network = STUNetConfig(in_channels=2, base=2)
    header = {"kind": "segmentation", "architecture": describe_architecture(network, 1), "dataset": "AutoPETII"}
    write_weights(tmp_path / "petct", STUNet(network, 1).state_dict(), header)
    config = parse("finetune", ["--data", "x", "--init", str(tmp_path / "petct")], RECIPES).config
    assert config.network == network


def test_lesions_are_what_autopet_is_prepared_for(real_data: Path) -> None:
    argv = ["--target", "autopet2", "--source", str(real_data / "autopet2"), "--out", "x"]
    assert parse("prepare", argv, RECIPES).config.reader.positives_only
    assert not parse("prepare", [*argv, "--reader.no-positives-only"], RECIPES).config.reader.positives_only


def test_the_commands_of_the_docs_are_understood(
    starts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, start in (("runs/anatomask", "pretrained"), ("runs/totalsegmentator", "finetuned")):
        shutil.copytree(starts[start], folder)
    shutil.copytree(starts["published"], "weights/stunet-b")
    text = (Path(__file__).parents[2] / "docs/targets.md").read_text().replace("\\\n", "")
    commands = [
        shlex.split(line)[1:]
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
        if line
    ]
    assert len(commands) > 15
    for verb, *argv in commands:
        config = parse(verb, argv, RECIPES).config
        if verb == "finetune":
            assert config.network.in_channels == (2 if "autopet2" in argv else 1)


def test_a_target_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match="--target kits: no such target; there are totalsegmentator, flare22, amos22"):
        parse("prepare", ["--target", "kits", "--source", "x", "--out", "y"], RECIPES)


def test_104_classes_fit_a_gpu_of_24_gb() -> None:
    """STU-Net-B, batch 2 of 112x112x128 voxels, by the arithmetic of `--dry-run`."""
    config = parse("finetune", ["--target", "totalsegmentator", "--data", "x"], RECIPES).config
    cost = worker_cost(config, *finetuning_update(config, 104))
    assert (config.training.batch_size, config.training.precision) == (2, "bf16")
    assert 8e9 < cost.memory_bytes < 0.75 * MEMORY_BYTES  # the rest is the allocator's and the libraries'


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_104_classes_fit_a_gpu_of_24_gb_in_fact(data: Callable[[str], PreparedDataset], tmp_path: Path) -> None:
    dataset = data("totalsegmentator")
    argv = ["--target", "totalsegmentator", "--data", dataset.path, "--runs", str(tmp_path)]
    config = parse("finetune", argv, RECIPES).config
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    first, *_, last = losses(build_job(config), dataset, 4, torch.device("cuda"))
    assert np.isfinite([first, last]).all()
    assert torch.cuda.max_memory_reserved() < MEMORY_BYTES
