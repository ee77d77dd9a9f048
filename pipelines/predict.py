"""Prediction: the program for `ray submit cluster.yaml`; the same as `anatomask predict`."""

import sys

from anatomask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["predict", *sys.argv[1:]]))
