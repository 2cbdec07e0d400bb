"""Text and tables in a terminal: readable without colour, in 80 columns.

Text from shards and files is untrusted. It is shown as `rich.text.Text`, which ignores markup, and
`escaping.py` escapes the characters that control a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from mtpack.report.escaping import escape_controls, escape_line
from mtpack.report.notices import Notice

INDENT = "  "
_EIGHTHS = " ▏▎▍▌▋▊▉"


class SafeConsole(Console):
    """A console that shows the characters that control a terminal as escapes.

    It is the last defence: what is escaped only here may be cropped. So names and texts are escaped
    before they are laid out.
    """

    def render(self, *args: Any, **kwargs: Any) -> Iterator[Segment]:
        """Yield the segments of what is printed."""
        for segment in super().render(*args, **kwargs):
            if segment.control:
                yield segment
            else:
                yield Segment(escape_controls(segment.text), segment.style)


def print_heading(heading: str, console: Console) -> None:
    """Print an empty line and a heading."""
    console.print()
    console.print(Text(heading, style="bold"))


def make_rule(heading: str, console: Console) -> Text:
    """Return a heading in a line across the screen, so that it stands out without colour."""
    start = f"── {heading} "
    width = min(console.width, 80)
    return Text(start + "─" * max(2, width - cell_len(start)), style="bold")


def make_table(*alignments: Literal["left", "right"]) -> Table:
    """Return an empty table without lines, with these columns."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for alignment in alignments:
        table.add_column(justify=alignment)
    return table


def make_heads(*heads: str) -> list[Text]:
    """Return the cells of a header row."""
    return [Text(head, style="dim") for head in heads]


def build_notices_table(notices: list[Notice]) -> Table:
    """Build the table of notices: name, count and explanation."""
    table = make_table("left", "right", "left")
    for notice in notices:
        cells = (notice.name, f"{notice.count:,}", notice.text)
        table.add_row(*map(Text, cells))
    return table


def draw_bar(share: float, most: float, width: int) -> str:
    """Draw a bar in eighths of a column, `width` columns for `most`.

    A share above 0 is always visible.
    """
    eighths = round(share / most * width * 8)
    if share and not eighths:
        eighths = 1
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def format_range(low: int, high: int) -> str:
    """Format the lengths from `low` to `high`: `1`, `2-3`, `1,024-2,047`."""
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def format_count(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun.

    >>> format_count(1, "loss", "losses"), format_count(1000, "turn")
    ('1 loss', '1,000 turns')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def format_percent(share: float) -> str:
    """Return a share as a percentage.

    >>> format_percent(0.615)
    '61.5%'
    """
    return f"{share:.1%}"


def format_reasons(counts: dict[str, int]) -> str:
    """Return reasons with their counts, in one line.

    >>> format_reasons({"no_turn": 2, "overlong": 1000})
    'no_turn 2, overlong 1,000'
    """
    return ", ".join(f"{escape_line(reason)} {count:,}" for reason, count in counts.items())


def indent(shown: Table | Text) -> Padding:
    """Return a table or a text with two spaces before each line."""
    return Padding(shown, (0, 0, 0, len(INDENT)), expand=False)
