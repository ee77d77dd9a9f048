"""Bad settings: on the command line, in a YAML file, and names of runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.bad_input.kinds import (
    EVALUATE,
    EXPORT,
    FRESH,
    NEW_FINETUNING,
    NEW_PRETRAINING,
    PREPARE,
    PRETRAIN,
    REPORT,
    SMALL,
    SURVEY,
    SWEEP,
    Kind,
    Spoil,
)

PHANTOM = "phantom --cases 1 --out new"
CONFIGURED = f"{NEW_PRETRAINING} --config c.yaml"
MOCO = f"pretrain {SMALL} --data data --name new --method moco"
LONG = "x" * 300


def yaml(text: str) -> Spoil:
    """Write `text` to the configuration file."""
    return raw(text.encode())


def raw(content: bytes) -> Spoil:
    """Write bytes to the configuration file."""
    return lambda folder: (folder / "c.yaml").write_bytes(content)


def aliases(folder: Path) -> None:
    """Write a YAML file of 400 bytes that stands for 10**8 items."""
    lists = ["&a0 [x, x, x, x, x, x, x, x, x, x]"]
    lists += [f"&a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 8)]
    (folder / "c.yaml").write_text(f"splits: [{', '.join(lists)}]")


def new_run(name: str) -> str:
    """Return the command that begins a run of this name."""
    return f"{PRETRAIN} {name}"


def in_file(make: Callable[[Path], object]) -> Spoil:
    """Make `c.yaml` something that is no file."""
    return lambda folder: make(folder / "c.yaml")


KINDS = [
    # Verbs and flags
    Kind("a flag that does not exist", f"{NEW_PRETRAINING} --method.mask-rato 0.8", "mask-rato"),
    Kind("a flag without its value", f"{NEW_PRETRAINING} --method.mask-ratio", "mask-ratio"),
    Kind("a list without a value", f"{NEW_PRETRAINING} --splits", "splits"),
    Kind("no data", "pretrain", "--data"),
    Kind("no source", "prepare --out out", "--source"),
    Kind("no folder to survey", "survey", "FOLDER"),
    Kind("no run to evaluate", "evaluate", "--run"),
    Kind("no runs to report", "report", "--runs"),
    Kind("a report of an empty list of runs", "report --runs", "runs"),
    Kind("a recipe that does not exist", "pretrain --data data --recipe huge", r"huge: no such recipe; there are tiny"),
    Kind("a target that does not exist", f"{NEW_FINETUNING} --target kits", "kits: no such target; there are totalseg"),
    Kind("a word where a number is wanted", f"{NEW_PRETRAINING} --method.mask-ratio much", "mask-ratio"),
    Kind("a fraction where a whole number is wanted", f"{NEW_PRETRAINING} --seed 1.5", "seed"),
    Kind("two numbers where three are wanted", f"{FRESH} --preprocess.spacing 2 2", "spacing"),
    Kind("a choice that does not exist", f"{NEW_PRETRAINING} --training.precision fp8", "precision"),
    # Values out of range
    Kind("a mask ratio above 1", f"{NEW_PRETRAINING} --method.mask-ratio 1.8", "mask_ratio must lie between 0 and 1"),
    Kind("a mask ratio of NaN", f"{NEW_PRETRAINING} --method.mask-ratio nan", "mask_ratio must be a finite"),
    Kind("a negative share of hard patches", f"{NEW_PRETRAINING} --method.r0 -0.1", r"r0 must lie in \[0, 1\]"),
    Kind("a decay of 1", f"{NEW_PRETRAINING} --method.ema-decay 1", r"ema_decay must lie in \[0, 1\)"),
    Kind("a queue that batches do not fill evenly", f"{MOCO} --method.queue 7", "method.queue 7 must be a multiple"),
    Kind("a decoder of 10 channels", f"{NEW_PRETRAINING} --method.decoder-width 10", "decoder_width must"),
    Kind("crops of 10 voxels", f"{NEW_PRETRAINING} --loader.patch-size 10 16 16", "three multiples of 16 from 32"),
    Kind("crops of 16 voxels", f"{NEW_PRETRAINING} --loader.patch-size 16 16 16", "three multiples of 16 from 32"),
    Kind("a foreground share of 2", f"{NEW_FINETUNING} --loader.foreground 2", "foreground must lie in"),
    Kind("an axis that does not exist", f"{NEW_FINETUNING} --loader.mirror-axes 5", "mirror_axes must be among"),
    Kind("nothing read ahead", f"{NEW_PRETRAINING} --loader.read-ahead 0", "read_ahead must be at least 1"),
    Kind("no epochs", f"{NEW_PRETRAINING} --training.epochs 0", "epochs must be at least 1"),
    Kind("no updates per epoch", f"{NEW_PRETRAINING} --training.steps-per-epoch 0", "steps_per_epoch must be at least"),
    Kind("an empty batch", f"{NEW_PRETRAINING} --training.batch-size 0", "batch_size must be at least 1"),
    Kind("checkpoints every 0 updates", f"{NEW_PRETRAINING} --training.checkpoint-every 0", "checkpoint_every must be"),
    Kind(
        "parts that are more than the batch", f"{NEW_PRETRAINING} --training.accumulate 8", r"batch_size 2 must be at"
    ),
    Kind("more workers than samples", f"{NEW_PRETRAINING} --cluster.workers 3", r"batch_size 2 must be at least"),
    Kind("a batch of 10**9", f"{NEW_PRETRAINING} --training.batch-size 1000000000", "batch_size"),
    Kind("a learning rate of 0", f"{NEW_PRETRAINING} --optimiser.lr 0", "lr must be"),
    Kind("a learning rate of NaN", f"{NEW_PRETRAINING} --optimiser.lr nan", "lr must be"),
    Kind("an infinite learning rate", f"{NEW_PRETRAINING} --optimiser.lr inf", "lr must be"),
    Kind("an eps of 0", f"{NEW_PRETRAINING} --optimiser.eps 0", "eps must be"),
    Kind("a negative weight decay", f"{NEW_PRETRAINING} --optimiser.weight-decay -1", "weight_decay must not be neg"),
    Kind("a beta of 1", f"{NEW_PRETRAINING} --optimiser.betas 0.9 1", "betas must lie in"),
    Kind("a clip of 0", f"{NEW_PRETRAINING} --optimiser.clip 0", "clip must be positive"),
    Kind("more warm-up than training", f"{NEW_PRETRAINING} --optimiser.warmup-epochs 2", "warmup_epochs 2 must be few"),
    Kind("a negative seed", f"{NEW_PRETRAINING} --seed -1", "seed must"),
    Kind("no channels", f"{NEW_PRETRAINING} --network.in-channels 0", "in_channels must be at least 1"),
    Kind("no depth", f"{NEW_PRETRAINING} --network.depth 0", "depth must be at least 1"),
    Kind("a network of no width", f"{NEW_PRETRAINING} --network.base 0", "base must be at least 1"),
    Kind("a stage of no width", f"{NEW_PRETRAINING} --network.widths 4 8 0 8 8 8", "widths must be"),
    Kind("sharded weights in fp16", f"{NEW_PRETRAINING} --training.shard-weights --training.precision fp16", "fp16"),
    Kind(
        "bf16 of small crops on a CPU",
        f"{NEW_PRETRAINING} --training.precision bf16 --method.patch 16",
        "bf16.*--loader.patch-size 48",
    ),
    Kind("a negative fold to leave out", f"{NEW_FINETUNING} --fold -1", "fold must be at least 0"),
    Kind("no share of the cases", f"{NEW_FINETUNING} --train-fraction 0", r"train_fraction must lie in \(0, 1\]"),
    Kind("a NaN share of the cases", f"{NEW_FINETUNING} --train-fraction nan", "train_fraction must"),
    Kind("all cases held out", f"{NEW_FINETUNING} --val-fraction 1", r"val_fraction must lie in \(0, 1\)"),
    Kind("windows that overlap wholly", f"{EVALUATE} --inference.overlap 1", r"overlap must lie in \[0, 1\)"),
    Kind("no windows at once", f"{EVALUATE} --inference.batch 0", "batch must be at least 1"),
    Kind("no workers", f"{NEW_PRETRAINING} --cluster.workers 0", "workers must be at least 1"),
    Kind("no readers", f"{NEW_PRETRAINING} --cluster.readers 0", "readers must be at least 1"),
    Kind("no threads", f"{NEW_PRETRAINING} --cluster.threads 0", "threads must be at least 1"),
    Kind("a million threads", f"{NEW_PRETRAINING} --cluster.threads 1000000", "threads"),
    Kind("negative failures", f"{NEW_PRETRAINING} --cluster.max-failures -1", "max_failures"),
    Kind("more workers at least than at most", f"{NEW_PRETRAINING} --cluster.min-workers 2", "min_workers must lie"),
    Kind("shares that add up to 2", f"{FRESH} --split.fractions 0.5 0.5 1", "fractions must be three shares"),
    Kind("a share of NaN", f"{FRESH} --split.fractions 0.5 0.9 nan", "fractions must be"),
    Kind("a single fold", f"{FRESH} --split.folds 1", "folds must be at least 2"),
    Kind("val beside folds", f"{FRESH} --split.folds 2 --split.fractions 0.7 0.1 0.2", "no val.*set 0.8 0 0.2"),
    Kind("a negative fold", f"{FRESH} --split.fold -1", "fold must be at least 0"),
    Kind("a spacing of 0", f"{FRESH} --preprocess.spacing 0 2 2", "spacing must be"),
    Kind("a spacing of NaN", f"{FRESH} --preprocess.spacing nan 2 2", "spacing must be"),
    Kind("an infinite spacing", f"{FRESH} --preprocess.spacing inf 2 2", "spacing must be"),
    Kind("bricks of 4 voxels", f"{FRESH} --preprocess.brick 4", "brick must be at least 8"),
    Kind("bricks of 10**9 voxels", f"{FRESH} --preprocess.brick 1000000000", "brick"),
    Kind("a codec that does not exist", f"{FRESH} --preprocess.codec rar", "codec"),
    Kind("a class named twice", f"{FRESH} --preprocess.classes liver liver", "classes names liver twice"),
    Kind("no tiles", f"{SURVEY} --tiles 0", "tiles must be at least 1"),
    Kind("no cases in a figure", f"{REPORT} --cases 0", "cases must be at least 1"),
    Kind("no channels in an export", f"{EXPORT} --in-channels 0", "in_channels must be at least 1"),
    Kind("an export in no known format", "export-weights runs/finetuned --format onnx", "--format"),
    Kind("no phantoms", f"{PHANTOM} --cases 0", "cases must be at least 1"),
    Kind("phantoms of 8 voxels", f"{PHANTOM} --size 8", "size must be at least 32"),
    Kind("phantoms of spacing 0", f"{PHANTOM} --spacing 0", "spacing must be"),
    Kind("phantoms of spacing NaN", f"{PHANTOM} --spacing nan", "spacing must be"),
    Kind("phantoms of a negative seed", f"{PHANTOM} --seed -1", "seed must"),
    Kind("phantoms nowhere", "phantom --cases 1 --out ''", "out"),
    Kind("no trials", f"{SWEEP} --trials 0", "trials must be at least 1"),
    Kind("no trials at once", f"{SWEEP} --concurrent 0", "concurrent must be at least 1"),
    Kind("a space that does not exist", f"{SWEEP} --space table9", "table9: no such space; there are"),
    Kind("a field that the sweep sets", f"{SWEEP} --pretrain.data x", "pretrain.data is set by the sweep"),
    Kind("a split that is no choice", f"{SWEEP} --split all", "--split"),
    Kind("more trials than CPUs", f"{SWEEP} --concurrent 1000", "concurrent must be at most|lower --concurrent"),
    # Cases, splits, data sets
    Kind("a split that does not exist", f"{NEW_PRETRAINING} --splits nothing", "no split nothing; there are train"),
    Kind("a split named twice", f"{NEW_PRETRAINING} --splits train train", "splits.*train"),
    Kind("a network of other channels", f"{NEW_PRETRAINING} --network.in-channels 2", "set --network.in-channels 1"),
    Kind("raw scans for prepared ones", f"pretrain {SMALL} --data scans", "scans is no prepared folder: name one that"),
    Kind(
        "a folder that is not there",
        f"pretrain {SMALL} --data nowhere",
        "nowhere: there is no such file or folder.*check the path",
    ),
    Kind("a bare scheme", f"pretrain {SMALL} --data s3://", "s3://"),
    Kind("a scheme that is unknown", f"pretrain {SMALL} --data gopher://x/y", "gopher://x/y cannot be opened"),
    Kind("an address that is none", f"{NEW_PRETRAINING} --cluster.address '!!!'", "address must be local, auto"),
    # The YAML file
    Kind("a configuration that is missing", CONFIGURED, "--config c.yaml"),
    Kind("a configuration that is a folder", CONFIGURED, "--config c.yaml", in_file(Path.mkdir)),
    Kind("a configuration that is a pipe", CONFIGURED, "--config c.yaml", in_file(os.mkfifo)),
    Kind("a configuration that is no text", CONFIGURED, "c.yaml must hold a mapping", raw(b"\xff\xfe\x00\x01")),
    Kind("a configuration of broken YAML", CONFIGURED, "c.yaml is not YAML", yaml("a: [")),
    Kind("a configuration that is a list", CONFIGURED, "c.yaml must hold a mapping", yaml("- 1")),
    Kind("a configuration that is empty", CONFIGURED, "c.yaml must hold a mapping", yaml("")),
    Kind("a section that does not exist", CONFIGURED, "metod: no such field; there are", yaml("metod: {}")),
    Kind("a field that does not exist", CONFIGURED, "method.mask_rato: no such", yaml("method: {mask_rato: 0.5}")),
    Kind("a field of another type", CONFIGURED, "method.mask_ratio: ", yaml("method: {mask_ratio: half}")),
    Kind("a value out of range", CONFIGURED, "method.mask_ratio must lie", yaml("method: {mask_ratio: 1.5}")),
    Kind("a number where a section is wanted", CONFIGURED, "loader must be a mapping", yaml("loader: 3")),
    Kind("a yes where a number is wanted", CONFIGURED, "seed", yaml("seed: true")),
    Kind("a key that is a number", CONFIGURED, "3: no such field", yaml("3: 4")),
    *(
        Kind(f"a configuration with {value}", CONFIGURED, "of the type that its tag", yaml(f"seed: {value}"))
        for value in ("!!bool maybe", "!!int ''", "!!float ''", "!!timestamp x")
    ),
    Kind("a key given twice", CONFIGURED, "seed", yaml("seed: 1\nseed: 2")),
    Kind("a tag that would run code", CONFIGURED, "is not YAML", yaml("a: !!python/object/apply:os.getcwd []")),
    Kind("a list of many levels", CONFIGURED, "c.yaml", yaml("seed: " + "[" * 5000 + "]" * 5000)),
    Kind("aliases of 10**8 items", CONFIGURED, "c.yaml", aliases),
    # Names and folders of runs
    Kind("a run named ..", new_run(".."), "name"),
    Kind("a run named .", new_run("."), "name"),
    Kind("a run named by a space", new_run("' '"), "name"),
    Kind("a run outside its folder", new_run("../../x"), "name"),
    Kind("a run named by a whole path", new_run("/tmp/x"), "name"),
    Kind("a run named by two lines", new_run("'a\nb'"), "name"),
    Kind("a run with a long name", new_run(LONG), "name"),
    Kind("runs in a folder with a long name", f"{NEW_PRETRAINING} --runs {LONG}", "x{20}"),
    Kind("shards in a folder with a long name", f"{PREPARE} {LONG}", "x{20}"),
    Kind("shards where nothing can be written", f"{PREPARE} /proc/x", "/proc/x"),
    Kind("runs where nothing can be written", f"{NEW_PRETRAINING} --runs /proc/x", "/proc/x"),
    Kind("a survey where nothing can be written", "survey scans --output /proc/x", "/proc/x"),
    Kind("a report where nothing can be written", "report --runs runs/finetuned --out /proc/x", "/proc"),
    Kind("phantoms where nothing can be written", "phantom --cases 1 --out /proc/x", "/proc/x"),
    Kind("an export where nothing can be written", f"{EXPORT} --output /proc/x/w.pth", "/proc/x"),
    Kind("shards in place of a file", f"{PREPARE} c.yaml", "c.yaml cannot be made a folder.*choose another", yaml("")),
    Kind("runs in place of a file", f"{NEW_PRETRAINING} --runs c.yaml", "c.yaml.*choose another folder", yaml("")),
    Kind("a survey in place of a file", "survey scans --output c.yaml", "c.yaml.*choose another folder", yaml("")),
    Kind(
        "a report in place of a file", "report --runs runs/finetuned --out c.yaml", "c.yaml.*choose another", yaml("")
    ),
]
