"""The `alpaca` format: `{"instruction": "...", "input": "...", "output": "..."}`.

`history`, a list of [user, assistant] pairs, comes before the instruction. Its answers are trained
like the output, as in LLaMA-Factory.
"""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Reason
from mtpack.input.message import ParsedRow
from mtpack.input.row_errors import RowError, describe_type
from mtpack.input.sharegpt import read_system
from mtpack.input.tools import read_tools


def parse_alpaca(row: dict[str, Any]) -> ParsedRow:
    """Return the messages and tools of a row; raise RowError."""
    contents = [
        *_read_history(row.get("history")),
        _read_question(row),
        _read_text(row, "output"),
    ]
    roles = ("user", "assistant") * (len(contents) // 2)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    return ParsedRow([*read_system(row), *messages], read_tools(row.get("tools") or None))


def _read_question(row: dict[str, Any]) -> str:
    """Return instruction and input, joined by a newline if neither is empty."""
    keys = [key for key in ("instruction", "input") if row.get(key) is not None]
    if not keys:
        raise RowError(Reason.INVALID_ROW, 'the row has neither "instruction" nor "input"')
    return "\n".join(text for text in (_read_text(row, key) for key in keys) if text)


def _read_text(row: dict[str, Any], key: str) -> str:
    text = row.get(key)
    if text is None:
        raise RowError(Reason.INVALID_ROW, f'the row has no "{key}"')
    if not isinstance(text, str):
        raise RowError(
            Reason.INVALID_CONTENT, f'"{key}" must be a string, found {describe_type(text)}'
        )
    return text


def _read_history(history: Any) -> list[str]:
    if history is None or history == "":
        return []
    if not isinstance(history, list):
        raise RowError(
            Reason.INVALID_ROW,
            f'"history" must be a list of [user, assistant] pairs, found {describe_type(history)}',
        )
    for number, pair in enumerate(history):
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            raise RowError(
                Reason.INVALID_ROW,
                f'"history": entry {number} must be a list of two strings, [user, assistant]',
            )
    return [text for pair in history for text in pair]
