"""The command `mtpack`, also as `python -m mtpack`."""

from mtpack.exit_signals import EXIT_SIGNALS


def main() -> None:
    """Run the command line; handle signals before anything else is loaded."""
    EXIT_SIGNALS.install()
    try:
        from mtpack.cli import main as run

        run()
    finally:
        EXIT_SIGNALS.ignore()


if __name__ == "__main__":
    main()
