"""What `inspect` shows of shards: an overview, or what an option asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from mtpack.errors import SetupError
from mtpack.report.decoding import Decoder, find_decoder
from mtpack.report.extreme_turns import find_extreme_turns
from mtpack.report.figures import count_figures
from mtpack.report.inspect_view import show_figures
from mtpack.report.overview import show_overview
from mtpack.report.row_view import view_row
from mtpack.report.search import find_dialogue, find_text
from mtpack.report.search_view import show_extreme_turns, show_occurrences
from mtpack.report.sequence_view import show_dialogue, show_row
from mtpack.report.turn_marks import find_marks
from mtpack.shards.dataset import Shards


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """What `inspect` is to show, as its help says; only the overview if nothing is set."""

    full: bool = False
    row: int | None = None
    dialogue: int | None = None
    find: str | None = None
    turns: bool = False
    tokens: bool = False
    limit: int = 8
    tokenizer: str | None = None

    def check(self) -> None:
        """Raise SetupError for options that can't be used together."""
        chosen = {
            "--full": self.full,
            "--row": self.row is not None,
            "--dialogue": self.dialogue is not None,
            "--find": self.find is not None,
            "--turns": self.turns,
        }
        names = [name for name, is_chosen in chosen.items() if is_chosen]
        if len(names) > 1:
            raise SetupError(f"{' and '.join(names)}: name one of them")
        if self.tokens and names not in (["--row"], ["--dialogue"]):
            raise SetupError("--tokens: only with --row or --dialogue")


def inspect_shards(
    shards: Shards, options: InspectOptions, console: Console | None, warn: Callable[[str], None]
) -> Any:
    """Print what the options ask for on a console; without one, return it as JSON values.

    Raises SetupError for options that can't be used together and for what does not exist,
    InputError for damaged shards.
    """
    options.check()
    if options.row is not None:
        return _inspect_row(shards, options.row, options, console, warn)
    if options.dialogue is not None:
        return _inspect_dialogue(shards, options.dialogue, options, console, warn)
    if options.find is not None:
        decoder = _load_decoder(shards, options, warn)
        if decoder is None:
            raise SetupError("--find: texts can't be searched without their tokenizer")
        found = find_text(shards, options.find, decoder, options.limit + 1)
        shown, has_more = found[: options.limit], len(found) > options.limit
        if console is None:
            return {"found": [each.as_dict() for each in shown], "has_more": has_more}
        return show_occurrences(shown, has_more=has_more, console=console)
    if options.turns:
        extremes = find_extreme_turns(shards, options.limit)
        if console is None:
            return extremes.as_dict()
        decoder = _load_decoder(shards, options, warn)
        return show_extreme_turns(extremes, shards, decoder, console)
    figures = count_figures(shards)
    if console is None:
        return figures.as_dict()
    return show_figures(figures, console) if options.full else show_overview(figures, console)


def _load_decoder(
    shards: Shards, options: InspectOptions, warn: Callable[[str], None]
) -> Decoder | None:
    decoder, warning = find_decoder(shards, options.tokenizer)
    if warning:
        warn(warning)
    return decoder


def _inspect_row(
    shards: Shards,
    row: int,
    options: InspectOptions,
    console: Console | None,
    warn: Callable[[str], None],
) -> Any:
    view = view_row(shards, row)
    if console is None:
        return view.as_dict()
    decoder = _load_decoder(shards, options, warn)
    marks = find_marks(shards, view, decoder)
    return show_row(view, decoder, console, marks=marks, with_tokens=options.tokens)


def _inspect_dialogue(
    shards: Shards,
    dialogue: int,
    options: InspectOptions,
    console: Console | None,
    warn: Callable[[str], None],
) -> Any:
    found = find_dialogue(shards, dialogue)
    if console is None:
        documents = [view.document_as_dict(number) for view, number in found]
        return {"dialogue": dialogue, "documents": documents}
    decoder = _load_decoder(shards, options, warn)
    marked = [(view, number, find_marks(shards, view, decoder)) for view, number in found]
    return show_dialogue(marked, decoder, console, with_tokens=options.tokens)
