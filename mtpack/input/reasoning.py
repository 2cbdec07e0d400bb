"""The reasoning of an assistant message, under the names that data sets and templates use."""

from __future__ import annotations

from typing import Any

from mtpack.input.content import pop_thinking
from mtpack.input.dialogue import Reason
from mtpack.input.row_errors import RowError, describe_type, quote_name

THINK, END_OF_THINK = "<think>", "</think>"
"""The tags around a reasoning in a content, and in most templates."""
# The standard name first (transformers, `apply_chat_template`).
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
REASONING_DETAILS = "reasoning_details"
# The texts of OpenRouter's details, by type. Other types are encrypted.
_DETAIL_TEXTS = {"reasoning.text": "text", "reasoning.summary": "summary"}


def has_reasoning(message: dict[str, Any]) -> bool:
    """Return whether a message, as the template gets it, has a reasoning in its field."""
    return bool(message.get("reasoning_content", "").strip())


def read_reasoning(where: str, role: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a message with its reasoning under both names that templates read.

    A reasoning may be in a field of its own, in `reasoning_details` (OpenRouter), or in `thinking`
    parts that open the content (Anthropic, Mistral). Raises RowError.
    """
    if role == "assistant":
        _read_thinking_parts(where, fields)
        _read_details(where, fields)
    reasoning = next((fields[key] for key in REASONING_KEYS if key in fields), None)
    if reasoning is None:
        return fields
    if not isinstance(reasoning, str):
        raise RowError(
            Reason.INVALID_CONTENT,
            f"{where}: the reasoning must be a string, found {describe_type(reasoning)}",
        )
    return {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _read_thinking_parts(where: str, fields: dict[str, Any]) -> None:
    if not isinstance(fields.get("content"), list):
        return
    thinking, others = pop_thinking(where, fields["content"])
    if thinking is None:
        return
    if any(fields.get(key, thinking) != thinking for key in REASONING_KEYS):
        raise RowError(
            Reason.INVALID_CONTENT,
            f"{where}: a thinking part and another reasoning that differs; keep one of them",
        )
    fields["content"] = others or ""
    fields["reasoning_content"] = thinking


def _read_details(where: str, fields: dict[str, Any]) -> None:
    """Read `reasoning_details`, unless the reasoning is there under another name as well."""
    if REASONING_DETAILS not in fields or any(key in fields for key in REASONING_KEYS):
        return
    details = fields.pop(REASONING_DETAILS)
    if not isinstance(details, list):
        raise RowError(
            Reason.INVALID_CONTENT,
            f'{where}: "{REASONING_DETAILS}" must be a list, found {describe_type(details)}',
        )
    texts = [_read_detail(where, detail) for detail in details]
    if texts:
        fields["reasoning_content"] = "\n".join(texts)


def _read_detail(where: str, detail: Any) -> str:
    kind = detail.get("type") if isinstance(detail, dict) else None
    text = detail.get(_DETAIL_TEXTS[kind]) if kind in tuple(_DETAIL_TEXTS) else None
    if not isinstance(text, str):
        found = quote_name(kind)
        raise RowError(
            Reason.INVALID_CONTENT,
            f'{where}: "{REASONING_DETAILS}" has an entry of the type {found}; '
            "mtpack reads text and summaries",
        )
    return text
