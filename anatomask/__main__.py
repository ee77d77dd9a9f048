"""`python -m anatomask <verb> …`: the `anatomask` command."""

from anatomask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
