"""Survey of raw scans: the program for `ray submit cluster.yaml`; the same as `anatomask survey`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["survey", *sys.argv[1:]])
