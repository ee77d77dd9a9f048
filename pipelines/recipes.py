"""Table of the recipes: the program for `ray submit cluster.yaml`; the same as `anatomask recipes`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["recipes", *sys.argv[1:]])
