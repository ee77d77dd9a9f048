"""Preparation of raw scans: the program for `ray submit cluster.yaml`; the same as `anatomask prepare`."""

import sys

from anatomask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["prepare", *sys.argv[1:]]))
