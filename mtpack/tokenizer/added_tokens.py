"""Added tokens: control tokens and tags, which a tokenizer cuts out of a text first."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass

import tokenizers


@dataclass(frozen=True, slots=True)
class AddedToken:
    """One added token, and how a tokenizer finds it in text."""

    id: int
    content: str
    special: bool
    absorbs_space: bool
    """Whether it includes the white space next to it (`lstrip`, `rstrip`)."""
    cuts: bool
    """Whether it is always recognized; the text before and after it is then encoded separately."""


class AddedTokens:
    """All added tokens of a tokenizer."""

    def __init__(self, tokens: Iterable[AddedToken], stops: Iterable[str] = ()) -> None:
        """Store the tokens.

        stops: the tokens at which generation stops. They are control tokens, even if they are not
        marked special.
        """
        self.tokens = tuple(tokens)
        self.stops = tuple(stops)
        self.absorbing = {token.id: token.content for token in self.tokens if token.absorbs_space}
        self.cutting = tuple(token.content for token in self.tokens if token.cuts)
        """Tokens that cut: the ids of a text that ends in one depend on no later text."""
        self.control = {
            token.id: token.content
            for token in self.tokens
            if token.special or token.content in self.stops
        }
        """Contents by id, of the tokens that are marked special and of `stops`."""
        self.ending = tuple(self.control.values())
        self._any = compile_alternation(token.content for token in self.tokens)

    def find_trailing_control_token(self, text: str) -> str:
        """Return the control token that `text` ends in, the longest if several; "" if none."""
        ending = (token for token in self.ending if text.endswith(token))
        return max(ending, key=len, default="")

    def find_last_boundary(self, text: str, limit: int) -> int:
        """Return the last position up to `limit` where an added token of `text` starts or ends."""
        boundary = 0
        for match in self._any.finditer(text):
            if match.start() > limit:
                break
            boundary = match.end() if match.end() <= limit else match.start()
        return boundary

    def find_token_start(self, text: str, position: int) -> int:
        """Return `position`, or the start of the added token of `text` in which it lies."""
        for match in self._any.finditer(text):
            if match.start() >= position:
                break
            if match.end() > position:
                return match.start()
        return position

    def find_tokens(
        self, text: str, contents: Container[str], ordinary: Container[int]
    ) -> list[tuple[int, str]]:
        """Return start and content of the added tokens with these contents in a text, ascending.

        ordinary: no such token starts there.
        """
        tokens: list[tuple[int, str]] = []
        position = 0
        while found := self._any.search(text, position):
            position = found.end()
            if found[0] in contents and found.start() in ordinary:
                position = found.start() + 1
            elif found[0] in contents:
                tokens.append((found.start(), found[0]))
        return tokens


def compile_alternation(contents: Iterable[str]) -> re.Pattern[str]:
    """Return the pattern of any of these texts, the longest where several start."""
    longest_first = sorted(contents, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def collect_added_tokens(backend: tokenizers.Tokenizer, stops: Iterable[str]) -> AddedTokens:
    """Return the added tokens of a loaded tokenizer; stops: as for `AddedTokens`."""
    return AddedTokens(
        (
            AddedToken(
                id=number,
                content=token.content,
                special=token.special,
                absorbs_space=token.lstrip or token.rstrip,
                cuts=not (token.normalized or token.single_word),
            )
            for number, token in backend.get_added_tokens_decoder().items()
            if token.content
        ),
        stops,
    )
