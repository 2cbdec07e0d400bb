"""The command line: parse the arguments, call a function, print the result.

Results go to standard output; progress, warnings and errors go to standard error. Modules that a
command needs are imported when it runs, so that `mtpack --help` is fast.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from importlib import import_module
from threading import Thread
from typing import Any, TypeVar

import click

from mtpack.cli_help import PATH_NAME, GroupedOption, GroupWithExamples
from mtpack.errors import MtpackError, SetupError
from mtpack.exit_signals import EXIT_SIGNALS
from mtpack.options import PackOptions, choices, flag, resolve_alias
from mtpack.report.escaping import format_json, format_message
from mtpack.running.thread_limits import SINGLE_THREAD_ENV
from mtpack.version import __version__

Command = TypeVar("Command", bound=Callable[..., Any])

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")

_PATH_METAVARS = ("DIR", "FILE_OR_NAME", "PATH_OR_ID")  # of the fields of `PackOptions`


_loaded: list[Any] = []
"""What stays until the process ends, since to free a large tokenizer takes 0.1 s."""


class _Group(GroupWithExamples):
    """Prints every expected error as one or two lines and exits with its status."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.NoSuchOption as error:  # before the name of a command
            _tell_usage(error)
            raise click.exceptions.Exit(error.exit_code) from error

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except MtpackError as error:
            _tell(*error.args)
            context.exit(error.exit_status)
        except click.UsageError as error:
            _tell_usage(error)
            context.exit(error.exit_code)
        except KeyboardInterrupt:  # in programs that call this without `mtpack.__main__`
            _tell("interrupted")
            context.exit(130)
        except BrokenPipeError:  # the reader of our output has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            context.exit(0)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            remedy = "; free some space and run again" if error.errno == errno.ENOSPC else ""
            _tell(f"{where}{error.strerror or error}{remedy}")
            context.exit(1)
        except UnicodeEncodeError:
            _tell("this locale can't encode a file name; set PYTHONUTF8=1 and run again")
            context.exit(1)


class _PackOption(GroupedOption):
    """A flag for a field of `PackOptions`; it accepts the aliases of values, but shows none."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        return super().type_cast_value(ctx, resolve_alias(self.name or "", value))


def _pack_options(command: Command) -> Command:
    """Add a flag for every field of `PackOptions` to a command."""
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
        elif details.get("metavar") in _PATH_METAVARS:
            settings["type"] = PATH_NAME
        else:
            settings["type"] = type(option.default) if option.default is not None else str
        has_default = not isinstance(option.default, bool | tuple | None)
        shown = has_default and details.get("show_default", True)
        if "short" in details:
            names.insert(0, details["short"])
        settings |= {"cls": _PackOption, "default": option.default, "show_default": shown}
        command = click.option(*names, **settings)(command)
    return command


@click.group(
    "mtpack",
    cls=_Group,
    context_settings={"auto_envvar_prefix": "MTPACK", "max_content_width": 100},
)
@click.version_option(__version__, prog_name="mtpack")
def main() -> None:
    """Pack multi-turn dialogues into sequences; every assistant turn has the same weight."""


@main.command()
@click.argument("inputs", nargs=-1, type=PATH_NAME, metavar="INPUT...")
@_pack_options
@click.option(
    "--config",
    type=PATH_NAME,
    cls=GroupedOption,
    metavar="FILE",
    help="A recipe: a TOML file with options and sources. Options of the command win over it.",
)
@_json_option
@click.option("--quiet", is_flag=True, help="Print no progress and no warnings.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Write nothing. Show what would be trained and what the run would take, from a sample of "
    "the rows.",
)
@click.option(
    "--print-config",
    is_flag=True,
    help="Write nothing. Print the recipe that stands for this command.",
)
@click.pass_context
def pack(
    context: click.Context,
    /,
    inputs: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    print_config: bool,
    config: str | None,
    **options: Any,
) -> None:
    """Pack dialogues into Arrow shards.

    INPUT is a file (.jsonl, .ndjson or .json, also with .gz or .zst; .parquet, .arrow, .feather), a
    folder, also one that datasets saved, a glob pattern, or - for JSON lines on standard input. Any
    of these but - may be a URL: s3://, gs://, hf:// or file://. With --config, the recipe may name
    the inputs.
    """
    given = _list_given(context, options)
    if print_config:
        return _print_config(config, inputs, given)
    if not inputs and config is None:
        raise click.MissingParameter(ctx=context, param=context.command.params[0])
    os.environ.update(SINGLE_THREAD_ENV | os.environ)  # before numpy is imported
    from mtpack.report.progress import show_progress
    from mtpack.running.callbacks import Callbacks
    from mtpack.running.pack import PackRun
    from mtpack.running.run_inputs import load_run
    from mtpack.shards.work_area import find_last_file

    if dry_run:
        _try_pack(inputs, as_json=as_json, quiet=quiet, config=config, **given)
        return
    recipe = load_run(inputs, config, given)
    EXIT_SIGNALS.expect(str(find_last_file(recipe.options.output, recipe.options.work_dir)))
    shown = nullcontext(Callbacks()) if quiet else show_progress(shows_stages=not as_json)
    with shown as callbacks:
        if not as_json:
            callbacks = replace(callbacks, status=_load_report_meanwhile(callbacks.status))
        run = PackRun(recipe, callbacks)
        report = run.pack()
    _loaded.append(run)
    if as_json:
        _print_json(report.as_dict())
    else:
        from mtpack.report.pack_report import show_report

        show_report(report, _console())


def _load_report_meanwhile(status: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a callback that also imports what shows the report, while workers are at work.

    It does so at its first call: then they have been forked, which needs a single thread.
    """
    has_begun = False

    def load_and_report(progress: Any) -> None:
        nonlocal has_begun
        if not has_begun:
            has_begun = True
            Thread(target=import_module, args=("mtpack.report.pack_report",)).start()
        status(progress)

    return load_and_report


def _list_given(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the command or the environment sets."""
    unset = click.core.ParameterSource.DEFAULT
    return {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) is not unset
    }


def _print_config(config: str | None, inputs: tuple[str, ...], options: dict[str, Any]) -> None:
    """Print the recipe that stands for a command."""
    from mtpack.recipe.load import load_recipe
    from mtpack.recipe.write import format_recipe

    click.echo(format_recipe(load_recipe(config, inputs, options)), nl=False)


def _try_pack(
    inputs: tuple[str, ...], *, as_json: bool, quiet: bool, config: str | None, **options: Any
) -> None:
    """Show what `pack` would do."""
    from mtpack.report.dry_run_view import show_dry_run
    from mtpack.running.callbacks import Callbacks
    from mtpack.running.dry_run import dry_run

    callbacks = Callbacks() if quiet else Callbacks(warn=_tell)
    report = dry_run(inputs, config=config, callbacks=callbacks, **options)
    if as_json:
        _print_json(report.as_dict())
    else:
        show_dry_run(report, _console())


@main.command()
@click.argument("path", type=PATH_NAME)
@click.option("--full", is_flag=True, help="Show every figure, and the reason for each count.")
@click.option("--row", type=int, metavar="N", help="Show sequence N, counted from 0.")
@click.option("--dialogue", type=int, metavar="ID", help="Show the documents of input row ID.")
@click.option("--find", metavar="TEXT", help="Find documents that hold a text.")
@click.option("--turns", is_flag=True, help="Show the turns with the most and least weight.")
@click.option(
    "--html",
    type=PATH_NAME,
    metavar="FILE",
    help="Write a report for a browser, in one file.",
)
@click.option("--tokens", is_flag=True, help="Show where tokens end, with --row and --dialogue.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Most results of --find, and of --turns in each direction.",
)
@click.option(
    "--tokenizer",
    type=PATH_NAME,
    metavar="PATH",
    help="Tokenizer that decodes the sequences.",
)
@_json_option
def inspect(path: str, as_json: bool, **choices: Any) -> None:
    """Show what will be trained: the contents of an output or a shard, by its path or URL."""
    from mtpack.report.inspect import InspectOptions, inspect_shards
    from mtpack.shards.dataset import open_shards

    shards = open_shards(path)
    if shards.manifest is None:
        _tell(f"{path}: a single shard, so hashes were not checked; name its folder for that")
    options = InspectOptions(**choices)
    values = inspect_shards(shards, options, None if as_json else _console(), _tell)
    if as_json:
        _print_json(values)


@main.command()
@click.argument("paths", nargs=-1, type=PATH_NAME, metavar="[PATH...]")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device to compute on. auto: CUDA if it is available, else the CPU.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float64", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Data type to compute in. auto: float32 on CUDA or with --model, else float64.",
)
@click.option(
    "--model",
    type=PATH_NAME,
    metavar="PATH",
    help="Folder with a causal language model for transformers, instead of the built-in model.",
)
@_json_option
def verify(
    paths: tuple[str, ...], device: str, dtype: str, model: str | None, as_json: bool
) -> None:
    """Check that shards follow the format and give the right loss. Default PATH: packed."""
    from mtpack.report.verify_view import show
    from mtpack.verify.verify import verify as verify_shards

    with _show_check() as show_check:
        report = verify_shards(
            paths or ("packed",),
            device,
            dtype=dtype,
            model=model,
            report_progress=show_check,
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
def _show_check() -> Iterator[Callable[[str, float], None]]:
    """Show on standard error which check runs, and how long it takes if that is over a minute."""
    from rich.console import Console

    with Console(stderr=True).status("") as status:  # it shows nothing if that is no terminal

        def show(check: str, seconds: float) -> None:
            status.update(f"checking {check}")
            if seconds > 60:
                _tell(f"{check} takes about {seconds / 60:.1f} minutes with this model")

        yield show


def _print_json(value: Any) -> None:
    click.echo(format_json(value))


def _tell(*lines: object) -> None:
    """Print a message of these lines on standard error."""
    click.echo(format_message(lines), err=True)


def _tell_usage(error: click.UsageError) -> None:
    command = error.ctx.command_path if error.ctx else "mtpack"
    _tell(f"{error.format_message().rstrip('.')}; see {command} --help")


def _console() -> Any:
    """Return a console on standard output that prints any text and raises BrokenPipeError."""
    from mtpack.report.terminal import SafeConsole

    class PipedConsole(SafeConsole):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # `_Group.invoke` handles it

    if isinstance(sys.stdout, io.TextIOWrapper):  # dialogues may hold what it can't encode
        sys.stdout.reconfigure(errors="backslashreplace")
    return PipedConsole(highlight=False)
