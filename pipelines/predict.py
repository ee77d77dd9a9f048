"""Prediction: the program for `ray submit cluster.yaml`; the same as `anatomask predict`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["predict", *sys.argv[1:]])
