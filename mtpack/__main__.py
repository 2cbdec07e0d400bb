"""The command `mtpack`, also as `python -m mtpack`."""

import sys

from mtpack.exit_signals import EXIT_SIGNALS


def main() -> None:
    """Run the command line; handle signals before anything else is loaded."""
    if sys.platform == "win32":  # without `fcntl`, `resource` and SIGHUP
        sys.stderr.write("mtpack: Windows is not supported; run it in WSL, which is a Linux\n")
        sys.exit(2)
    EXIT_SIGNALS.install()
    try:
        from mtpack.cli import main as run

        run()
    finally:
        EXIT_SIGNALS.ignore()


if __name__ == "__main__":
    main()
