"""Self-supervised pretraining: the program for `ray submit cluster.yaml`; the same as `anatomask pretrain`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["pretrain", *sys.argv[1:]])
