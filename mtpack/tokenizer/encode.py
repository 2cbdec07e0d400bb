"""Encodes texts to ids, and finds the part of the text that every token stands for.

Many texts are encoded at a time, into flat arrays: no Python object is created per token. Where
every token of a vocabulary stands for bytes of its own (`ByteLevel`), its position is the sum of
the lengths of the tokens before it. For other vocabularies, the offsets of `tokenizers` are used.
The result is the same, whichever engine computed the ids.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tokenizers

from mtpack.errors import SetupError
from mtpack.fast_path import Audit, FastPathFailedError
from mtpack.token_batch import Int32, Int64, offsets_from_lengths
from mtpack.tokenizer.byte_level import ByteLevel
from mtpack.tokenizer.engines import Engine, FlatTokens, load_reference_engine
from mtpack.tokenizer.loading import LoadedTokenizer, wrap_tokenizer_errors

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
    """Positions of characters in consecutive texts, counted in UTF-8 bytes from the first text."""

    texts: Int64
    """(texts + 1,): the start of each text, and the end of the last one."""
    _characters: Int64
    """(texts + 1,): the same, counted in characters."""
    _of_characters: Int64 | None
    """(characters + 1,): the start of each character; None if each takes one byte."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> Positions:
        """Compute the positions in texts, which have no half surrogate pairs."""
        characters = offsets_from_lengths(np.fromiter(map(len, texts), np.int64, len(texts)))
        if all(map(str.isascii, texts)):
            return cls(characters, characters, None)
        # The added last byte starts where the last text ends. The texts are encoded one by one:
        # Python caches the bytes of a text that an engine has encoded, so this takes a sixth of the
        # time of encoding the joined text.
        joined = b"".join([*map(str.encode, texts), b"\0"])
        starts = np.frombuffer(joined, np.int8) >= -64  # all other bytes continue a character
        of_characters = np.flatnonzero(starts)
        return cls(of_characters[characters], characters, of_characters)

    @property
    def are_characters(self) -> bool:
        """Whether each character takes one byte."""
        return self._of_characters is None

    def at(self, texts: Int64, characters: Int32 | Int64) -> Int64:
        """Return the positions of characters, by text and index; all arrays have one shape."""
        counted = self._characters[texts] + characters
        return counted if self._of_characters is None else self._of_characters[counted]


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Texts as tokens, one text after the other.

    Text k has the tokens `offsets[k]:offsets[k+1]`; token t stands for [starts[t], ends[t]), in
    positions: bytes of UTF-8 from the start of the first text. Both ascend; a token may have the
    same span as the next one (parts of a character) or an empty span (a SentencePiece space before
    the first character).
    """

    ids: Int32
    """(tokens,)"""
    offsets: Int64
    """(texts + 1,)"""
    starts: Int64
    """(tokens,)"""
    ends: Int64
    """(tokens,)"""
    text_offsets: Int64
    """(texts + 1,): the position of the start of each text, and of the end of the last one."""

    def find_tokens_at(self, texts: Int64, positions: Int64) -> tuple[Int64, Int64]:
        """Return for each position the first token of its text that starts at or after it.

        And likewise the first one that ends after it; that comes before the other if a token lies
        across the position. If there is none, it is the index after the last token of the text. All
        arrays have one shape.
        """
        starting = self.first_token_starting_at(texts, positions)
        # To look at the tokens before and after takes less time than another search.
        before = np.maximum(starting - 1, 0)
        after = np.minimum(starting, max(0, len(self.ids) - 1))
        ending = starting.copy()
        if len(self.ids):
            is_across = (starting > self.offsets[texts]) & (self.ends[before] > positions)
            is_empty = (starting < self.offsets[texts + 1]) & (self.ends[after] <= positions)
            unsure = np.flatnonzero(is_across | is_empty)
            ending[unsure] = self.first_token_ending_after(texts[unsure], positions[unsure])
        return starting, ending

    def first_token_starting_at(self, texts: Int64, positions: Int64) -> Int64:
        """Return the first of the tokens of `find_tokens_at`."""
        return self._clip_to_text(texts, np.searchsorted(self.starts, positions, side="left"))

    def first_token_ending_after(self, texts: Int64, positions: Int64) -> Int64:
        """Return the second of the tokens of `find_tokens_at`."""
        return self._clip_to_text(texts, np.searchsorted(self.ends, positions, side="right"))

    def _clip_to_text(self, texts: Int64, tokens: Int64) -> Int64:
        return np.clip(tokens, self.offsets[texts], self.offsets[texts + 1])


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """Encodes each text as a whole, and adds no special tokens."""

    tokenizer: LoadedTokenizer
    engine: Engine
    """Computes the ids of texts whose positions follow from `byte_level`."""
    byte_level: ByteLevel | None
    """Gives the positions of tokens; None if only `tokenizers` can."""
    audit: Audit | None = None
    """Chooses the texts that `tokenizers` encodes as well, to compare the ids; None: no audit."""

    def encode(
        self,
        texts: Sequence[str],
        rows: Int64,
        known: Mapping[int, EncodedText],
        lengths: Int64 | None = None,
    ) -> EncodedTexts:
        """Encode texts, except for those whose tokens are already in `known`, by index.

        rows: the row of each text; some rows are audited. lengths: of the texts in bytes, if they
        are known. Raises SetupError if the tokenizer fails, FastPathFailedError if only the engine
        fails or gives other ids.
        """
        if lengths is None:
            lengths = np.diff(Positions.of(texts).texts)
        text_offsets = offsets_from_lengths(lengths)
        if self.byte_level is None:
            unknown = [number for number in range(len(texts)) if number not in known]
            by_number = {**known, **self._encode_by_reference(texts, unknown)}
            parts = [
                _place(by_number[number], text, start)
                for number, (text, start) in enumerate(
                    zip(texts, text_offsets.tolist(), strict=False)
                )
            ]
            return _join(parts, text_offsets)
        unknown_texts = ["" if number in known else text for number, text in enumerate(texts)]
        flat = self.engine.encode(unknown_texts if known else texts)
        self._audit_sample(flat, unknown_texts, rows)
        edges = offsets_from_lengths(self.byte_level.lengths[flat.ids])
        fits = np.diff(edges[flat.offsets]) == lengths
        if self.byte_level.normal_form is not None:
            normal_form = self.byte_level.normal_form
            fits &= [t.isascii() or unicodedata.is_normalized(normal_form, t) for t in texts]
        if fits.all():
            return EncodedTexts(flat.ids, flat.offsets, edges[:-1], edges[1:], text_offsets)
        misfits = [number for number in np.flatnonzero(~fits).tolist() if number not in known]
        by_number = {**known, **self._encode_by_reference(texts, misfits)}
        parts = []
        for number, start in enumerate(text_offsets[:-1].tolist()):
            if number in by_number:
                parts.append(_place(by_number[number], texts[number], start))
                continue
            first, last = flat.offsets[number : number + 2].tolist()
            moved = edges[first : last + 1] + (start - edges[first])
            parts.append((flat.ids[first:last], moved[:-1], moved[1:]))
        return _join(parts, text_offsets)

    def _audit_sample(self, found: FlatTokens, texts: Sequence[str], rows: Int64) -> None:
        """Encode some texts with `tokenizers` too; raise FastPathFailedError if the ids differ."""
        if self.audit is None:
            return
        reference = load_reference_engine(self.tokenizer)
        for number in self.audit.draw(rows):
            with self.audit.measure():
                expected = reference.encode([texts[number]])
            if not np.array_equal(found.of(number), expected.ids):
                raise FastPathFailedError(
                    self.engine.name,
                    f"{self.engine.name} gave other ids than {reference.name} for a row",
                )

    def _encode_by_reference(
        self, texts: Sequence[str], numbers: Sequence[int]
    ) -> dict[int, EncodedText]:
        """Encode some of the texts with `tokenizers`; return them by index."""
        found = encode_with_offsets(self.tokenizer, [texts[number] for number in numbers])
        return dict(zip(numbers, found, strict=True))


def encode_with_offsets(tokenizer: LoadedTokenizer, texts: Sequence[str]) -> list[EncodedText]:
    """Encode each text with `tokenizers`, and find the characters that its tokens stand for.

    Raises SetupError if it fails, or if its tokens are not in the order of the text.
    """
    encoded: list[EncodedText] = []
    for first in range(0, len(texts), _BATCH):
        batch = texts[first : first + _BATCH]
        with wrap_tokenizer_errors(tokenizer.source):
            encodings = tokenizer.backend.encode_batch(batch, add_special_tokens=False)
        encoded += map(partial(_to_encoded_text, tokenizer), batch, encodings)
    return encoded


def _to_encoded_text(
    tokenizer: LoadedTokenizer, text: str, encoding: tokenizers.Encoding
) -> EncodedText:
    ids = np.array(encoding.ids, dtype=np.int32)
    offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
    starts, ends = offsets[:, 0].copy(), offsets[:, 1].copy()
    if tokenizer.added_tokens.absorbing:
        _exclude_absorbed_space(tokenizer.added_tokens.absorbing, text, ids, starts, ends)
    if (np.diff(starts) < 0).any() or (np.diff(ends) < 0).any():
        raise SetupError(
            f"{tokenizer.source}: the tokenizer's offsets are not in the order of the text, so the "
            "tokens of a turn can't be found"
        )
    return EncodedText(ids, starts, ends)


def _exclude_absorbed_space(
    absorbing: dict[int, str], text: str, ids: Int32, starts: Int32, ends: Int32
) -> None:
    """Reduce tokens that absorb white space to their own characters, in place.

    Otherwise phi-3's `<|end|>`, which includes the newline after it, would extend beyond its turn.
    """
    for token in np.flatnonzero(np.isin(ids, list(absorbing))).tolist():
        content = absorbing[int(ids[token])]
        found = text.find(content, int(starts[token]), int(ends[token]))
        if found >= 0:
            starts[token], ends[token] = found, found + len(content)


_Part = tuple[Int32, Int64, Int64]
"""The ids of one text, and the starts and ends of its tokens as positions."""


def _place(encoded: EncodedText, text: str, start: int) -> _Part:
    """Return the tokens of a text that starts at a position."""
    positions = Positions.of([text])
    first: Int64 = np.zeros(len(encoded.ids), dtype=np.int64)
    starts, ends = positions.at(first, encoded.starts), positions.at(first, encoded.ends)
    return encoded.ids, start + starts, start + ends


def _join(parts: Sequence[_Part], text_offsets: Int64) -> EncodedTexts:
    empty: _Part = np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64)
    ids, starts, ends = zip(empty, *parts, strict=True)
    return EncodedTexts(
        ids=np.concatenate(ids),
        offsets=offsets_from_lengths(np.array([len(part[0]) for part in parts], dtype=np.int64)),
        starts=np.concatenate(starts),
        ends=np.concatenate(ends),
        text_offsets=text_offsets,
    )
