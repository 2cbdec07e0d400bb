"""What was found in shards, in the terminal: one line for each document or turn."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtpack.report.decoding import Decoder, decode_part
from mtpack.report.escaping import FOUND, FOUND_END, LINE_BREAK, TAB, escape
from mtpack.report.extreme_turns import ExtremeTurns, TurnEntry
from mtpack.report.folding import find_continuing
from mtpack.report.row_view import describe_weight, view_row
from mtpack.report.search import Occurrence
from mtpack.report.terminal import (
    INDENT,
    format_count,
    indent,
    make_heads,
    make_rule,
    make_table,
    print_heading,
)
from mtpack.shards.dataset import Shards

_TEXT_WIDTH = 22  # columns for the text of a turn
_FIRST_CHARACTERS = 400
"""More characters than fit into a line are not laid out."""


def show_occurrences(found: Sequence[Occurrence], *, has_more: bool, console: Console) -> None:
    """Print the first documents that hold a text, each with the text around it."""
    if not found:
        console.print(Text("No document holds this text; upper and lower case are different."))
        return
    documents = format_count(len(found), "document")
    more = "; there are more" if has_more else ""
    console.print(Text(f"{documents} with this text{more}", style="bold"))
    for each in found:
        where = "not trained" if each.message is None else f"trained in message {each.message}"
        heading = f"sequence {each.sequence:,}, document {each.document + 1:,}: dialogue "
        heading += f"{each.dialogue:,}, {where}"
        if each.times > 1:
            heading += f", {each.times:,} times"
        console.print()
        console.print(make_rule(heading, console))
        console.print(indent(_draw_line(each, min(console.width, 80) - len(INDENT))))
    console.print()
    remedy = "--limit shows more; " if has_more else ""
    console.print(Text(f"{remedy}--dialogue or --row shows a whole one"))


def _draw_line(found: Occurrence, width: int) -> Text:
    """Return one line with the found text in brackets, and what is before and after it."""
    text = Text()
    text.append(f"{FOUND}{_show_in_line(found.text)}{FOUND_END}", style="bold")
    text.truncate(width, overflow="ellipsis")
    before = _crop_start(
        _show_in_line(found.before[-_FIRST_CHARACTERS:]), (width - text.cell_len) // 2
    )
    line = Text(before, style="none")
    line.append_text(text)
    line.append(_show_in_line(found.after[:_FIRST_CHARACTERS]))
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line


def _show_in_line(text: str) -> str:
    return escape(text).replace("\n", LINE_BREAK).replace("\t", TAB)


def _crop_start(text: str, width: int) -> str:
    """Return the end of a text that fits into some columns, with an ellipsis if it is cropped."""
    if cell_len(text) <= width:
        return text
    continuing = find_continuing(text)
    start = 0
    while start < len(text) and (continuing[start] or cell_len(text[start:]) >= width):
        start += 1
    return f"…{text[start:]}" if width > 0 else ""


def show_extreme_turns(
    found: ExtremeTurns, shards: Shards, decoder: Decoder | None, console: Console
) -> None:
    """Print the turns whose tokens have the most and the least weight."""
    title = f"Of {format_count(found.turns, 'turn')}, those with the most and the least weight"
    console.print(Text(title, style="bold"))
    has_weights = any(turn.turn_weight is not None for turn in found.shortest)
    headings = "Most weight for each token", "Least weight for each token"
    if not has_weights:
        headings = f"{headings[0]}: the shortest", f"{headings[1]}: the longest"
    for heading, turns in zip(headings, (found.shortest, found.longest), strict=True):
        print_heading(heading, console)
        console.print(indent(_build_turn_table(found, turns, shards, decoder)))
    console.print()
    each = "a turn of weight w has w" if has_weights else "every turn has 1"
    console.print(
        Text(
            f"token weight: of each loss token, under turn mean, where {each}.\n"
            "token mean, dialogue mean: the weight of the whole turn, if 1 is the average."
        )
    )


def _build_turn_table(
    found: ExtremeTurns, turns: Sequence[TurnEntry], shards: Shards, decoder: Decoder | None
) -> Table:
    table = make_table("right", "right", "right", "right", "right", "right", "left")
    heads = ("sequence", "dialogue", "message", "token", "token", "dialogue")
    table.add_row(*make_heads(*heads, ""))
    table.add_row(*make_heads("", "", "", "weight", "mean", "mean", "text"))
    for turn in turns:
        weights = found.weigh(turn)
        text = _read_start(shards, turn, decoder) if decoder else Text()
        table.add_row(
            f"{turn.sequence:,}",
            f"{turn.dialogue:,}",
            f"{turn.message:,}",
            describe_weight(turn.turn_weight, turn.loss_tokens),
            f"{weights['token_mean']:.3g}",
            f"{weights['dialogue_mean']:.3g}",
            text,
        )
    return table


def _read_start(shards: Shards, turn: TurnEntry, decoder: Decoder) -> Text:
    """Return the beginning of the text of a turn, in one line."""
    view = view_row(shards, turn.sequence)
    positions = view.turns[turn.turn].positions[:_FIRST_CHARACTERS]
    first = int(positions[0])
    text = decode_part(
        decoder, view.token_ids[positions].tolist(), view.token_ids[first - 1 : first].tolist()
    )
    line = Text(_show_in_line(text[:_FIRST_CHARACTERS]), no_wrap=True)
    line.truncate(_TEXT_WIDTH, overflow="ellipsis")
    return line
