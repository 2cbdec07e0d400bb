"""The command `mtpack`, also as `python -m mtpack`."""

import atexit
import gc
import os
import sys

from mtpack.exit_signals import EXIT_SIGNALS

# By default, the garbage collector runs after every 700 new objects. While modules are imported,
# which takes half of the time of a small run, it finds nothing and takes a fifth of that time.
_OBJECTS_BETWEEN_COLLECTIONS = 20_000


def main() -> None:
    """Run the command line; handle signals before anything else is loaded."""
    if sys.platform == "win32":  # without `fcntl`, `resource` and SIGHUP
        sys.stderr.write("mtpack: Windows is not supported; run it in WSL, which is a Linux\n")
        sys.exit(2)
    EXIT_SIGNALS.install()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
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
