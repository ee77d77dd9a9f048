"""Export of weights: the program for `ray submit cluster.yaml`; the same as `anatomask export-weights`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["export-weights", *sys.argv[1:]])
