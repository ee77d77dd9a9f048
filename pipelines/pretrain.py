"""Self-supervised pretraining: the program for `ray submit cluster.yaml`; the same as `anatomask pretrain`."""

import sys

from anatomask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["pretrain", *sys.argv[1:]]))
