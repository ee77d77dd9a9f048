"""Table of the recipes: the program for `ray submit cluster.yaml`; the same as `anatomask recipes`."""

import sys

from anatomask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["recipes", *sys.argv[1:]]))
