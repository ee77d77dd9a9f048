"""Phantom scans: the program for `ray submit cluster.yaml`; the same as `anatomask phantom`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["phantom", *sys.argv[1:]])
