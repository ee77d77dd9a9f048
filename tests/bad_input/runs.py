"""Bad folders of runs: what they hold, and who uses them."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TextIO

from tests.bad_input.kinds import FINETUNE, SAME_FINETUNING, SAME_PRETRAINING, SWEEP, Kind
from tests.bad_input.spoiling import DEEP, every, of_json, pipe, text, weights

FINETUNED = "runs/finetuned"
INDEX = f"{FINETUNED}/checkpoints/index.json"
PRETRAINED_TENSORS = "runs/pretrained/checkpoints/step_00000004/model.safetensors"
CONTENTS: dict[str, str | bytes] = {
    "empty": "",
    "damaged": "{",
    "a number": "5",
    "a list": "[1]",
    "no text": b"\xff\xfe{",
    "deep": DEEP,
}
BUSY: list[TextIO] = []
"""Lock files that this process holds, as another process that trains would."""


def in_use(folder: Path) -> None:
    """Hold the lock of the finetuning."""
    file = (folder / "runs" / ".finetuned.lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    BUSY.append(file)


KINDS = [
    Kind("a run of another seed", f"{SAME_PRETRAINING} --seed 1", "seed is 0 there, 1 here.*choose another --name"),
    Kind(
        "a run of other data",
        SAME_PRETRAINING,
        "data changed since .*another --name, or --overwrite",
        of_json("data/splits.json", lambda c: c | {"more": []}),
    ),
    Kind(
        "a run from other weights",
        SAME_FINETUNING,
        "--init runs/pretrained changed since.*another --name",
        weights(PRETRAINED_TENSORS, lambda t, h: h.update(note="other")),
    ),
    Kind(
        "a run that another process trains", SAME_FINETUNING, "is in use by another process; wait for its end", in_use
    ),
    Kind(
        "a folder that is no run, to overwrite",
        f"{FINETUNE} precious --overwrite",
        "precious.* is not a run's folder.*choose another --name",
        text("runs/precious/thesis.txt", "x"),
    ),
    Kind(
        "a folder with a foreign config.yaml, to overwrite",
        f"{FINETUNE} precious --overwrite",
        "precious.*choose another --name",
        text("runs/precious/config.yaml", "a: 1"),
    ),
    *(
        Kind(f"a run whose {name} is {what}", SAME_FINETUNING, name, text(f"{FINETUNED}/{name}", content))
        for name in ("config.yaml", "inputs.json", "environment.json")
        for what, content in CONTENTS.items()
    ),
    *(
        Kind(
            f"a run whose {name} is a pipe",
            SAME_FINETUNING,
            f"{name} is a named pipe; put a file there",
            pipe(f"{FINETUNED}/{name}"),
        )
        for name in ("config.yaml", "inputs.json", "environment.json", "checkpoints/index.json")
    ),
    Kind("a run whose index is damaged", SAME_FINETUNING, "index.json is damaged.*--overwrite", text(INDEX, "{")),
    Kind("a run whose index is a number", SAME_FINETUNING, "index.json", text(INDEX, "5")),
    Kind("a run that is a file", f"{FINETUNE} new", "runs/new.*choose another", text("runs/new", "x")),
    Kind(
        "a sweep whose study is damaged",
        SWEEP,
        "study.db",
        every(text("runs/new/anatomask-run.txt", ""), text("runs/new/study.db", "x" * 5000)),
    ),
]
