"""Survey of raw scans: the program for `ray submit cluster.yaml`; the same as `anatomask survey`."""

import sys

from anatomask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["survey", *sys.argv[1:]]))
