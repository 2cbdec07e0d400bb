"""`python -m mtpack`: the same as the command `mtpack`."""

from mtpack.cli import main

if __name__ == "__main__":
    main()
