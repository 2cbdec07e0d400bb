"""Find and mark control tokens that are spelled in input text.

Input text is the text of users, systems, developers and tools, and the declarations of the tools.
The text of an assistant is not: it is what the model has to write, so its control tokens are meant
as such. A mark is one character, inserted after the first character of a control token. It
identifies the token wherever the template writes it, and with the mark neither the template nor the
tokenizer takes it for the control token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from mtpack.input.dialogue import Dialogue, Messages
from mtpack.input.message import is_text_parts

_SEPARATOR = "\0"  # between texts that are searched together; no control token contains it
# A Unicode noncharacter, like the marks of template/markers.py, which end at U+FDD4.
_MARK = "\ufdd5"


def insert_marks(text: str, starts: Sequence[int]) -> str:
    """Insert a mark after the first character of each control token; `starts` ascend.

    >>> insert_marks("a<s>b", [1]) == "a<" + "\\ufdd5" + "s>b"
    True
    """
    cuts = [0, *(start + 1 for start in starts), len(text)]
    return _MARK.join(text[first:last] for first, last in pairwise(cuts))


def remove_marks(text: str) -> tuple[str, list[int]]:
    """Return the text without its marks, and the starts of the marked tokens in it.

    >>> remove_marks("a<" + "\\ufdd5" + "s>b")
    ('a<s>b', [1])
    """
    parts = text.split(_MARK)
    return "".join(parts), [end - 1 for end in accumulate(map(len, parts[:-1]))]


def to_unmarked_position(marked: str, position: int) -> int:
    """Convert a position in a marked text to the position in the text without marks."""
    return position - marked.count(_MARK, 0, position)


@dataclass(frozen=True, slots=True)
class SpelledToken:
    """A control token that input text spells."""

    where: str
    """The message, or the tools, as an error text names them."""
    content: str
    """The text of the control token."""


class SpelledTokens:
    """Finds and marks the control tokens that input text spells."""

    def __init__(self, control_tokens: Iterable[str]) -> None:
        """Take the texts of the control tokens."""
        longest_first = sorted(control_tokens, key=len, reverse=True)
        one = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._one = re.compile(one)
        self._first_characters = {content[0] for content in longest_first}
        # Matches overlap: a token that overlaps another must be marked too, or it would be encoded
        # as a control token if the other one is text.
        self._start = re.compile(f"(?={one})")

    def find_first(self, dialogue: Dialogue) -> SpelledToken | None:
        """Return the first control token that the input text of a dialogue spells, or None."""
        texts = dialogue.joined_texts
        # Faster than selecting input text, and nearly always enough.
        if texts is not None and not self._may_occur_in(texts):
            return None
        if not self._search(_list_input_texts(dialogue.messages, dialogue.tools)):
            return None
        for index, message in enumerate(dialogue.messages):
            if found := self._search(_list_input_texts([message], None)):
                return SpelledToken(f"message {index} ({message['role']})", found[0])
        found = self._search(_list_input_texts([], dialogue.tools))
        return SpelledToken("the tools", found[0]) if found else None

    def _search(self, texts: list[str]) -> re.Match[str] | None:
        text = _SEPARATOR.join(texts)
        return self._one.search(text) if self._may_occur_in(text) else None

    def _may_occur_in(self, text: str) -> bool:
        """Return whether a first character occurs; this takes 1% of the time of a full search."""
        for first in self._first_characters:  # noqa: SIM110 (`any` is three times as slow)
            if first in text:
                return True
        return False

    def find_starts(self, text: str) -> list[int]:
        """Return the starts of all control tokens in a text, overlapping ones included."""
        return [match.start() for match in self._start.finditer(text)]

    def mark(self, dialogue: Dialogue) -> Dialogue:
        """Return the dialogue with marks in the control tokens that its input text spells."""
        messages = [
            message if message["role"] == "assistant" else self._mark_fields(message)
            for message in dialogue.messages
        ]
        tools = self._mark_value(dialogue.tools)
        return dialogue._replace(messages=messages, tools=tools, texts=None, joined_texts=None)

    def _mark_fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        marked: dict[str, Any] = self._mark_value(fields)
        if is_text_parts(fields["role"], fields.get("content")):
            marked["content"] = self._mark_parts(fields["content"])
        return marked

    def _mark_parts(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Mark the text of content parts; a token may continue from one part into the next."""
        starts = self.find_starts("".join(part["text"] for part in parts))
        marked = []
        first = 0
        for part in parts:
            last = first + len(part["text"])
            within = [start - first for start in starts if first <= start < last]
            marked.append(self._mark_value(part) | {"text": insert_marks(part["text"], within)})
            first = last
        return marked

    def _mark_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return insert_marks(value, self.find_starts(value))
        if isinstance(value, list):
            return [self._mark_value(item) for item in value]
        if isinstance(value, dict):
            return {self._mark_value(key): self._mark_value(item) for key, item in value.items()}
        return value


def _list_input_texts(messages: Messages, tools: list[Any] | None) -> list[str]:
    """Return every string in the tools and in the messages of all roles but the assistant."""
    texts: list[str] = []
    for message in messages:
        if message["role"] == "assistant":
            continue
        content = message.get("content")
        if isinstance(content, str) and len(message) == 2:  # the other field is the role
            texts.append(content)
            continue
        if content and is_text_parts(message["role"], content):
            # A token may continue from one part into the next.
            texts.append("".join(part["text"] for part in content))
        _collect_strings(message, texts)
    _collect_strings(tools, texts)
    return texts


def _collect_strings(value: Any, texts: list[str]) -> None:
    """Add every string in a JSON value to `texts`."""
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            texts.append(key)
            _collect_strings(item, texts)
    elif isinstance(value, list):
        for item in value:
            _collect_strings(item, texts)
