"""Finetuning: the program for `ray submit cluster.yaml`; the same as `anatomask finetune`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["finetune", *sys.argv[1:]])
