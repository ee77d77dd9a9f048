"""Recipes by name, with what each costs and reached."""

from __future__ import annotations

from collections.abc import Mapping

from anatomask.recipes.parts import HEAD_AND_NECK, PAPER, PHANTOMS, SMALL, TINY, TRUNK
from anatomask.recipes.recipe import Cost, Recipe

RECIPES: Mapping[str, Recipe] = {
    "tiny": Recipe(
        "minutes on two CPU cores: organs of phantoms, for demos",
        network="stunet-small",
        method="anatomask",
        scale=TINY,
        target=PHANTOMS,
        costs={"pretrain": Cost(0.0150, 0.0911), "finetune": Cost(0.0198, 0.156)},
        reached="not recorded: `make demo` prints it",
    ),
    "small": Recipe(
        "half an hour per training on two CPU cores, scans of 4 mm",
        network="stunet-small",
        method="anatomask",
        scale=SMALL,
        target=HEAD_AND_NECK,
        costs={
            "pretrain": Cost(
                0.0352,
                0.176,
                "0.51 s with two cores of an Intel Xeon, with hidden patches of 16 voxels "
                "(benchmarks/results/training-cpu.txt)",
            ),
            "finetune": Cost(
                0.0470,
                0.315,
                "2.5 s with one core of an Intel Xeon that other work shared, validations included "
                "(docs/results/first-run.md)",
            ),
        },
        reached=(
            "OpenKBP, 16 cases, one seed: DSC 68.5 ± 4.0 from scratch, 66.5 ± 3.7 from a pretraining with hidden "
            "patches of 16 voxels (docs/results/first-run.md)"
        ),
    ),
    "paper-b": Recipe(
        "as published: STU-Net-B, 1000 epochs of batch 4",
        network="stunet-b",
        method="anatomask",
        scale=PAPER,
        target=TRUNK,
        costs={"pretrain": Cost(21.9, 13.8), "finetune": Cost(4.64, 10.2)},
    ),
    "paper-l": Recipe(
        "paper-b with STU-Net-L",
        network="stunet-l",
        method="anatomask",
        scale=PAPER,
        target=TRUNK,
        costs={
            "pretrain": Cost(
                96.2,
                33.6,
                "0.34 s and 22.0 GiB in bf16, compiled 0.23 s and 20.8 GiB, on an NVIDIA H200, loading left out "
                "(benchmarks/results/pretrain-step-h200-l.txt)",
            ),
            "finetune": Cost(35.1, 22.3),
        },
    ),
    "paper-h": Recipe(
        "paper-b with STU-Net-H: lr 2e-5, weight decay 3e-5",
        network="stunet-h",
        method="anatomask",
        scale=PAPER,
        target=TRUNK,
        costs={"pretrain": Cost(236, 61.0), "finetune": Cost(117, 46.8)},
    ),
    "spark": Recipe(
        "paper-b with SparK: random masks, no teacher, lr 2e-4",
        network="stunet-b",
        method="spark",
        scale=PAPER,
        target=TRUNK,
        costs={"pretrain": Cost(16.4, 13.6), "finetune": Cost(4.64, 10.2)},
    ),
    "spark-small": Recipe(
        "small with SparK",
        network="stunet-small",
        method="spark",
        scale=SMALL,
        target=HEAD_AND_NECK,
        costs={"pretrain": Cost(0.0266, 0.173), "finetune": Cost(0.0470, 0.315)},
    ),
    "byol": Recipe(
        "paper-b with BYOL",
        network="stunet-b",
        method="byol",
        scale=PAPER,
        target=TRUNK,
        costs={"pretrain": Cost(6.96, 16.2), "finetune": Cost(4.64, 10.2)},
    ),
    "byol-small": Recipe(
        "small with BYOL: 40 epochs of batch 8, small heads",
        network="stunet-small",
        method="byol",
        scale=SMALL,
        target=HEAD_AND_NECK,
        costs={"pretrain": Cost(0.146, 1.34), "finetune": Cost(0.0470, 0.315)},
    ),
    "moco": Recipe(
        "paper-b with MoCo v2",
        network="stunet-b",
        method="moco",
        scale=PAPER,
        target=TRUNK,
        costs={"pretrain": Cost(3.48, 8.19), "finetune": Cost(4.64, 10.2)},
    ),
    "moco-small": Recipe(
        "small with MoCo v2: 40 epochs of batch 8, a small head",
        network="stunet-small",
        method="moco",
        scale=SMALL,
        target=HEAD_AND_NECK,
        costs={"pretrain": Cost(0.0731, 0.676), "finetune": Cost(0.0470, 0.315)},
    ),
    "resenc-l": Recipe(
        "paper-b with nnU-Net's ResEnc-L",
        network="resenc-l",
        method="anatomask",
        scale=PAPER,
        target=TRUNK,
        costs={"pretrain": Cost(17.1, 14.9), "finetune": Cost(8.71, 14.4)},
    ),
    "resenc-small": Recipe(
        "small with a ResEnc of a quarter of the width",
        network="resenc-small",
        method="anatomask",
        scale=SMALL,
        target=HEAD_AND_NECK,
        costs={"pretrain": Cost(0.0388, 0.195), "finetune": Cost(0.0404, 0.290)},
    ),
    "resenc-l-scratch": Recipe(
        "paper-b's finetuning of a ResEnc-L, from scratch alone",
        network="resenc-l",
        method=None,
        scale=PAPER,
        target=TRUNK,
        costs={"finetune": Cost(8.71, 14.4)},
    ),
    "mae": Recipe(
        "ResEnc-L with nnssl's dense MAE: SGD, lr 0.01",
        network="resenc-l",
        method="mae",
        scale=PAPER,
        target=TRUNK,
        costs={"pretrain": Cost(17.2, 21.1), "finetune": Cost(8.71, 14.4)},
    ),
    "mae-small": Recipe(
        "resenc-small with the dense MAE",
        network="resenc-small",
        method="mae",
        scale=SMALL,
        target=HEAD_AND_NECK,
        costs={"pretrain": Cost(0.0402, 0.288), "finetune": Cost(0.0404, 0.290)},
    ),
    "swin-ssl": Recipe(
        "swin-unetr after the pretraining of Tang et al.",
        network="swin_unetr-48",
        method="swinunetr_ssl",
        scale=PAPER,
        target=TRUNK,
        costs={"pretrain": Cost(4.42, 56.7), "finetune": Cost(9.27, 28.0)},
    ),
    "swin-ssl-small": Recipe(
        "small with swin-ssl: 20 epochs of batch 4",
        network="swin_unetr-small",
        method="swinunetr_ssl",
        scale=SMALL,
        target=HEAD_AND_NECK,
        costs={"pretrain": Cost(0.0812, 5.79), "finetune": Cost(0.0838, 1.76)},
    ),
    "swin-unetr": Recipe(
        "paper-b's finetuning of a Swin UNETR, from scratch alone",
        network="swin_unetr-48",
        method=None,
        scale=PAPER,
        target=TRUNK,
        costs={"finetune": Cost(9.27, 28.0)},
    ),
    "swin-unetr-small": Recipe(
        "small's finetuning of a Swin UNETR, from scratch alone",
        network="swin_unetr-small",
        method=None,
        scale=SMALL,
        target=HEAD_AND_NECK,
        costs={"finetune": Cost(0.0838, 1.76)},
    ),
    "selfmedmae": Recipe(
        "unetr after the masked autoencoder of Zhou et al.",
        network="unetr-b",
        method="selfmedmae",
        scale=PAPER,
        target=TRUNK,
        costs={"pretrain": Cost(0.529, 2.45), "finetune": Cost(2.14, 11.9)},
    ),
    "selfmedmae-small": Recipe(
        "small with selfmedmae: 200 epochs of batch 8",
        network="unetr-small",
        method="selfmedmae",
        scale=SMALL,
        target=HEAD_AND_NECK,
        costs={"pretrain": Cost(0.00206, 0.0734), "finetune": Cost(0.0480, 0.342)},
    ),
    "unetr": Recipe(
        "finetuning of a UNETR as by Zhou et al., from scratch alone",
        network="unetr-b",
        method=None,
        scale=PAPER,
        target=TRUNK,
        costs={"finetune": Cost(2.14, 11.9)},
    ),
    "unetr-small": Recipe(
        "the same of a small UNETR, from scratch alone",
        network="unetr-small",
        method=None,
        scale=SMALL,
        target=HEAD_AND_NECK,
        costs={"finetune": Cost(0.0480, 0.342)},
    ),
}
