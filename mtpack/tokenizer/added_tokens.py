"""The tokens that a tokenizer cuts out of a text before anything else: control tokens, tags."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass

import tokenizers


@dataclass(frozen=True, slots=True)
class AddedToken:
    """One added token, and how it behaves in text."""

    id: int
    content: str
    special: bool
    swallows_space: bool
    """It takes the white space beside it into itself (`lstrip`, `rstrip`)."""
    cuts: bool
    """Found in any text as it stands: what is left and right of it is encoded apart."""


class AddedTokens:
    """All added tokens of a tokenizer."""

    def __init__(self, tokens: Iterable[AddedToken], end_of_sequence: str | None) -> None:
        """Take the tokens, and the one that ends a sequence whether it is called special or not."""
        self.tokens = tuple(tokens)
        self.swallowing = {token.id: token.content for token in self.tokens if token.swallows_space}
        self._cutting = tuple(token.content for token in self.tokens if token.cuts)
        self.control = {
            token.id: token.content
            for token in self.tokens
            if token.special or token.content == end_of_sequence
        }
        """Contents by id: control tokens are those called special, and the one named here."""
        self._ending = tuple(self.control.values())
        longest_first = sorted((token.content for token in self.tokens), key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def end_a_turn(self, text: str) -> bool:
        """Return whether `text` ends in a control token."""
        return text.endswith(self._ending)

    def control_token_behind(self, text: str) -> str:
        """Return the control token that `text` ends in, the longest if in doubt; or nothing."""
        ending = (token for token in self._ending if text.endswith(token))
        return max(ending, key=len, default="")

    def cut_behind(self, text: str) -> bool:
        """Return whether the ids of `text` can't depend on what follows it."""
        return text.endswith(self._cutting)

    def surely_end_a_turn(self, ending: str) -> bool | None:
        """Return whether any text with this ending ends in a control token, or None if some do."""
        return _surely_ends(ending, self._ending)

    def surely_cut_behind(self, ending: str) -> bool | None:
        """Return `cut_behind` for any text with this ending, or None if it is not always so."""
        return _surely_ends(ending, self._cutting)

    def last_boundary(self, text: str, limit: int) -> int:
        """Return the last position up to `limit` where an added token of `text` starts or ends."""
        boundary = 0
        for match in self._any.finditer(text):
            if match.start() > limit:
                break
            boundary = match.end() if match.end() <= limit else match.start()
        return boundary

    def control_tokens_in(self, text: str, ordinary: Container[int]) -> list[int]:
        """Return where control tokens start in `text`; those that start at `ordinary` are none."""
        control = frozenset(self.control.values())
        starts: list[int] = []
        position = 0
        while found := self._any.search(text, position):
            position = found.end()
            if found[0] in control and found.start() in ordinary:
                position = found.start() + 1
            elif found[0] in control:
                starts.append(found.start())
        return starts


def _surely_ends(ending: str, tokens: tuple[str, ...]) -> bool | None:
    if ending.endswith(tokens):
        return True
    return None if any(token.endswith(ending) for token in tokens) else False


def added_tokens_of(backend: tokenizers.Tokenizer, end_of_sequence: str | None) -> AddedTokens:
    """Collect the added tokens of a loaded tokenizer."""
    return AddedTokens(
        (
            AddedToken(
                id=number,
                content=token.content,
                special=token.special,
                swallows_space=token.lstrip or token.rstrip,
                cuts=not (token.normalized or token.single_word),
            )
            for number, token in backend.get_added_tokens_decoder().items()
            if token.content
        ),
        end_of_sequence,
    )
