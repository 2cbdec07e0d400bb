"""Reads the content of a message: a text, text parts, or the result of a tool."""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Reason
from mtpack.input.row_errors import RowError, describe_type, quote_name

# The names of a content part's text: the standard one, and those that other tools write.
_PART_TEXT_KEYS = ("text", "content", "value")
_THINKING = "thinking"
_PART_KEYS = frozenset(("type", "text"))
_THINKING_PART_KEYS = frozenset(("type", _THINKING))
# The types of parts that are not text, in the chat APIs and in the processors of transformers.
_MEDIA_TYPES = frozenset(
    f"{prefix}{medium}{suffix}"
    for medium in ("image", "audio", "video", "file")
    for prefix in ("", "input_")
    for suffix in ("", "_url")
)


def read_content(where: str, role: str, content: Any) -> Any:
    """Return a content that is not missing, its parts with `text`; raise RowError.

    The result of a tool may be any value.
    """
    if isinstance(content, list) and (role != "tool" or _has_parts(content)):
        return [_read_part(where, part) for part in content]
    if not isinstance(content, str) and role != "tool":
        raise RowError(
            Reason.INVALID_CONTENT,
            f'{where}: "content" must be a string or a list of text parts, '
            f"found {describe_type(content)}",
        )
    return content


def pop_thinking(where: str, content: list[Any]) -> tuple[str | None, list[Any]]:
    """Return the text of the `thinking` parts that open a content, and the parts after them.

    The text is None if there are none. It may itself be a list of text parts, as Mistral writes it.
    Raises RowError, also for such parts between or after others: they are no reasoning before the
    answer.
    """
    num_thinking = 0
    for part in content:
        if not isinstance(part, dict) or part.get("type") != _THINKING:
            break
        num_thinking += 1
    others = content[num_thinking:]
    if any(isinstance(part, dict) and part.get("type") == _THINKING for part in others):
        raise RowError(
            Reason.INVALID_CONTENT,
            f"{where}: a thinking part after other parts; the reasoning must come first",
        )
    texts = [_read_thinking(where, part.get(_THINKING)) for part in content[:num_thinking]]
    return ("\n".join(texts) if texts else None), others


def _read_thinking(where: str, thinking: Any) -> str:
    if isinstance(thinking, list):
        return "\n".join([_read_part(where, part)["text"] for part in thinking])
    if not isinstance(thinking, str):
        raise RowError(Reason.INVALID_CONTENT, f'{where}: a thinking part has no "thinking"')
    return thinking


def list_unread_part_keys(role: str, content: Any) -> list[str]:
    """Return the keys of text parts that have no meaning."""
    if not is_text_parts(role, content):
        return []
    return [key for part in content for key in part if key not in _PART_KEYS]


def list_unread_thinking_keys(content: list[Any]) -> list[str]:
    """Return the keys of thinking parts that have no meaning, such as `signature`."""
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == _THINKING]
    return [
        key
        for part in parts
        for key, value in part.items()
        if key not in _THINKING_PART_KEYS and value is not None
    ]


def is_text_parts(role: str, content: Any) -> bool:
    """Return whether the content of a message is a list of text parts.

    The result of a tool may be any other list. A part of a tool's content has the type `text`, or
    a text alone.
    """
    if role != "tool" or not isinstance(content, list):
        return isinstance(content, list)
    return all(
        isinstance(part, dict)
        and isinstance(part.get("text"), str)
        and (part.get("type") == "text" or len(part) == 1)
        for part in content
    )


def make_text_parts(*texts: str) -> list[dict[str, Any]]:
    """Return a content that is a list of text parts."""
    return [{"type": "text", "text": text} for text in texts]


def _has_parts(content: list[Any]) -> bool:
    """Return whether the content of a tool's message is a list of parts, of text or of others."""
    return all(
        isinstance(part, dict)
        and (
            part.get("type") == "text"
            or (isinstance(part.get("type"), str) and part["type"] in _MEDIA_TYPES)
            or (len(part) == 1 and "text" in part)
        )
        for part in content
    )


def _read_part(where: str, part: Any) -> dict[str, Any]:
    if not isinstance(part, dict):
        detail = f"a content part must be an object, found {describe_type(part)}"
    elif (part_type := part.get("type", "text")) != "text":
        detail = f"a content part has the type {quote_name(part_type)}; mtpack packs text only"
    else:
        fields = {key: value for key, value in part.items() if value is not None}
        found = next((key for key in _PART_TEXT_KEYS if key in fields), "text")
        if isinstance(fields.get(found), str):
            if found != "text":
                fields["text"] = fields.pop(found)
            return fields
        detail = 'a content part has no "text"'
    raise RowError(Reason.INVALID_CONTENT, f"{where}: {detail}")
