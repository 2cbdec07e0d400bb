"""Outputs to show in the HTML report, and a reader of its page that runs no script."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from click.testing import CliRunner

import mtpack
from mtpack.cli import main
from mtpack.shards.dataset import Shards, map_shards
from tests.support.builders import columns_of_sequences, metadata_of, write_columns
from tests.support.strategies import Document, Turn

MARKUP = (
    "</script><script>document.title='run'</script><!--<script>"
    "<img src=http://example.com/x onerror=\"document.title='run'\">]]>&lt;b&gt;"
)
"""Text of a dialogue that would run, or load something, if a page took it as HTML."""
CONTROLS = "\x1b[2J\u202e\u2028\x00 {{ 7*7 }} {% raw %}"


def make_row(question: str, *answers: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    for answer in answers:
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "More?"}]
    return {"messages": messages[:-1]}


ROWS = [
    make_row(MARKUP, MARKUP, "A second answer."),
    make_row(CONTROLS, CONTROLS),
    make_row("Emoji?", "👩\u200d👩\u200d👧 中文 🇩🇪 done"),
    make_row("White space?", "\n\nHello!\tYes."),  # the text is cut at the start of the turn
    make_row("Count.", " ".join(map(str, range(200)))),  # it is truncated
    *(make_row(f"Question {number}?", "Yes. " * number, "No.") for number in range(1, 20)),
]


def pack_rows(folder: Path, rows: list[dict[str, Any]] = ROWS, **options: Any) -> Path:
    """Pack rows with the embedded tokenizer and return the output folder."""
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    settings: dict[str, Any] = {"seq_len": 256, "overlong": "truncate", "workers": 1} | options
    mtpack.pack(str(file), output=str(folder / "packed"), **settings)
    return folder / "packed"


def hand_made(folder: Path, sequences: int, seq_len: int) -> Shards:
    """Return shards whose sequences are full and have one turn each, of two spans."""
    size = seq_len - 4
    spans = [(1, size // 2), (size // 2 + 1, size)]
    ids = [1000 + number % 50_000 for number in range(seq_len)]
    documents = [[Document(number, ids, [Turn(1, 0, spans)])] for number in range(sequences)]
    metadata = metadata_of(seq_len=seq_len)
    write_columns(folder / "one.arrow", columns_of_sequences(documents, metadata), metadata)
    return map_shards(folder / "one.arrow")


def write_report(shards: Path, *arguments: str) -> Path:
    """Write the report with the command, and return its file."""
    report = shards.parent / "report.html"
    command = ["inspect", str(shards), "--html", str(report), *arguments]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return report


class Page(HTMLParser):
    """The elements of a page, as a browser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        """The rows of the table of each chart, without its heads, by the id of the chart."""
        self._figure = ""
        self._tag = ""
        self.feed(text)
        self.close()

    @property
    def data(self) -> Any:
        """What the script shows."""
        return json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._tag = tag
        if tag == "figure":
            self._figure = dict(attrs)["id"] or ""
            self.tables[self._figure] = []
        if tag == "script":
            self.scripts.append("")
        if tag == "tr" and self._figure:
            self.tables[self._figure].append([])

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""
        if tag == "figure":
            self.tables[self._figure] = self.tables[self._figure][1:]
            self._figure = ""

    def handle_data(self, data: str) -> None:
        if self._tag == "script":
            self.scripts[-1] += data
        if self._tag in ("th", "td") and self._figure:
            self.tables[self._figure][-1].append(data)
