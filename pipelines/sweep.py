"""Sweep: the program for `ray submit cluster.yaml`; the same as `anatomask sweep`."""

import sys

from anatomask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["sweep", *sys.argv[1:]]))
