"""The command `mtpack`, also as `python -m mtpack`."""

import atexit
import os
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
    except SystemExit as end:
        EXIT_SIGNALS.ignore()
        if isinstance(end.code, int):
            _end(end.code)
        raise
    finally:
        EXIT_SIGNALS.ignore()


def _end(status: int) -> None:
    """End the process as Python does, but free nothing, which the system does in no time.

    What can't be written any more is left to Python, which says so.
    """
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    os._exit(status)


if __name__ == "__main__":
    main()
