"""The reasoning of an assistant message, under the names that data sets and templates use."""

from __future__ import annotations

from typing import Any

from mtpack.input.content import list_unread_thinking_keys, pop_thinking
from mtpack.input.dialogue import Reason
from mtpack.input.row_errors import RowError, describe_type, quote_name

THINK, END_OF_THINK = "<think>", "</think>"
"""The tags around a reasoning in a content, and in most templates."""
# The standard name first (transformers, `apply_chat_template`).
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
REASONING_DETAILS = "reasoning_details"
# The texts of OpenRouter's details, by type. Other types are encrypted.
_DETAIL_TEXTS = {"reasoning.text": "text", "reasoning.summary": "summary"}
_DETAIL_KEYS = frozenset(("type", "text", "summary", "id", "index", "format"))


def has_reasoning(message: dict[str, Any]) -> bool:
    """Return whether a message, as the template gets it, has a reasoning in its field."""
    return bool(message.get("reasoning_content", "").strip())


def read_reasoning(
    where: str, role: str, fields: dict[str, Any], unread: list[str]
) -> dict[str, Any]:
    """Return the fields of a message with its reasoning under both names that templates read.

    A reasoning may be in a field of its own, in `thinking` parts that open the content (Anthropic,
    Mistral), or in `reasoning_details` (OpenRouter). Adds the keys that are not read to `unread`.
    Raises RowError.
    """
    named = [key for key in REASONING_KEYS if key in fields]
    reasoning = fields[named[0]] if named else None
    if role == "assistant":
        if isinstance(fields.get("content"), list):
            reasoning = _read_thinking_parts(where, fields, reasoning, unread)
        if REASONING_DETAILS in fields:
            reasoning = _read_details(where, fields.pop(REASONING_DETAILS), reasoning, unread)
    if reasoning is None:
        return fields
    if not isinstance(reasoning, str):
        raise RowError(
            Reason.INVALID_CONTENT,
            f"{where}: the reasoning must be a string, found {describe_type(reasoning)}",
        )
    unread += [key for key in named if fields[key] != reasoning]
    return {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _read_thinking_parts(
    where: str, fields: dict[str, Any], reasoning: Any, unread: list[str]
) -> Any:
    """Move the `thinking` parts out of the content; return the reasoning. Raises RowError."""
    unread += [f"content.{key}" for key in list_unread_thinking_keys(fields["content"])]
    thinking, others = pop_thinking(where, fields["content"])
    if thinking is None:
        return reasoning
    if reasoning not in (None, thinking):
        raise RowError(
            Reason.INVALID_CONTENT,
            f"{where}: a thinking part and another reasoning that differs; keep one of them",
        )
    fields["content"] = others or ""
    return thinking


def _read_details(where: str, details: Any, reasoning: Any, unread: list[str]) -> Any:
    """Return the reasoning, from `reasoning_details` if it is not known yet; raise RowError.

    Details that add something which is not read, such as encrypted ones, are added to `unread`.
    """
    if not isinstance(details, list) or not all(isinstance(detail, dict) for detail in details):
        raise RowError(
            Reason.INVALID_CONTENT, f'{where}: "{REASONING_DETAILS}" must be a list of objects'
        )
    found = [detail.get(_DETAIL_TEXTS.get(str(detail.get("type")), "")) for detail in details]
    texts = [text for text in found if isinstance(text, str)]
    if reasoning is None and details and not texts:
        raise RowError(
            Reason.INVALID_CONTENT,
            f'{where}: "{REASONING_DETAILS}" has no text or summary, only the type '
            f"{quote_name(details[0].get('type'))}",
        )
    if len(texts) < len(found) or reasoning not in (None, "".join(texts), "\n".join(texts)):
        unread.append(REASONING_DETAILS)
    keys = [key for detail in details for key in detail if key not in _DETAIL_KEYS]
    unread += [f"{REASONING_DETAILS}.{key}" for key in keys]
    return "\n".join(texts) if reasoning is None and texts else reasoning
