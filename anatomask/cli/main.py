"""The `anatomask` command: `anatomask <verb> …` is `python pipelines/<verb>.py …`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, cast

from anatomask import __version__
from anatomask.terminal.printing import never_fail_to_print, quiet_matplotlib

STOPPED = 128
"""Exit code to which a signal's number is added where one has ended the program: 130 after Ctrl-C."""

VERBS = {
    "recipes": "show the recipes: complete configurations, and what they cost",
    "phantom": "write CT-like volumes for anyone who has no data",
    "survey": "show what is in a folder of raw scans, and which are suspicious",
    "prepare": "turn raw scans into Parquet shards",
    "pretrain": "pretrain the encoder by AnatoMask",
    "finetune": "train the segmentation network",
    "predict": "segment raw scans by finetuned networks",
    "evaluate": "score a finetuned run: DSC and NSD",
    "report": "put evaluated runs into one table and figure",
    "sweep": "run many chains of pretraining and finetuning with Ray Tune",
    "reproduce": "make the paper's tables on your data: every row, trained and scored",
    "export-weights": "write a run's weights for nnU-Net, STU-Net's code or MONAI",
    "import-weights": "read published weights, to finetune from them",
}


def usage() -> str:
    """Format the usage of the command, for `--help` and for an unknown verb."""
    verbs = "\n".join(f"  {verb:<14} {what}" for verb, what in VERBS.items())
    usage_line = "usage: anatomask <verb> [--recipe NAME] [--config FILE] [--dry-run] [--field VALUE …]"
    return f"{usage_line}\n\nverbs:\n{verbs}\n\n`anatomask <verb> --help` lists the fields of a verb."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the first argument names, and return its exit code (2 for an unknown verb)."""
    never_fail_to_print()
    quiet_matplotlib()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"anatomask {__version__}")
        return 0
    if arguments[0] not in VERBS:
        print(f"anatomask: {arguments[0]} is not a verb\n\n{usage()}", file=sys.stderr)
        return 2
    from anatomask.cli.program import Stage, run  # the settings take a second to import

    def load() -> Stage:
        return cast(Stage, importlib.import_module(f"anatomask.stages.{arguments[0].replace('-', '_')}"))

    return run(arguments[0], load, arguments[1:])


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `main` as a program: end the process with its exit code.

    After a signal the process ends at once. Ray may have been interrupted anywhere, and its threads can crash an
    interpreter (SIGSEGV) that takes itself down beside them.
    """
    code = main(argv)
    if code > STOPPED:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
