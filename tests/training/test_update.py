"""One update of a real network in each precision, on a real scan."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.samples import LoaderConfig, SampleSequence
from anatomask.data.shards import PreparedDataset
from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.fixed_scans import FixedCases
from anatomask.training.loop import to_device
from anatomask.training.parallel import Workers, distribute
from anatomask.training.pretraining import PretrainingTask
from anatomask.training.settings import OptimiserConfig, Precision, TrainingConfig
from anatomask.training.state import TrainingState
from anatomask.training.update import Update, clip_each_grad_norm_, set_arithmetic

CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SIZE = (48, 48, 48)
ADAMW = OptimiserConfig()
DRAW = MaskedDraw(LoaderConfig(patch_size=SIZE))


@pytest.fixture
def scan(head_voxels: np.ndarray, prepared: Callable[..., PreparedDataset]) -> PreparedDataset:
    return prepared(head_voxels)


def update(
    scan: PreparedDataset,
    config: TrainingConfig,
    device: torch.device = CPU,
    optimiser: OptimiserConfig = ADAMW,
) -> tuple[list[dict[str, float]], TrainingState]:
    """Scalars of three updates, of which the last does not wait for the device, and what they lead to."""
    set_arithmetic(config.precision)
    header = {"patch_size": list(SIZE), "spacing": [2.0, 2.0, 3.0]}
    method = AnatoMaskConfig(decoder_width=32, r0=0.5, ema_decay=0.5)
    task = PretrainingTask(
        method, STUNetConfig(base=8), DRAW.loader, header, scan.path, FixedCases((), held_out=False), 0, device
    )
    model = distribute(task, config, Workers())
    state = TrainingState.of(task, optimiser, device, scaled=config.precision == "fp16")
    step = Update(state, model, Workers(), config, 12.0, device)
    sequence, draw = SampleSequence(("one",), 0), MaskedDraw(LoaderConfig(patch_size=SIZE))
    updates = []
    for number in range(3):
        drawn = [draw(scan, "one", sequence.rng(k)) for k in range(2 * number, 2 * number + 2)]
        with never_waiting(device) if number == 2 else nullcontext():
            sample = to_device({name: np.stack([each[name] for each in drawn]) for name in drawn[0]}, device)
            updates.append(step(sample, 0.5, [1e-3]))
    set_arithmetic("fp32")
    return [{name: float(value) for name, value in scalars.items()} for scalars in updates], state


def test_gradients_are_clipped_one_by_one() -> None:
    long, short, none = (nn.Parameter(torch.zeros(4)) for _ in range(3))
    long.grad, short.grad = torch.tensor([3.0, 0, 4, 0]), torch.tensor([0.1, 0, 0, 0])
    assert float(clip_each_grad_norm_([long, short, none], 0.3)) == pytest.approx(math.hypot(5, 0.1))
    torch.testing.assert_close(long.grad, torch.tensor([0.18, 0, 0.24, 0]))
    assert torch.equal(short.grad, torch.tensor([0.1, 0, 0, 0]))
    long.grad[1] = math.inf
    assert not clip_each_grad_norm_([long, short], 0.3).isfinite() and not long.grad.isfinite().all()


@contextmanager
def never_waiting(device: torch.device) -> Iterator[None]:
    """Raises where the host waits for a GPU."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_precisions_agree_and_weights_stay_single(precision: Precision, scan: PreparedDataset) -> None:
    config = TrainingConfig(batch_size=2)
    (exact_first, _, exact), _ = update(scan, config)
    (first, _, rounded), state = update(scan, replace(config, precision=precision))
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.01)
    assert (rounded["loss"] == exact["loss"]) == (precision == "tf32")  # which only GPUs have
    tensors = [
        *state.task.kept().state_dict().values(),
        *state.optimiser.state[next(iter(state.optimiser.state))].values(),
    ]
    assert {tensor.dtype for tensor in tensors} <= {torch.float32, torch.int64}
    assert all(tensor.isfinite().all() for tensor in tensors)
    if precision != "fp16":  # whose first updates find the loss scale
        assert first["gradient_norm"] == pytest.approx(exact_first["gradient_norm"], rel=0.05)  # of equal weights


@GPU
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("setting", [{}, {"accumulate": 2}, {"recompute_activations": True}, {"channels_last": False}])
def test_a_gpu_makes_the_same_updates_and_nobody_waits_for_it(
    precision: Precision, setting: dict, scan: PreparedDataset
) -> None:
    config = TrainingConfig(batch_size=2, **setting)
    (*_, exact), _ = update(scan, config)
    (*_, there), state = update(scan, replace(config, precision=precision), torch.device("cuda"))
    assert there["loss"] == pytest.approx(exact["loss"], rel=0.01)
    assert {tensor.device.type for tensor in state.task.kept().state_dict().values()} == {"cuda"}


@GPU
@pytest.mark.parametrize("optimiser", [ADAMW, OptimiserConfig("sgd", momentum=0.9)], ids=["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_makes_the_same_updates_every_time(
    precision: Precision, optimiser: OptimiserConfig, scan: PreparedDataset
) -> None:
    """To the last bit, and nobody waits for it."""
    config, gpu = TrainingConfig(batch_size=2, precision=precision), torch.device("cuda")
    once, twice = (update(scan, config, gpu, optimiser)[1].task.kept().state_dict() for _ in range(2))
    assert all(torch.equal(tensor, twice[name]) for name, tensor in once.items())


@GPU
def test_a_checkpoint_of_a_gpu_is_the_state_at_the_call(scan: PreparedDataset, tmp_path: Path) -> None:
    """The copy is on its way while training goes on; what comes back is what was saved."""
    config, device = TrainingConfig(batch_size=2), torch.device("cuda")
    _, state = update(scan, config, device)
    saved = {name: tensor.cpu() for name, tensor in state.task.kept().state_dict().items()}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, None)
        with torch.no_grad():
            for tensor in state.task.kept().state_dict().values():
                tensor.add_(1)
    _, other = update(scan, config, device)
    checkpoints.load(3, other.task)
    checkpoints.load_moments(3, other)
    for name, tensor in other.task.kept().state_dict().items():
        assert torch.equal(tensor.cpu(), saved[name]), name
    moments = zip(state.optimiser.state.values(), other.optimiser.state.values(), strict=True)
    assert all(torch.equal(mine[key], theirs[key]) for mine, theirs in moments for key in mine)


@pytest.mark.parametrize("setting", [{"channels_last": False}, {"recompute_activations": True}])
def test_settings_of_speed_and_memory_change_rounding_alone(setting: dict, scan: PreparedDataset) -> None:
    config = TrainingConfig(batch_size=2)
    (*_, exact), _ = update(scan, config)
    (*_, other), _ = update(scan, replace(config, **setting))
    for name, value in exact.items():
        assert other[name] == pytest.approx(value, rel=0.01), name


@pytest.mark.slow
@pytest.mark.timeout(900)  # compiling takes minutes
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_networks_make_the_same_updates(recompute: bool, scan: PreparedDataset) -> None:
    torch.compiler.reset()  # shapes that earlier tests compiled for make these symbolic, which takes 15 minutes
    config = TrainingConfig(batch_size=2)
    (*_, exact), _ = update(scan, config)
    (*_, other), _ = update(scan, replace(config, compile=True, recompute_activations=recompute))
    for name, value in exact.items():
        assert other[name] == pytest.approx(value, rel=0.01), name


def test_tf32_is_asked_for_or_not() -> None:
    try:
        set_arithmetic("tf32")
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
        set_arithmetic("fp32")
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    finally:
        set_arithmetic("fp32")
