"""One worker of `test_parallel.py`: `python parallel_worker.py RANK WORLD FILE`.

Each case is two updates in float64 on a worker's share of a batch, with a checkpoint between them from which all is
built anew. Rank 0 writes what came out into FILE.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from anatomask.data.samples import worker_share
from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig
from anatomask.methods.base import Method
from anatomask.methods.byol import BYOLConfig
from anatomask.methods.masked import MaskedBatch
from anatomask.methods.moco import MoCoConfig
from anatomask.methods.selfmedmae import SelfMedMAEConfig
from anatomask.methods.swinunetr_ssl import SwinUNETRSSLConfig
from anatomask.methods.unimiss import SubVolumes, UniMiSSMethodConfig
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.nn.backbones.swin_unetr import SwinUNETRConfig
from anatomask.nn.backbones.unetr import UNETRConfig
from anatomask.nn.backbones.unimiss import UniMiSSConfig
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.losses import segmentation_loss
from anatomask.training.parallel import Workers, distribute
from anatomask.training.recorder import Recorder
from anatomask.training.schedule import learning_rate
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.training.state import TrainingState
from anatomask.training.task import Task
from anatomask.training.update import Update

CPU = torch.device("cpu")
NETWORK = STUNetConfig(base=2)


class Segmenting(Task):
    """STU-Net under the segmentation loss, whose Dice is over the whole batch."""

    optimiser = OptimiserConfig(lr=1e-3, eps=1e-3, warmup_epochs=0)

    def __init__(self) -> None:
        super().__init__()
        self.header = {"kind": "test"}
        self.network = STUNet(NETWORK, classes=3).double()
        self.network.heads[0].requires_grad_(False)

    def trainable(self) -> nn.Module:
        return self.network

    def forward(self, sample: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        return segmentation_loss(self.network(sample["volume"]), sample["label"]), {}

    def after_step(self, progress: float) -> None:
        pass

    def validate(self, recorder: Recorder, step: int) -> float | None:
        return None


class Pretraining(Segmenting):
    """AnatoMask: the teacher chooses the masks, and follows."""

    def __init__(self) -> None:
        Task.__init__(self)
        self.header = {"kind": "test"}
        settings = AnatoMaskConfig(decoder_width=16, r0=0.5, ema_decay=0.5, norm_scope="batch")
        self.method: Method = AnatoMask(settings, NETWORK).double()

    def trainable(self) -> nn.Module:
        return self.method.trainable()

    def networks(self) -> Sequence[nn.Module]:
        return self.method.networks()

    def kept(self) -> nn.Module:
        return self.method

    def forward(self, sample: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        result = self.method.training_step(MaskedBatch(sample["volume"], sample["noise"]), progress)
        return result.loss, result.scalars

    def after_step(self, progress: float) -> None:
        self.method.after_step(progress)


class FrozenAtFirst(Segmenting):
    """By SGD, the encoder from the second update on alone, and its first stages slower."""

    optimiser = OptimiserConfig("sgd", lr=1e-3, momentum=0.9, warmup_epochs=0, freeze=1, layer_decay=0.8)

    def encoder_depths(self) -> Mapping[nn.Module, int]:
        return self.network.encoder.depths()


class Predicting(Pretraining):
    """BYOL; the second view is the first one, mirrored."""

    def __init__(self) -> None:
        Task.__init__(self)
        self.header = {"kind": "test"}
        self.method = BYOLConfig(hidden=16, projection=8, ema_decay=0.5).build(NETWORK).double()

    def forward(self, sample: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        result = self.method.training_step((sample["volume"], sample["volume"].flip(2)), progress)
        return result.loss, result.scalars


class Contrasting(Predicting):
    """MoCo: the keys of both updates are in the queue, and the second update's negatives hold the first one's."""

    def __init__(self) -> None:
        Task.__init__(self)
        self.header = {"kind": "test"}
        self.method = MoCoConfig(hidden=16, projection=8, queue=12, ema_decay=0.5).build(NETWORK).double()


class Turning(Pretraining):
    """Swin UNETR's pretraining, whose samples are compared with each other and cut out of each other."""

    def __init__(self) -> None:
        Task.__init__(self)
        self.header = {"kind": "test"}
        network = SwinUNETRConfig(feature_size=3, depths=(1, 1, 1, 1), attention_heads=(1, 1, 1, 1), window=2)
        self.method = SwinUNETRSSLConfig().build(network).double()

    def forward(self, sample: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        volume = torch.cat((sample["volume"], sample["volume"].flip(2)), 2)
        crop = {
            "image": volume,
            "inside": torch.tensor([(0, 64), (0, 32), (0, 32)]).expand(len(volume), 3, 2),
            "minimum": torch.zeros(len(volume), 1),
            "normalisation": torch.tensor([-1.0, 1.0, 0.0, 1.0]).expand(len(volume), 1, 4),
            "seeds": (1e6 * sample["noise"][:, :, 0]).long(),
        }
        views = self.method.batch(crop)
        views = replace(views, cut=views.cut.double(), whole=views.whole.double())
        result = self.method.training_step(views, progress)
        return result.loss, result.scalars


class OnVolumesAndSlices(Pretraining):
    """UniMiSS, first on slices, then on volumes; each parameter is clipped on its own."""

    optimiser = OptimiserConfig(lr=1e-3, eps=1e-3, warmup_epochs=0, clip=1e-3, clip_of="each")

    def __init__(self) -> None:
        Task.__init__(self)
        self.header = {"kind": "test"}
        network = UniMiSSConfig(
            widths=(2, 4, 4, 8),
            depths=(1, 1, 1, 1),
            attention_heads=(1, 1, 2, 2),
            decoder_depths=(1, 1, 1),
            decoder_heads=(2, 1, 1),
            stem_width=4,
            patch_size=(64, 32, 32),
            slice_size=64,
        )
        self.method = UniMiSSMethodConfig(hidden=8, bottleneck=8, outputs=12, slice_epochs=1).build(network).double()

    def forward(self, sample: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        self.method.epoch = self.epoch
        volume = torch.cat((sample["volume"], sample["volume"].flip(2)), 3)
        common = torch.arange(16).expand(len(volume), 2, 16)
        result = self.method.training_step(SubVolumes((volume, volume.flip(4)), common), progress)
        return result.loss, result.scalars

    def frozen(self) -> Iterable[nn.Parameter]:
        return self.method.frozen()


class Seeing(Pretraining):
    """SelfMedMAE, whose transformer reads the visible patches alone."""

    def __init__(self) -> None:
        Task.__init__(self)
        self.header = {"kind": "test"}
        network = UNETRConfig(patch_size=(32, 32, 32), width=12, depth=4, attention_heads=2, feature_size=2)
        self.method = SelfMedMAEConfig(0.5, 12, 1, 2).build(network).double()


CASES: dict[str, tuple[type[Segmenting], int, TrainingConfig]] = {
    "segmentation": (Segmenting, 6, TrainingConfig()),
    "pretraining": (Pretraining, 6, TrainingConfig()),
    "unequal shares": (Pretraining, 5, TrainingConfig()),
    "two views": (Predicting, 3, TrainingConfig()),  # two workers have unequal shares
    "keys": (Contrasting, 6, TrainingConfig()),
    "sharded keys": (Contrasting, 6, TrainingConfig(shard_weights=True)),
    "turned views": (Turning, 6, TrainingConfig()),
    "sharded turned views": (Turning, 6, TrainingConfig(shard_weights=True)),
    "volumes and slices": (OnVolumesAndSlices, 3, TrainingConfig()),  # two workers have unequal shares
    "sharded volumes and slices": (OnVolumesAndSlices, 4, TrainingConfig(shard_weights=True)),
    "visible patches": (Seeing, 5, TrainingConfig()),
    "sharded visible patches": (Seeing, 6, TrainingConfig(shard_weights=True, recompute_activations=True)),
    "accumulated": (Pretraining, 12, TrainingConfig(accumulate=2)),
    "sharded and accumulated": (Pretraining, 12, TrainingConfig(shard_weights=True, accumulate=2)),
    "recomputed": (Pretraining, 6, TrainingConfig(recompute_activations=True)),
    "sharded": (Pretraining, 6, TrainingConfig(shard_weights=True, recompute_activations=True)),
    "sharded segmentation": (Segmenting, 6, TrainingConfig(shard_weights=True)),
    "frozen at first": (FrozenAtFirst, 6, TrainingConfig()),
    "sharded and frozen at first": (FrozenAtFirst, 6, TrainingConfig(shard_weights=True)),
}


def main() -> None:
    """Run every case."""
    rank, world, file = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}.meeting", rank=rank, world_size=world)
    assert Workers(rank, world).any((rank == 0, False, True), CPU) == [True, False, True]
    results = {name: updates(*case, Workers(rank, world), file.with_name(name)) for name, case in CASES.items()}
    if rank == 0:
        torch.save(results, file)
    distributed.destroy_process_group()


def updates(
    make: type[Segmenting], batch_size: int, config: TrainingConfig, workers: Workers, run: Path
) -> dict[str, Tensor]:
    """Losses, gradients, weights and running statistics of two updates of a whole batch."""
    torch.manual_seed(0)
    config = TrainingConfig(**{**vars(config), "batch_size": batch_size})
    batch = {
        "volume": torch.randn(batch_size, 1, 32, 32, 32, dtype=torch.float64),
        "label": torch.randint(0, 4, (batch_size, 1, 32, 32, 32)),
        "noise": torch.rand(batch_size, 2, 8),
    }
    # Each part of a whole batch is divided, so that the workers' parts make up those of one worker.
    parts = np.array_split(np.arange(batch_size), config.accumulate)
    shares = [part[list(worker_share(len(part), workers.rank, workers.count))] for part in parts]
    mine = {name: column[np.concatenate(shares)] for name, column in batch.items()}
    found: dict[str, Tensor] = {}
    for number in range(2):
        torch.manual_seed(number)
        task = make()
        task.epoch = number
        with Checkpoints(run, writes=workers.rank == 0) as checkpoints:
            assert workers.agree(checkpoints.step() if workers.rank == 0 else -1, CPU) == number
            checkpoints.load(number, task)
            model = distribute(task, config, workers)
            state = TrainingState.of(task, task.optimiser, CPU)
            checkpoints.load_moments(number, state)
            groups = state.optimiser.param_groups
            rates = [learning_rate(number, 2, task.optimiser, group["start"], group["factor"]) for group in groups]
            scalars = Update(state, model, workers, config, task.optimiser.clip, CPU, task.optimiser.clip_of)(
                mine, 0.5, rates
            )
            checkpoints.save(number + 1, state, None)
        distributed.barrier()
        share = workers.share(batch_size) / batch_size
        found |= {f"{number} {name}": workers.total(value.double() * share) for name, value in scalars.items()}
        dropped = {id(parameter) for parameter in task.frozen()}
        for name, parameter in task.trainable().named_parameters():
            frozen = id(parameter) in dropped or (number < task.optimiser.freeze and name.startswith("encoder."))
            if parameter.requires_grad and not frozen:
                assert parameter.grad is not None, f"{name} is not used"
                found[f"{number} gradient {name}"] = whole(parameter.grad)
    return {**found, **{f"state {name}": whole(tensor) for name, tensor in task.kept().state_dict().items()}}


def whole(tensor: Tensor) -> Tensor:
    """A copy, gathered from all workers where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


if __name__ == "__main__":
    main()
