"""Report of evaluated runs: the program for `ray submit cluster.yaml`; the same as `anatomask report`."""

import sys

from anatomask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["report", *sys.argv[1:]]))
