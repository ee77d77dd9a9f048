"""Evaluation: the program for `ray submit cluster.yaml`; the same as `anatomask evaluate`."""

import sys

from anatomask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
