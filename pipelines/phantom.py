"""Phantom scans: the program for `ray submit cluster.yaml`; the same as `anatomask phantom`."""

import sys

from anatomask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["phantom", *sys.argv[1:]]))
