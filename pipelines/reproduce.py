"""Reproduce: the program for `ray submit cluster.yaml`; the same as `anatomask reproduce`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["reproduce", *sys.argv[1:]])
