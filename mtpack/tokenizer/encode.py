"""Texts to ids, and the part of its text that every token stands for.

Many texts are encoded at a time, into flat arrays: no Python object is made for a token. Where
every token of a vocabulary stands for bytes of its own (`ByteLevel`), its place follows from the
lengths of the tokens before it; other vocabularies take the offsets that `tokenizers` gives. What
comes out is the same, whichever engine made the ids.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers

from mtpack.errors import SetupError
from mtpack.sampled_check import Audit
from mtpack.token_batch import Int32, Int64, offsets_from_lengths
from mtpack.tokenizer.byte_level import ByteLevel
from mtpack.tokenizer.engines import Engine, EngineFailedError, FlatTokens, reference_engine
from mtpack.tokenizer.loading import LoadedTokenizer, failures_named

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


@dataclass(frozen=True, slots=True)
class Positions:
    """Where the characters of consecutive texts stand: a position counts UTF-8 bytes of all."""

    texts: Int64
    """(texts + 1,): where each text starts, and where the last one ends."""
    _characters: Int64
    """(texts + 1,): the same, counted in characters."""
    _of_characters: Int64 | None
    """(characters + 1,): where each character starts; None where each takes one byte."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> Positions:
        """Count the bytes of texts without half surrogate pairs."""
        characters = offsets_from_lengths(np.fromiter(map(len, texts), np.int64, len(texts)))
        if all(map(str.isascii, texts)):
            return cls(characters, characters, None)
        # The last byte starts where the last text ends. One by one, since a text that an engine has
        # encoded keeps its bytes: a sixth of the time for a joined one.
        joined = b"".join([*map(str.encode, texts), b"\0"])
        starts = np.frombuffer(joined, np.int8) >= -64  # all other bytes continue a character
        of_characters = np.flatnonzero(starts)
        return cls(of_characters[characters], characters, of_characters)

    def at(self, texts: Int64, characters: Int32 | Int64) -> Int64:
        """Return the positions of characters, each counted within its text; alike in shape."""
        counted = self._characters[texts] + characters
        return counted if self._of_characters is None else self._of_characters[counted]


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Texts as tokens, one text behind the other.

    Text k has the tokens `offsets[k]:offsets[k+1]`; token t stands for [starts[t], ends[t]), in
    positions. Both ascend; a token may share its place with the next one (parts of a character)
    or stand for nothing (a SentencePiece space before the first character).
    """

    ids: Int32
    """(tokens,)"""
    offsets: Int64
    """(texts + 1,)"""
    starts: Int64
    """(tokens,)"""
    ends: Int64
    """(tokens,)"""
    positions: Positions

    def first_token_starting_at(self, texts: Int64, positions: Int64) -> Int64:
        """Return the first token of each text that starts at or behind a position, alike in shape.

        Where there is none, the one behind the text's last.
        """
        return self._within(texts, np.searchsorted(self.starts, positions, side="left"))

    def first_token_ending_after(self, texts: Int64, positions: Int64) -> Int64:
        """Return the first token of each text that ends behind a position, alike in shape."""
        return self._within(texts, np.searchsorted(self.ends, positions, side="right"))

    def _within(self, texts: Int64, tokens: Int64) -> Int64:
        return np.clip(tokens, self.offsets[texts], self.offsets[texts + 1])


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """Encodes texts as a whole; no special token is added to what they say."""

    tokenizer: LoadedTokenizer
    engine: Engine
    """What makes the ids, where it need not tell the places of tokens."""
    byte_level: ByteLevel | None
    """What tells the places of tokens; None where only `tokenizers` can."""
    audit: Audit | None = None
    """Which texts `tokenizers` encodes as well, to compare the ids."""

    def encode(
        self, texts: Sequence[str], rows: Sequence[int], known: Mapping[int, EncodedText]
    ) -> EncodedTexts:
        """Encode texts, but for those whose tokens are `known` already, by number.

        rows: of each text, the row that it is of; some rows are audited. Raises SetupError where
        the tokenizer fails, EngineFailedError where only the engine does, or differs.
        """
        if self.byte_level is None:
            positions = Positions.of(texts)
            unknown = [number for number in range(len(texts)) if number not in known]
            by_number = {**known, **self._by_offsets(texts, unknown)}
            return _joined(
                [_placed(by_number[number], number, positions) for number in range(len(texts))],
                positions,
            )
        unknown_texts = ["" if number in known else text for number, text in enumerate(texts)]
        flat = self.engine.encode(unknown_texts if known else texts)
        self._compare(flat, unknown_texts, rows)
        positions = Positions.of(texts)
        edges = offsets_from_lengths(self.byte_level.lengths[flat.ids])
        fits = np.diff(edges[flat.offsets]) == np.diff(positions.texts)
        if self.byte_level.normal_form is not None:
            fits &= [unicodedata.is_normalized(self.byte_level.normal_form, text) for text in texts]
        if fits.all():
            return EncodedTexts(flat.ids, flat.offsets, edges[:-1], edges[1:], positions)
        misfits = [number for number in np.flatnonzero(~fits).tolist() if number not in known]
        by_number = {**known, **self._by_offsets(texts, misfits)}
        parts = []
        for number in range(len(texts)):
            if number in by_number:
                parts.append(_placed(by_number[number], number, positions))
                continue
            first, last = flat.offsets[number : number + 2].tolist()
            moved = edges[first : last + 1] + (positions.texts[number] - edges[first])
            parts.append((flat.ids[first:last], moved[:-1], moved[1:]))
        return _joined(parts, positions)

    def _compare(self, found: FlatTokens, texts: Sequence[str], rows: Sequence[int]) -> None:
        """Have `tokenizers` encode some of the texts, too; raise EngineFailedError on other ids."""
        if self.audit is None:
            return
        reference = reference_engine(self.tokenizer)
        for number, row in enumerate(rows):
            if not self.audit.is_due(row):
                continue
            with self.audit.timed():
                expected = reference.encode([texts[number]])
            if not np.array_equal(found.of(number), expected.ids):
                raise EngineFailedError(
                    f"{self.engine.name} gave other ids than {reference.name} for a row"
                )

    def _by_offsets(self, texts: Sequence[str], numbers: Sequence[int]) -> dict[int, EncodedText]:
        """Encode some of the texts with `tokenizers`."""
        found = encode_with_offsets(self.tokenizer, [texts[number] for number in numbers])
        return dict(zip(numbers, found, strict=True))


def encode_with_offsets(tokenizer: LoadedTokenizer, texts: Sequence[str]) -> list[EncodedText]:
    """Encode each text with `tokenizers`, which tells what characters its tokens stand for.

    Raises SetupError where it fails, or where its tokens are not in the order of the text.
    """
    return [
        _with_offsets(tokenizer, text, encoding)
        for first in range(0, len(texts), _BATCH)
        for text, encoding in _encodings(tokenizer, texts[first : first + _BATCH])
    ]


def _encodings(
    tokenizer: LoadedTokenizer, texts: Sequence[str]
) -> Iterator[tuple[str, tokenizers.Encoding]]:
    with failures_named(tokenizer.source):
        encodings = tokenizer.backend.encode_batch(texts, add_special_tokens=False)
    return zip(texts, encodings, strict=True)


def _with_offsets(
    tokenizer: LoadedTokenizer, text: str, encoding: tokenizers.Encoding
) -> EncodedText:
    ids = np.array(encoding.ids, dtype=np.int32)
    offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
    starts, ends = offsets[:, 0].copy(), offsets[:, 1].copy()
    if tokenizer.added_tokens.swallowing:
        _give_space_back(tokenizer.added_tokens.swallowing, text, ids, starts, ends)
    if (np.diff(starts) < 0).any() or (np.diff(ends) < 0).any():
        raise SetupError(
            f"{tokenizer.source}: the tokenizer's offsets go back and forth, so which tokens are a "
            "turn's can't be told"
        )
    return EncodedText(ids, starts, ends)


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


_Part = tuple[Int32, Int64, Int64]
"""Ids, starts and ends of one text, in positions."""


def _placed(encoded: EncodedText, number: int, positions: Positions) -> _Part:
    text: Int64 = np.full(len(encoded.ids), number, dtype=np.int64)
    return encoded.ids, positions.at(text, encoded.starts), positions.at(text, encoded.ends)


def _joined(parts: Sequence[_Part], positions: Positions) -> EncodedTexts:
    nothing: _Part = np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64)
    ids, starts, ends = zip(nothing, *parts, strict=True)
    return EncodedTexts(
        ids=np.concatenate(ids),
        offsets=offsets_from_lengths(np.array([len(part[0]) for part in parts], dtype=np.int64)),
        starts=np.concatenate(starts),
        ends=np.concatenate(ends),
        positions=positions,
    )
