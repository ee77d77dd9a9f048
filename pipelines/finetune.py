"""Finetuning: the program for `ray submit cluster.yaml`; the same as `anatomask finetune`."""

import sys

from anatomask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["finetune", *sys.argv[1:]]))
