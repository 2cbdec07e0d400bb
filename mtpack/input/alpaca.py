"""Makes messages of a row in the `alpaca` format: `instruction`, `input` and `output`.

`history`, a list of [user, assistant] pairs, comes before the instruction. Its answers are trained
like the output, as in LLaMA-Factory.
"""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Reason
from mtpack.input.messages import FoundMessages
from mtpack.input.row_errors import RowError, describe_type, list_keys


def pop_exchanges(fields: dict[str, Any]) -> FoundMessages:
    """Remove the texts from the fields of a row and return them as messages; raise RowError."""
    contents = [
        *_read_history(fields.pop("history", "")),
        _pop_question(fields),
        _pop_text(fields, "output"),
    ]
    roles = ("user", "assistant") * (len(contents) // 2)
    return FoundMessages(
        [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    )


def _pop_question(fields: dict[str, Any]) -> str:
    """Return instruction and input, joined by a newline if neither is empty."""
    keys = [key for key in ("instruction", "input") if key in fields]
    if not keys:
        raise RowError(Reason.INVALID_ROW, 'the row has neither "instruction" nor "input"')
    return "\n".join(text for text in (_pop_text(fields, key) for key in keys) if text)


def _pop_text(fields: dict[str, Any], key: str) -> str:
    if key not in fields:
        rest = f"; its other keys are {list_keys(fields)}" if fields else ""
        raise RowError(Reason.INVALID_ROW, f'the row has no "{key}"{rest}')
    text = fields.pop(key)
    if not isinstance(text, str):
        raise RowError(
            Reason.INVALID_CONTENT, f'"{key}" must be a string, found {describe_type(text)}'
        )
    return text


def _read_history(history: Any) -> list[str]:
    if history == "":
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
