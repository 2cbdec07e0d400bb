"""The keys of a row next to its messages: what they mean, in every format.

Each function removes the keys that it reads from the fields of a row, so that what is left has no
meaning.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mtpack.input.dialogue import Messages, Reason
from mtpack.input.json_value import parse_nested
from mtpack.input.row_errors import RowError, describe_type, quote_name

_TEMPLATE_ARGS = "chat_template_kwargs"
_THINKING = "enable_thinking"
# What a render sets itself.
_RESERVED = ("messages", "tools", "add_generation_prompt")
_CHOSEN = ("chosen", "chosen_response", "chosen_messages")
_REJECTED = ("rejected", "rejected_response", "rejected_messages")
_VERDICTS = ("label", "kto_tag")
"""KTO: whether the answer is a good example."""
# Keys of images, videos and audios, and the placeholder that each has in the texts.
_PLACEHOLDERS = {
    **dict.fromkeys(("images", "image"), "<image>"),
    **dict.fromkeys(("videos", "video"), "<video>"),
    **dict.fromkeys(("audios", "audio"), "<audio>"),
}
COMMON_KEYS = (
    *("system", "tools", "functions", _TEMPLATE_ARGS, _THINKING),
    *(*_CHOSEN, *_REJECTED, *_VERDICTS),
)
"""The keys that are read in every format."""
MEANINGFUL_KEYS = frozenset((*COMMON_KEYS, *_PLACEHOLDERS))
"""`COMMON_KEYS`, and those of which only the presence counts."""


def pop_system(fields: dict[str, Any]) -> Messages:
    """Return a row's `system` as a list of one message, or no message; raise RowError."""
    system = fields.pop("system", "")
    if system == "":  # tables have the column, with a value or without
        return []
    if not isinstance(system, str):
        raise RowError(
            Reason.INVALID_ROW, f'"system" must be a string, found {describe_type(system)}'
        )
    return [{"role": "system", "content": system}]


def pop_template_args(fields: dict[str, Any]) -> dict[str, Any] | None:
    """Return the variables of the chat template that a row sets; raise RowError.

    `chat_template_kwargs` has the meaning that it has in the requests to vLLM and SGLang.
    """
    if _TEMPLATE_ARGS not in fields and _THINKING not in fields:
        return None
    args = fields.pop(_TEMPLATE_ARGS, {})
    args = parse_nested(args, Reason.INVALID_ROW, f'"{_TEMPLATE_ARGS}" is')
    if not isinstance(args, dict):
        raise RowError(
            Reason.INVALID_ROW,
            f'"{_TEMPLATE_ARGS}" must be an object, found {describe_type(args)}',
        )
    args = {key: value for key, value in args.items() if value is not None}
    for key in args:
        if key in _RESERVED or not key.isidentifier():
            raise RowError(
                Reason.INVALID_ROW,
                f'"{_TEMPLATE_ARGS}": a row can\'t set {quote_name(key)}; remove it',
            )
    if _THINKING in fields:
        switch = fields.pop(_THINKING)
        if type(switch) is not bool:
            raise RowError(Reason.INVALID_ROW, f'"{_THINKING}" must be true or false')
        if args.setdefault(_THINKING, switch) is not switch:
            raise RowError(
                Reason.INVALID_ROW, f'"{_THINKING}" and "{_TEMPLATE_ARGS}" contradict each other'
            )
    return args or None


def refuse_preferences(fields: dict[str, Any], *, chose_messages: bool) -> None:
    """Raise RowError for a row that has a rejected answer, or is a bad example itself.

    chose_messages: whether the user has named the messages to train (`--messages-key`).
    """
    rejected = [key for key in _REJECTED if _has_content(fields.get(key))]
    if rejected and not chose_messages:
        chosen = [key for key in _CHOSEN if _has_content(fields.get(key))]
        found = " and ".join(f'"{key}"' for key in (*chosen[:1], *rejected[:1]))
        raise RowError(
            Reason.PREFERENCE_ROW,
            f"the row has {found}: it compares answers, so mtpack can't train it; keep the answer "
            'to train as "completion", or name the messages to train with --messages-key',
        )
    for key in _VERDICTS:
        if fields.get(key) is False:
            raise RowError(
                Reason.PREFERENCE_ROW,
                f'"{key}" is false: the answer is a bad example (KTO), so it is not trained; '
                "remove such rows",
            )
        if fields.get(key) is True:
            del fields[key]


def _has_content(value: Any) -> bool:
    return bool(value) and not isinstance(value, bool)


def refuse_media(fields: dict[str, Any], messages: Messages) -> None:
    """Raise RowError if a row has images, videos or audios that its texts refer to."""
    for key, placeholder in _PLACEHOLDERS.items():
        if fields.get(key) and any(placeholder in text for text in _list_texts(messages)):
            raise RowError(
                Reason.MEDIA_ROW,
                f'the row has "{key}" and {placeholder} in its text; mtpack packs text only',
            )


def _list_texts(messages: Messages) -> Collection[str]:
    contents = [message["content"] for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return [text for text in (*contents, *texts) if isinstance(text, str)]
