"""Preparation of raw scans: the program for `ray submit cluster.yaml`; the same as `anatomask prepare`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["prepare", *sys.argv[1:]])
