"""Control tokens that are spelled in given text: found, and marked.

Given is what users, systems, developers and tools say, and what the tools are. An assistant's text
is what the model is to write, so what it spells is meant. A mark stands behind the first character
of a control token: it tells such a token apart wherever the text goes, and neither a template nor a
tokenizer takes the two for the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from mtpack.input.dialogue import Dialogue, Message

_LINK = "\0"  # between texts that are searched together; no control token has it
# A Unicode noncharacter, as the marks of template/marking.py, which end at U+FDD4.
_MARK = "\ufdd5"


def with_marks(text: str, starts: Sequence[int]) -> str:
    """Put a mark behind the first character of each control token; `starts` ascend.

    >>> with_marks("a<s>b", [1]) == "a<" + "\\ufdd5" + "s>b"
    True
    """
    cuts = [0, *(start + 1 for start in starts), len(text)]
    return _MARK.join(text[first:last] for first, last in pairwise(cuts))


def without_marks(text: str) -> tuple[str, list[int]]:
    """Take the marks out; return the text and where the marked tokens start in it.

    >>> without_marks("a<" + "\\ufdd5" + "s>b")
    ('a<s>b', [1])
    """
    pieces = text.split(_MARK)
    return "".join(pieces), [behind - 1 for behind in accumulate(map(len, pieces[:-1]))]


def place_without_marks(marked: str, place: int) -> int:
    """Return where a place in a marked text lies once the marks are out."""
    return place - marked.count(_MARK, 0, place)


@dataclass(frozen=True, slots=True)
class SpelledToken:
    """A control token in given text."""

    where: str
    """The message, or the tools, for the words of an error."""
    content: str


class SpelledTokens:
    """Finds and marks the control tokens that given text spells."""

    def __init__(self, control_tokens: Iterable[str]) -> None:
        """Take the contents of the control tokens."""
        longest_first = sorted(control_tokens, key=len, reverse=True)
        one = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._one = re.compile(one)
        self._first_characters = {content[0] for content in longest_first}
        # Those that overlap another as well: none of them may come to life when the other is text.
        self._start = re.compile(f"(?={one})")

    def first_in(self, dialogue: Dialogue) -> SpelledToken | None:
        """Return the first control token that the given text of a dialogue spells."""
        messages = dialogue.texts_alone
        # Quicker than to choose who says what, and nearly always enough.
        if messages is not None and not self._may_be_in(messages.searched):
            return None
        if not self._search(_given_texts(dialogue.messages, dialogue.tools)):
            return None
        for index, message in enumerate(dialogue.messages):
            if found := self._search(_given_texts((message,), None)):
                return SpelledToken(f"message {index} ({message.role})", found[0])
        found = self._search(_given_texts((), dialogue.tools))
        return SpelledToken("the tools", found[0]) if found else None

    def _search(self, texts: list[str]) -> re.Match[str] | None:
        text = _LINK.join(texts)
        return self._one.search(text) if self._may_be_in(text) else None

    def _may_be_in(self, text: str) -> bool:
        """Look for first characters alone, which takes a hundredth of the time of a search."""
        for first in self._first_characters:  # noqa: SIM110 (`any` takes three times as long)
            if first in text:
                return True
        return False

    def starts_in(self, text: str) -> list[int]:
        """Return where control tokens start in a text, those that overlap another included."""
        return [match.start() for match in self._start.finditer(text)]

    def mark(self, dialogue: Dialogue) -> Dialogue:
        """Return the dialogue with marks in the control tokens that its given text spells."""
        return dialogue._replace(
            messages=tuple(
                message
                if message.role == "assistant"
                else message._replace(fields=self._marked_fields(message.fields))
                for message in dialogue.messages
            ),
            tools=self._marked(dialogue.tools),
        )

    def _marked_fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        marked: dict[str, Any] = self._marked(fields)
        if isinstance(fields.get("content"), list):
            marked["content"] = self._marked_parts(fields["content"])
        return marked

    def _marked_parts(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Mark the text of content parts, which may spell a token together."""
        starts = self.starts_in("".join(part["text"] for part in parts))
        marked = []
        first = 0
        for part in parts:
            last = first + len(part["text"])
            within = [start - first for start in starts if first <= start < last]
            marked.append(self._marked(part) | {"text": with_marks(part["text"], within)})
            first = last
        return marked

    def _marked(self, value: Any) -> Any:
        if isinstance(value, str):
            return with_marks(value, self.starts_in(value))
        if isinstance(value, list):
            return [self._marked(item) for item in value]
        if isinstance(value, dict):
            return {self._marked(key): self._marked(item) for key, item in value.items()}
        return value


def _given_texts(messages: Sequence[Message], tools: list[Any] | None) -> list[str]:
    texts: list[str] = []
    for message in messages:
        if message.role == "assistant":
            continue
        content = message.fields.get("content")
        if isinstance(content, str) and len(message.fields) == 2:  # the other is the role
            texts.append(content)
            continue
        if isinstance(content, list):  # parts, which may spell a token together
            texts.append("".join(part["text"] for part in content))
        _collect(message.fields, texts)
    _collect(tools, texts)
    return texts


def _collect(value: Any, texts: list[str]) -> None:
    """Add every string in a JSON value to `texts`."""
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            texts.append(key)
            _collect(item, texts)
    elif isinstance(value, list):
        for item in value:
            _collect(item, texts)
