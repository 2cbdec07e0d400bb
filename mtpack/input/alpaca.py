"""The `alpaca` format: `{"instruction": "...", "input": "...", "output": "..."}`.

`history`, a list of [user, assistant] pairs, stands before the instruction, and its answers are
trained like the output, as in LLaMA-Factory.
"""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Reason
from mtpack.input.message import ParsedRow, read_messages
from mtpack.input.row_errors import RowError, kind
from mtpack.input.sharegpt import read_system
from mtpack.input.tools import read_tools


def from_alpaca(row: dict[str, Any]) -> ParsedRow:
    """Return what a row says; raise RowError."""
    said = [
        *_read_history(row.get("history")),
        _read_question(row),
        _read_text(row, "output"),
    ]
    roles = ("user", "assistant") * (len(said) // 2)
    messages = read_messages(
        {"role": role, "content": text} for role, text in zip(roles, said, strict=True)
    )
    return ParsedRow([*read_system(row), *messages], read_tools(row.get("tools") or None))


def _read_question(row: dict[str, Any]) -> str:
    """Join instruction and input by a newline where both say something."""
    keys = [key for key in ("instruction", "input") if row.get(key) is not None]
    if not keys:
        raise RowError(Reason.INVALID_ROW, 'neither "instruction" nor "input"')
    return "\n".join(text for text in (_read_text(row, key) for key in keys) if text)


def _read_text(row: dict[str, Any], key: str) -> str:
    text = row.get(key)
    if text is None:
        raise RowError(Reason.INVALID_ROW, f'no "{key}"')
    if not isinstance(text, str):
        raise RowError(Reason.INVALID_CONTENT, f'"{key}" must be text, found {kind(text)}')
    return text


def _read_history(history: Any) -> list[str]:
    if history is None or history == "":
        return []
    if not isinstance(history, list):
        raise RowError(
            Reason.INVALID_ROW,
            f'"history" must be a list of [user, assistant] pairs, found {kind(history)}',
        )
    for number, pair in enumerate(history):
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            raise RowError(
                Reason.INVALID_ROW,
                f'"history": entry {number} must be a pair of texts, [user, assistant]',
            )
    return [text for pair in history for text in pair]
