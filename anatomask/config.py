"""The settings of every verb, composed from the components' own.

The command line, the YAML file and Python build the same frozen dataclasses. Values are checked where they are
declared (`__post_init__`), so a bad one is refused before anything starts, whichever way it came in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from anatomask.cluster_settings import ClusterConfig
from anatomask.data.addresses import is_address
from anatomask.data.samples import LoaderConfig
from anatomask.data.settings import PreparePlanConfig, PreprocessConfig, ReaderConfig
from anatomask.data.splits import SplitConfig
from anatomask.evaluation.settings import InferenceConfig, ScoringConfig
from anatomask.methods.anatomask import AnatoMaskConfig
from anatomask.methods.base import MethodConfig
from anatomask.names import check_name
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.nn.backbones.swin_unetr import PatchMerging
from anatomask.settings import Settings
from anatomask.training.estimate import DeviceConfig, PretrainPlanConfig
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.weights.axes import Axes
from anatomask.weights.exporting import FOLDERS, UNKNOWN, ExportFormat

SCRATCH = "scratch"
"""Value of `FinetuneConfig.init` that starts from random weights."""


@dataclass(frozen=True)
class PrepareConfig(Settings):
    """Settings of turning raw scans into Parquet shards."""

    source: str
    """Folder of raw scans, as downloaded."""
    out: str
    """Folder for the shards."""
    dataset: str = "auto"
    """Layout of the source, as in docs/datasets.md; auto detects it."""
    name: str = ""
    """Name of the data set in tables. Default: the source folder's name."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    plan: PreparePlanConfig = field(default_factory=PreparePlanConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True)
class SurveyConfig(Settings):
    """Settings of a survey: what is in a folder of raw scans, and which of them are suspicious."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Folder of raw scans, as downloaded."""
    output: str = "survey"
    """Folder for the contact sheet (PNG) and the facts (JSON, CSV)."""
    dataset: str = "auto"
    """Layout of the source, as in `prepare`; auto detects it."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    tiles: int = 48
    """Number of cases on the contact sheet at most: the suspicious ones, then others spread over the data set."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_local("output")
        self.require_range(1, 1000, "tiles")


def check_training(training: TrainingConfig, optimiser: OptimiserConfig, cluster: ClusterConfig, seed: int) -> None:
    """Check that sections that are each valid fit together.

    Raises:
        ValueError: they do not.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, not {seed}")
    if training.batch_size < cluster.workers * training.accumulate:
        raise ValueError(
            f"training.batch_size {training.batch_size} must be at least cluster.workers {cluster.workers} x "
            f"training.accumulate {training.accumulate}: a sample for each worker and part"
        )
    if optimiser.warmup_epochs >= training.epochs:
        raise ValueError(
            f"optimiser.warmup_epochs {optimiser.warmup_epochs} must be fewer than training.epochs {training.epochs}; "
            "0 is no warm-up"
        )
    if sum(optimiser.decoder_first) + optimiser.warmup_epochs >= training.epochs:
        raise ValueError(
            f"optimiser.decoder_first {' + '.join(map(str, optimiser.decoder_first))} and optimiser.warmup_epochs "
            f"{optimiser.warmup_epochs} must together be fewer than training.epochs {training.epochs}"
        )
    if optimiser.freeze > training.epochs:
        raise ValueError(
            f"optimiser.freeze {optimiser.freeze} must be at most training.epochs {training.epochs}, which freezes the "
            "encoder to the end"
        )


@dataclass(frozen=True)
class PretrainConfig(Settings):
    """Settings of the self-supervised pretraining of the encoder."""

    data: Annotated[str | tuple[str, ...], tyro.conf.arg(metavar="FOLDER [FOLDER ...]")]
    """Folders that `prepare` wrote, one or several of one voxel size, with the same channels and normalisation. All
    are normalised by the fingerprint of the first."""
    runs: str = "runs"
    """Folder of all runs; or its address, as s3://bucket/runs, for machines that share no storage (docs/cluster.md)."""
    name: str = ""
    """Name of the run. Default: derived from the configuration."""
    seed: int = 0
    """Seed of everything that is random."""
    splits: tuple[str, ...] = ("train", "unlabeled")
    """Splits whose cases are trained on; their labels are never read."""
    network: BackboneConfig = field(default_factory=STUNetConfig)
    method: MethodConfig = field(default_factory=AnatoMaskConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    plan: PretrainPlanConfig = field(default_factory=PretrainPlanConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.name)
        if self.data == ():
            raise ValueError("data must name at least one prepared folder")
        self.require_distinct("data")
        if not self.splits:
            raise ValueError("splits must name at least one split, such as train")
        self.require_distinct("splits")
        check_training(self.training, self.optimiser, self.cluster, self.seed)
        for name in ("decoder_first", "freeze", "encoder_lr_factor", "layer_decay"):
            if getattr(self.optimiser, name) != getattr(OptimiserConfig(), name):
                raise ValueError(f"optimiser.{name} is for finetuning alone; leave it out")
        self.method.check_network(self.network)
        self.method.check_crop(self.loader.patch_size)
        self._check_workers()
        self.method.check_epochs(self.training.epochs)
        self.network.check_crop(self.loader.patch_size, self.method.stages(self.network))
        if self.training.accumulate > 1 and not self.method.splits_batches:
            raise ValueError(f"training.accumulate must be 1: {self.method.label()} needs a worker's samples at once")

    def _check_workers(self) -> None:
        """Check that the method's batch divides among any number of workers that may train.

        Raises:
            ValueError: it does not.
        """
        self.method.check_batch(self.training.batch_size, self.cluster.workers)
        for workers in range(self.cluster.min_workers or self.cluster.workers, self.cluster.workers):
            try:
                self.method.check_batch(self.training.batch_size, workers)
            except ValueError as error:
                raise ValueError(
                    f"{error}; with cluster.min_workers {self.cluster.min_workers} as few as {workers} may train"
                ) from None


@dataclass(frozen=True)
class FinetuneConfig(Settings):
    """Settings of the supervised training of the segmentation network."""

    data: str
    """Folder that `prepare` wrote."""
    init: str = SCRATCH
    """Initial weights: scratch, or the folder or address RUN of a run or of weights. Controls: encoder:RUN takes only
    the encoder of a finetuned network, or of a pretrained one whose decoder was trained, too; permuted:RUN takes the
    encoder with the entries of each tensor shuffled."""
    runs: str = "runs"
    """Folder of all runs; or its address, as s3://bucket/runs, for machines that share no storage (docs/cluster.md)."""
    name: str = ""
    """Name of the run. Default: derived from the configuration."""
    seed: int = 0
    """Seed of everything that is random."""
    fold: int | None = None
    """Fold of the prepared data (docs/datasets.md) that is left out of the training, and that `evaluate` scores.
    Default: all cases of train are trained on."""
    train_fraction: float = 1.0
    """Share of the labelled training cases that is used; at least one case."""
    val_split: str = "val"
    """Split whose labelled cases monitor the training and choose the best checkpoint; `fold_K` beside `--fold K` is
    what nnU-Net watches."""
    val_fraction: float = 0.1
    """Share of the training cases held out to choose the best checkpoint, where the split has no val cases."""
    network: BackboneConfig = field(default_factory=STUNetConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    plan: DeviceConfig = field(default_factory=DeviceConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.name)
        if not 0 < self.train_fraction <= 1:
            raise ValueError(f"train_fraction must lie in (0, 1], not {self.train_fraction}")
        self.require_range(0, 1000, "fold")
        check_training(self.training, self.optimiser, self.cluster, self.seed)
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie in (0, 1), not {self.val_fraction}")
        self.network.check_crop(self.loader.patch_size)


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """Settings of scoring a finetuned network on the original grid of each case, see docs/evaluation.md."""

    run: str
    """Folder or address of a finetuning run."""
    data: str = ""
    """Folder that `prepare` wrote. Default: the one that the run was trained on."""
    split: str = ""
    """Split whose cases are scored. Default: the fold that the run left out, else test."""
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint whose weights are scored."""
    out: str = ""
    """Folder for predictions and scores. Default: the run's own."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_local("out")


@dataclass(frozen=True)
class PredictConfig(Settings):
    """Settings of segmenting raw scans by finetuned networks: label maps on the scans' own grids."""

    run: tuple[str, ...]
    """Folders or addresses of finetuning runs, or of weights. Several (folds, seeds) are averaged."""
    source: str
    """Folder of scans in any layout (NIfTI, DICOM, NPZ), or one NIfTI file; labels in it are not read."""
    out: str
    """Folder for the label maps."""
    dataset: str = "auto"
    """Layout of the source, as in docs/datasets.md; auto detects it."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint of each run; best is last where no validation chose one."""
    probabilities: bool = False
    """Write the probability of each class, too: <case>.npz beside each label map."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run == ():
            raise ValueError("run must name at least one folder of a finetuning run")
        self.require_distinct("run")


@dataclass(frozen=True)
class ReportConfig(Settings):
    """Settings of tables, figures and a page of any number of evaluated runs."""

    runs: tuple[str, ...]
    """Folders or addresses of evaluated runs."""
    out: str = "report"
    """Folder for the page report.html, the table (Markdown, CSV) and the figures."""
    cases: int = 3
    """Number of cases of each data set shown in its figure and in the page's viewer."""
    tables: tuple[Literal["1", "2", "3", "4", "5", "6"], ...] | None = None
    """Numbers of the paper's tables that are laid out with our scores beside the published ones, and with the commands
    for what is missing. Default: those with scores of these runs."""
    pretrained: tuple[str, ...] = ()
    """Folders of runs of `pretrain`, by AnatoMask or another masked method, whose patch losses and masks are drawn on
    cases of their data: Fig. 1 and 3 of the paper. Computed here, on the CPU."""
    sweeps: tuple[str, ...] = ()
    """Folders of sweeps, whose figures (importance of fields, parallel coordinates, slices) the page shows."""
    viewer_mb: float = 10.0
    """Size in MB of the scans in report.html, all together. 0: none, so that the page holds no patient's scan but the
    slices of the figures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_local("out")
        if self.runs == ():
            raise ValueError("runs must name at least one folder of an evaluated run")
        self.require_distinct("runs", "tables", "pretrained", "sweeps")
        self.require_range(1, 100, "cases")
        self.require_range(0, 1000, "viewer_mb")


@dataclass(frozen=True)
class ExportWeightsConfig(Settings):
    """Settings of writing the weights of a run to a file that other programs load."""

    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """Folder or address of a run, or of weights."""
    format: ExportFormat
    """Format of the file. nnunet: for nnU-Net's STU-Net trainers; stunet: as STU-Net's released weights; nnssl: a
    pretrained ResEnc-L, for nnU-Net's nnUNetv2_train_pretrained; monai: a plain state dict; safetensors: AnatoMask's
    own, with its description; huggingface: a folder of it with a model card; monai-bundle: a folder that MONAI runs."""
    output: str = ""
    """File to write, or a folder for it. Default: the folder `exported` of the run, unless that is an address."""
    license: str = UNKNOWN
    """Licence of the weights that a folder states, as the Hugging Face hub calls it: cc-by-4.0, apache-2.0."""
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint of a run; best is last where no validation chose one."""
    in_channels: int | None = None
    """Number of image channels over which the stem's weights are repeated, unscaled. Default: no change."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_local("output")
        self.require_range(1, 1000, "in_channels")
        if isinstance(self.run, str) and is_address(self.run) and not self.output:
            raise ValueError("output must name a file or a folder on this machine, since run is an address")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ValueError(f"license must be a name as cc-by-4.0 or other, not {self.license!r}")
        if self.license != UNKNOWN and self.format not in FOLDERS:
            raise ValueError(f"license is written by {' and '.join(FOLDERS)} alone, not by {self.format}: leave it out")
        if self.in_channels is not None and self.format == "monai-bundle":
            raise ValueError("in_channels is not for monai-bundle, which normalises the channels of the training")


@dataclass(frozen=True)
class ImportWeightsConfig(Settings):
    """Settings of turning weights that others have published into a folder that `finetune --init` reads."""

    file: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FILE")]]
    """Weights that others have published, in a form of docs/weights.md, or a file of export-weights."""
    output: str
    """Folder to write."""
    allow_missing: tuple[str, ...] = ()
    """Tensors that need not match: names, name prefixes up to a dot (dense_decoder), or patterns."""
    method: str = ""
    """Name of the pretraining of these weights in tables; a whole network is named after its data set. Default: MAE for
    nnssl's files with a decoder, Swin UNETR SSL for a Swin transformer, SelfMedMAE for a UNETR, else AnatoMask."""
    dataset: str = "unknown data"
    """Name in tables of the data set that these weights were trained on."""
    patch_merging: PatchMerging | None = None
    """Patch merging with which a Swin UNETR was trained: repeated in MONAI before 1.5, else all. Default: repeated
    where the file's tensors have names of that time, else all."""
    attention_heads: tuple[int, ...] | None = None
    """Number of attention heads of a UNETR's transformer, or of each of the four stages of a MiT's encoder. Default: as
    in the published sizes, one per 64 channels of a UNETR."""
    decoder_heads: tuple[int, int, int] | None = None
    """Number of attention heads of each stage of a MiT's decoder, the coarsest first. Default: as published."""
    axes: Axes | None = None
    """Order of the axes of the arrays that a convolutional network was trained on. Kernels are turned to xyz, in which
    scans lie here. Default: what a file of export-weights says, else zyx for files of nnU-Net's programs (STU-Net,
    AnatoMask, ResEnc) and xyz for others. A ResEnc that export-weights wrote for MONAI says nothing: it needs xyz."""
    patch_size: tuple[int, int, int] | None = None
    """Crop in voxels for which the positions of a UNETR are interpolated. Default: the one that it was trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_local("output")
        self.require_range(1, 1000, "attention_heads", "decoder_heads")
        self.require_range(1, 4096, "patch_size")


@dataclass(frozen=True)
class RecipesConfig(Settings):
    """Settings of showing the recipes: complete configurations for `--recipe`."""

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="[RECIPE]")]] = ""
    """Recipe to describe. Default: a table of all."""
    markdown: bool = False
    """Print the tables as docs/recipes.md has them."""


NAMED_INPUTS = {
    "prepare": ("source",),
    "survey": ("source",),
    "pretrain": ("data",),
    "finetune": ("data",),
    "predict": ("run", "source"),
    "evaluate": ("run", "data"),
    "report": ("runs", "pretrained", "sweeps"),
    "export-weights": ("run",),
    "import-weights": ("file",),
    "sweep": ("pretrain_data", "finetune_data"),
}
"""Fields of each verb that name what must exist already."""
