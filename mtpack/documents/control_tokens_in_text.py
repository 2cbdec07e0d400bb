"""Find and mark control tokens that are spelled in the texts of a dialogue.

Input text is the text of users, systems, developers and tools, the declarations of the tools, and
the documents that a row gives its template. Every control token counts there. The text of an
assistant is what the model has to write, so its reasoning and its calls are its own. There, only
the tokens that open or end a turn count.

A mark is one character, inserted after the first character of a control token. It identifies the
token wherever the template writes it, and with the mark neither the template nor the tokenizer
takes it for the control token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from mtpack.input.content import is_text_parts
from mtpack.input.dialogue import Dialogue, Messages
from mtpack.input.text_rows import TextRows
from mtpack.token_batch import Bools
from mtpack.tokenizer.added_tokens import compile_alternation

_SEPARATOR = "\0"  # between texts that are searched together; no control token contains it
_DOCUMENTS = "documents"  # the argument with the documents for an answer (transformers)
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
    """A control token that a text of a dialogue spells."""

    where: str
    """The message, the tools or the documents, as an error text names them."""
    content: str
    """The text of the control token."""
    in_answer: bool
    """Whether it is in the text of an assistant; otherwise it is in input text."""


class SpelledTokens:
    """Finds and marks the control tokens that the texts of dialogues spell."""

    def __init__(self, control_tokens: Iterable[str], turn_tokens: Iterable[str]) -> None:
        """Take the texts of all control tokens, and of those that count in assistants' texts."""
        self._input = TokenPattern(control_tokens)
        self._answers = TokenPattern(turn_tokens)

    def find(self, dialogue: Dialogue) -> tuple[SpelledToken, ...]:
        """Return the first control token of the input text, and the first of the assistants'.

        They are in the order of the messages.
        """
        texts = _join_texts(dialogue.messages, [dialogue.tools, _get_documents(dialogue)])
        if not self._input.find_first(texts):  # nearly always
            return ()
        texts_of_messages = [_join_texts([each], None) for each in dialogue.messages]
        found: dict[bool, SpelledToken] = {}
        for index, (role, text) in enumerate(zip(dialogue.roles, texts_of_messages, strict=True)):
            in_answer = role == "assistant"
            pattern = self._answers if in_answer else self._input
            if in_answer not in found and (content := pattern.find_first(text)):
                found[in_answer] = SpelledToken(f"message {index} ({role})", content, in_answer)
        others = {"the tools": dialogue.tools, "the documents": _get_documents(dialogue)}
        for where, value in others.items():
            if False not in found and (content := self._input.find_first(_join_texts([], value))):
                found[False] = SpelledToken(where, content, in_answer=False)
        return tuple(found.values())

    def find_rows(self, rows: TextRows) -> Bools:
        """Return for which rows `find` finds anything, (rows,)."""
        return rows.find_rows_where(
            self._input.first_bytes, lambda t: bool(self._input.find_first(t))
        )

    def mark(self, dialogue: Dialogue) -> Dialogue:
        """Return the dialogue with marks in the control tokens that its texts spell."""
        messages = [
            _mark_fields(
                message,
                (self._answers if message["role"] == "assistant" else self._input).insert_marks,
            )
            for message in dialogue.messages
        ]
        tools = _mark_value(dialogue.tools, self._input.insert_marks)
        arguments = dialogue.template_args
        if documents := _get_documents(dialogue):
            marked = _mark_value(documents, self._input.insert_marks)
            arguments = {**(arguments or {}), _DOCUMENTS: marked}
        return dialogue._replace(messages=messages, tools=tools, template_args=arguments)


class TokenPattern:
    """Finds tokens of a set in texts."""

    def __init__(self, contents: Iterable[str]) -> None:
        """Take the texts of the tokens."""
        self._one = compile_alternation(contents := tuple(contents))
        self._first_characters = {content[0] for content in contents}
        self.first_bytes = bytes({content.encode()[0] for content in contents})
        """The bytes with which the tokens begin, in UTF-8."""
        # Matches overlap: a token that overlaps another must be marked too, or it would be encoded
        # as a control token if the other one is text.
        self._start = re.compile(f"(?={self._one.pattern})")

    def find_first(self, text: str) -> str:
        """Return the first token that a text spells; "" if there is none.

        Whether a first character occurs takes 1% of the time of a full search to find out.
        """
        for first in self._first_characters:
            if first in text:
                found = self._one.search(text)
                return found[0] if found else ""
        return ""

    def find_starts(self, text: str) -> list[int]:
        """Return the starts of all tokens in a text, overlapping ones included."""
        return [match.start() for match in self._start.finditer(text)]

    def insert_marks(self, texts: Sequence[str]) -> list[str]:
        """Insert marks into texts; a token may continue from one text into the next."""
        starts = self.find_starts("".join(texts))
        marked = []
        first = 0
        for text in texts:
            last = first + len(text)
            within = [start - first for start in starts if first <= start < last]
            marked.append(insert_marks(text, within))
            first = last
        return marked


_Marker = Callable[[Sequence[str]], list[str]]


def _mark_fields(fields: dict[str, Any], marker: _Marker) -> dict[str, Any]:
    marked: dict[str, Any] = _mark_value(fields, marker)
    parts = fields.get("content")
    if parts and is_text_parts(fields["role"], parts):
        texts = marker([part["text"] for part in parts])
        pairs = zip(parts, texts, strict=True)
        marked["content"] = [_mark_value(part, marker) | {"text": text} for part, text in pairs]
    return marked


def _mark_value(value: Any, marker: _Marker) -> Any:
    if isinstance(value, str):
        return marker([value])[0]
    if isinstance(value, list):
        return [_mark_value(item, marker) for item in value]
    if isinstance(value, dict):
        return {marker([key])[0]: _mark_value(item, marker) for key, item in value.items()}
    return value


def _get_documents(dialogue: Dialogue) -> Any:
    """Return the documents that a row gives its template; None if there are none."""
    return (dialogue.template_args or {}).get(_DOCUMENTS)


def _join_texts(messages: Messages, others: Any) -> str:
    """Return every string in messages and in another value, separated."""
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and len(message) == 2:  # the other field is the role
            texts.append(content)
            continue
        if content and is_text_parts(message["role"], content):
            # A token may continue from one part into the next.
            texts.append("".join(part["text"] for part in content))
        _collect_strings(message, texts)
    _collect_strings(others, texts)
    return _SEPARATOR.join(texts)


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
