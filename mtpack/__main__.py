"""`python -m mtpack`: the same as the command."""

from mtpack.cli import main

if __name__ == "__main__":
    main()
