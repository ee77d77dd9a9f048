"""Import of weights: the program for `ray submit cluster.yaml`; the same as `anatomask import-weights`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["import-weights", *sys.argv[1:]])
