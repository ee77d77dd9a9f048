"""`python -m anatomask <verb> …`: the `anatomask` command."""

from anatomask.cli.main import program

if __name__ == "__main__":
    program()
