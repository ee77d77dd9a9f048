"""Export of weights: the program for `ray submit cluster.yaml`; the same as `anatomask export-weights`."""

import sys

from anatomask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["export-weights", *sys.argv[1:]]))
