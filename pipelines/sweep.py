"""Sweep: the program for `ray submit cluster.yaml`; the same as `anatomask sweep`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["sweep", *sys.argv[1:]])
