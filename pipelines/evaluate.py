"""Evaluation: the program for `ray submit cluster.yaml`; the same as `anatomask evaluate`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["evaluate", *sys.argv[1:]])
