"""Report of evaluated runs: the program for `ray submit cluster.yaml`; the same as `anatomask report`."""

import sys

from anatomask.cli.main import program

if __name__ == "__main__":
    program(["report", *sys.argv[1:]])
