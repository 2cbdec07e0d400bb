"""The command line: parse, call, print. Nothing else happens here.

Results go to standard output, progress, remarks and errors to standard error. What a command needs
is imported when it runs, so that `mtpack --help` answers at once.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

import click

from mtpack.errors import MtpackError, SetupError
from mtpack.options import PackOptions, choices, flag
from mtpack.running.thread_limits import ONE_THREAD
from mtpack.version import __version__

Command = TypeVar("Command", bound=Callable[..., Any])

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


class _Group(click.Group):
    """Turns mtpack's errors into one or two lines and the right exit status."""

    def invoke(self, context: click.Context) -> Any:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C does
        try:
            return super().invoke(context)
        except MtpackError as error:
            click.echo(f"mtpack: {error}", err=True)
            context.exit(error.exit_status)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "mtpack"
            message = error.format_message().rstrip(".")
            click.echo(f"mtpack: {message}; see {command} --help", err=True)
            context.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("mtpack: interrupted", err=True)
            context.exit(130)
        except BrokenPipeError:  # the reader of our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            context.exit(0)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            remedy = "; free some and run again" if error.errno == errno.ENOSPC else ""
            click.echo(f"mtpack: {where}{error.strerror or error}{remedy}", err=True)
            context.exit(1)
        except UnicodeEncodeError:
            click.echo(
                "mtpack: a file name can't be written in this locale; set PYTHONUTF8=1", err=True
            )
            context.exit(1)


def _pack_options(command: Command) -> Command:
    """Declare a flag for every field of `PackOptions`."""
    for option in reversed(fields(PackOptions)):
        details = option.metadata
        names = [flag(option.name), option.name]
        settings: dict[str, Any] = {"help": details["help"], "metavar": details.get("metavar")}
        if choices(option):
            settings["type"] = click.Choice(choices(option))
        elif isinstance(option.default, bool):
            settings["is_flag"] = True
        elif isinstance(option.default, tuple):
            settings["multiple"] = True
        else:
            settings["type"] = type(option.default) if option.default is not None else str
        has_default = not isinstance(option.default, bool | tuple | None)
        shown = has_default and details.get("show_default", True)
        if "short" in details:
            names.insert(0, details["short"])
        command = click.option(*names, default=option.default, show_default=shown, **settings)(
            command
        )
    return command


@click.group(
    "mtpack",
    cls=_Group,
    context_settings={"auto_envvar_prefix": "MTPACK", "max_content_width": 100},
)
@click.version_option(__version__, prog_name="mtpack")
def main() -> None:
    """Pack multi-turn dialogues into sequences in which every assistant turn weighs the same."""


@main.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@_pack_options
@_json_option
@click.option("--quiet", is_flag=True, help="No progress bar and no remarks.")
def pack(inputs: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Pack dialogues into Arrow shards.

    INPUT is a file (.jsonl, .json, .jsonl.gz, .jsonl.zst, .parquet), a folder, a pattern, or - for
    JSONL on standard input.
    """
    os.environ.update(ONE_THREAD | os.environ)  # before numpy is imported
    from mtpack.report.pack_report import show_report
    from mtpack.running.pack import pack as pack_dialogues

    with _listening(quiet=quiet, bars=not as_json) as callbacks:
        report = pack_dialogues(inputs, callbacks=callbacks, **options)
    if as_json:
        _print_json(report.as_dict())
    else:
        show_report(report, _console())


@main.command()
@click.argument("path")
@click.option("--row", type=int, metavar="N", help="Show sequence N, counted from 0.")
@click.option("--tokenizer", metavar="PATH", help="The tokenizer to decode with.")
@_json_option
def inspect(path: str, row: int | None, tokenizer: str | None, as_json: bool) -> None:
    """Show what is in a shard or an output folder."""
    from mtpack.report.decoding import find_decoder
    from mtpack.report.figures import figures_of
    from mtpack.report.inspect_view import show_figures, show_row
    from mtpack.report.row_view import row_view
    from mtpack.shards.dataset import open_shards

    shards = open_shards(path)
    if shards.manifest is None:
        _remark("a shard without its manifest: hashes were not checked")
    if row is not None:
        view = row_view(shards, row)
        if as_json:
            _print_json(view.as_dict())
            return
        decode, remark = find_decoder(shards, tokenizer)
        if remark:
            _remark(remark)
        show_row(view, decode, _console())
        return
    figures = figures_of(shards)
    if as_json:
        _print_json(figures.as_dict())
    else:
        show_figures(figures, _console())


@main.command()
@click.argument("paths", nargs=-1, metavar="[PATH...]")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float64", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="What to compute in: float64 on the CPU, float32 on CUDA or with --model, where auto.",
)
@click.option(
    "--model",
    metavar="PATH",
    help="A folder with a causal language model for transformers, instead of the built-in one.",
)
@_json_option
def verify(
    paths: tuple[str, ...], device: str, dtype: str, model: str | None, as_json: bool
) -> None:
    """Prove that shards are sound and that their loss is right. PATH is `packed` by default."""
    from mtpack.report.verify_view import show
    from mtpack.verify.verify import verify as verify_shards

    with _status() as tell:
        report = verify_shards(
            paths or ("packed",), device, dtype=dtype, model=model, speed=True, tell=tell
        )
    if as_json:
        _print_json(report.as_dict())
    else:
        show(report, _console())
    if not report.ok:
        sys.exit(1)
    if report.missing_extra:
        raise SetupError(report.missing_extra)


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """Show what is being checked on standard error, where someone watches."""
    if not sys.stderr.isatty():
        yield lambda stage: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda stage: status.update(f"checking {stage}")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def _remark(text: str) -> None:
    click.echo(f"mtpack: {text}", err=True)


def _console() -> Any:
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # handled where all other errors are

    if isinstance(sys.stdout, io.TextIOWrapper):  # dialogues hold what a terminal may not have
        sys.stdout.reconfigure(errors="backslashreplace")
    return PipedConsole(highlight=False)


@contextmanager
def _listening(*, quiet: bool, bars: bool) -> Iterator[Any]:
    """Show progress and remarks on standard error; bars only where someone watches."""
    from mtpack.running.pack import Callbacks

    if quiet:
        yield Callbacks()
        return
    from tqdm import tqdm

    units = {"tokenize": "rows", "write": "sequences"}
    shown: dict[str, Any] = {}

    def progress(stage: str, amount: int) -> None:
        if stage not in shown:
            shown[stage] = tqdm(
                desc=stage, unit=f" {units[stage]}", disable=not (bars and sys.stderr.isatty())
            )
        shown[stage].update(amount)

    def remark(text: str) -> None:
        tqdm.write(f"mtpack: {text}", file=sys.stderr)

    try:
        yield Callbacks(progress, remark)
    finally:
        for bar in shown.values():
            bar.close()
