"""Files and folders of another user, which may be read but not written, or neither."""

from __future__ import annotations

from pathlib import Path

from tests.bad_input.kinds import (
    EVALUATE,
    FRESH,
    GO_ON,
    NEW_FINETUNING,
    NEW_PRETRAINING,
    REPORT,
    SAME_FINETUNING,
    SWEEP,
    TRANSFER,
    Kind,
    Spoil,
)
from tests.bad_input.spoiling import directory, every, text

DENIED = "permission denied; choose a (folder|file|path) that you may use"
RUN, TENSORS = "runs/finetuned", "runs/pretrained/checkpoints/step_00000004/model.safetensors"


def mode(path: str, bits: int) -> Spoil:
    """Set the permissions of a file, or of a folder and all the folders in it."""

    def spoil(folder: Path) -> None:
        below = [one for one in (folder / path).rglob("*") if one.is_dir()]
        for one in [*below, folder / path]:
            one.chmod(bits)

    return spoil


def denied(name: str, command: str, says: str, spoil: Spoil, skips: bool = False) -> Kind:
    """Return the kind of what permissions do not let this user do."""
    return Kind(name, command, says, spoil, skips=skips, as_user=True)


KINDS = [
    denied("a run of another user, to go on with", SAME_FINETUNING, f"{RUN}.*{DENIED}", mode(RUN, 0o555)),
    denied(
        "a run of another user, to begin anew", f"{SAME_FINETUNING} --overwrite", f"{RUN}.*{DENIED}", mode(RUN, 0o555)
    ),
    denied("a run of another user, to evaluate", f"{EVALUATE} --overwrite", f"{RUN}.*{DENIED}", mode(RUN, 0o555)),
    denied(
        "a run of another user, to export into",
        "export-weights runs/finetuned --format nnunet",
        DENIED,
        mode(RUN, 0o555),
    ),
    denied("runs of another user", NEW_PRETRAINING, f"runs.*{DENIED}", mode("runs", 0o555)),
    denied("runs of another user for a sweep", SWEEP, f"runs.*{DENIED}", mode("runs", 0o555)),
    denied("a report of another user", REPORT, f"report.*{DENIED}", every(directory("report"), mode("report", 0o555))),
    denied("shards of another user, to go on with", GO_ON, f"data.*{DENIED}", mode("data", 0o555)),
    denied("shards of another user, to begin anew", f"{GO_ON} --overwrite", f"data.*{DENIED}", mode("data", 0o555)),
    denied("shards that may not be read", NEW_PRETRAINING, f"data.*{DENIED}", mode("data", 0)),
    denied(
        "an index of shards that may not be read",
        NEW_PRETRAINING,
        f"cases.jsonl.*{DENIED}",
        mode("data/cases.jsonl", 0),
    ),
    denied("a source that may not be read", FRESH, f"scans.*{DENIED}", mode("scans", 0)),
    denied(
        "scans that may not be listed",
        FRESH,
        "imagesTr/anna_0000.nii.gz cannot be read",
        mode("scans/imagesTr", 0),
        skips=True,
    ),
    denied("a description that may not be read", FRESH, f"dataset.json.*{DENIED}", mode("scans/dataset.json", 0)),
    denied(
        "a scan that may not be read",
        FRESH,
        "imagesTr/anna_0000.nii.gz",
        mode("scans/imagesTr/anna_0000.nii.gz", 0),
        skips=True,
    ),
    denied("weights that may not be read", TRANSFER, f"model.safetensors.*{DENIED}", mode(TENSORS, 0)),
    denied(
        "a run that may not be read",
        f"{NEW_FINETUNING} --init runs/pretrained",
        "runs/pretrained",
        mode("runs/pretrained", 0),
    ),
    denied(
        "a configuration that may not be read",
        f"{NEW_PRETRAINING} --config c.yaml",
        "c.yaml",
        every(text("c.yaml", "seed: 1"), mode("c.yaml", 0)),
    ),
    denied("a summary that may not be read", REPORT, f"summary.json.*{DENIED}", mode("runs/finetuned/summary.json", 0)),
]
READABLE = {
    "report": (REPORT, mode(RUN, 0o555)),
    "transfer": (TRANSFER, mode("runs/pretrained", 0o555)),
    "export": ("export-weights runs/finetuned --format nnunet --output w.pth", mode(RUN, 0o555)),
    "pretrain": (NEW_PRETRAINING, mode("data", 0o555)),
    "evaluate on": (EVALUATE, mode("data", 0o555)),
    "prepare": (FRESH, mode("scans", 0o555)),
}
"""Commands that only read what another user wrote."""
