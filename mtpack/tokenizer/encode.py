"""Text to ids with the range of characters that every token stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mtpack.errors import SetupError
from mtpack.tokenizer.loading import LoadedTokenizer, is_tokenizer_failure
from mtpack.turns import Bools, Int32

_BATCH = 64  # texts encoded at a time; their offsets are Python objects until they are arrays


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One text as tokens. Token t stands for the characters [starts[t], ends[t])."""

    ids: Int32
    """(tokens,)"""
    starts: Int32
    """(tokens,)"""
    ends: Int32
    """(tokens,)"""

    def inside(self, start: int, end: int) -> Bools:
        """Return which tokens lie wholly inside the characters [start, end), (tokens,).

        A token without characters of its own (a SentencePiece space before the first character)
        lies where the text goes on.
        """
        return (self.starts >= start) & (self.ends <= end) & (self.starts < end)

    def across(self, position: int) -> int:
        """Return how many tokens stand for characters on both sides of `position`."""
        return int(np.count_nonzero((self.starts < position) & (self.ends > position)))


def encode_texts(tokenizer: LoadedTokenizer, texts: Sequence[str]) -> Iterator[EncodedText]:
    """Encode each text as a whole; no special token is added to what it says."""
    for first in range(0, len(texts), _BATCH):
        batch = texts[first : first + _BATCH]
        try:
            encodings = tokenizer.backend.encode_batch(batch, add_special_tokens=False)
        except BaseException as error:
            if is_tokenizer_failure(error):
                raise SetupError(f"{tokenizer.source}: the tokenizer failed ({error})") from error
            raise
        for text, encoding in zip(batch, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int32)
            offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
            starts, ends = offsets[:, 0].copy(), offsets[:, 1].copy()
            if tokenizer.added_tokens.swallowing:
                _give_space_back(tokenizer.added_tokens.swallowing, text, ids, starts, ends)
            yield EncodedText(ids, starts, ends)


def _give_space_back(
    swallowing: dict[int, str], text: str, ids: Int32, starts: Int32, ends: Int32
) -> None:
    """Let tokens that swallow white space stand for their own characters only.

    Otherwise phi-3's `<|end|>`, which takes the newline behind it, would reach beyond its turn.
    """
    for token in np.flatnonzero(np.isin(ids, list(swallowing))).tolist():
        content = swallowing[int(ids[token])]
        found = text.find(content, int(starts[token]), int(ends[token]))
        if found >= 0:
            starts[token], ends[token] = found, found + len(content)
