"""Encode texts in which some control tokens are ordinary text.

A tokenizer splits a text at its added tokens wherever they are spelled. The tokenizer that is made
here has its control tokens under other names, with a mark in them. To encode a text, this mark is
inserted into the control tokens that are meant as such. One without the mark is then text like any
other: it is encoded together with the text around it, as by a tokenizer without that token.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tokenizers

from mtpack.documents.control_tokens_in_text import insert_marks, remove_marks
from mtpack.errors import SetupError
from mtpack.token_batch import Int32
from mtpack.tokenizer.added_tokens import collect_added_tokens
from mtpack.tokenizer.encode import EncodedText, encode_with_offsets
from mtpack.tokenizer.loading import LoadedTokenizer


class NotLiteralError(Exception):
    """The tokenizer can't encode a control token as ordinary text here."""


@dataclass(frozen=True, slots=True)
class LiteralTokenizer:
    """Encodes texts in which some control tokens are ordinary text."""

    original: LoadedTokenizer
    control: dict[int, str]
    """Contents by id, of the control tokens of the original tokenizer."""
    renamed: LoadedTokenizer
    """The tokenizer with a mark in the names of its control tokens."""
    ids: Int32
    """(vocabulary of `renamed`,): the id of each token in the original tokenizer."""
    control_ids: Int32
    """The ids of the control tokens in `renamed`."""

    def encode(self, text: str, ordinary: Sequence[int]) -> EncodedText:
        """Encode a text in which the control tokens that start at `ordinary` are text.

        Raises NotLiteralError if the tokenizer still encodes one of them as a control token, or
        does not find all others that the original tokenizer finds.
        """
        meant = self._find_meant(text, frozenset(ordinary))
        encoded, num_control = self._encode_marked(text, meant)
        if num_control != len(meant) or self._has_control_token_at(ordinary, text, encoded):
            raise NotLiteralError
        return encoded

    def encode_part(self, text: str, ordinary: Sequence[int], start: int, end: int) -> EncodedText:
        """Encode the characters [start, end) of a text that `encode` accepts, without the rest."""
        meant = self._find_meant(text, frozenset(ordinary))
        meant_there = [position - start for position in meant if start <= position < end]
        return self._encode_marked(text[start:end], meant_there)[0]

    def _encode_marked(self, text: str, meant: Sequence[int]) -> tuple[EncodedText, int]:
        """Encode a text whose control tokens start at `meant`; return the number found, too."""
        (found,) = encode_with_offsets(self.renamed, [insert_marks(text, meant)])
        marks: Int32 = np.array([start + mark for mark, start in enumerate(meant, 1)], np.int32)
        encoded = EncodedText(
            ids=self.ids[found.ids],
            starts=_to_unmarked(found.starts, marks),
            ends=_to_unmarked(found.ends, marks),
        )
        return encoded, int(np.isin(found.ids, self.control_ids).sum())

    def _find_meant(self, text: str, ordinary: frozenset[int]) -> list[int]:
        """Return the starts of the control tokens that are meant as such."""
        added = self.original.added_tokens
        meant = added.find_tokens(text, frozenset(self.control.values()), ordinary)
        if frozenset(self.control.values()).issubset(added.cutting):
            return [start for start, _ in meant]
        # Some are recognized only between words, or only after normalization.
        (encoded,) = encode_with_offsets(self.original, [text])
        tokens = zip(encoded.ids.tolist(), encoded.ends.tolist(), strict=True)
        found = {(self.control.get(number), end) for number, end in tokens}
        return [
            start
            for start, content in meant
            if content in added.cutting or (content, start + len(content)) in found
        ]

    def _has_control_token_at(
        self, ordinary: Sequence[int], text: str, encoded: EncodedText
    ) -> bool:
        """Return whether a token that starts at `ordinary` is the control token spelled there."""
        ids, starts, ends = encoded.ids.tolist(), encoded.starts.tolist(), encoded.ends.tolist()
        return any(
            self.control.get(ids[token]) == text[starts[token] : ends[token]]
            for token in np.flatnonzero(np.isin(encoded.starts, ordinary)).tolist()
        )


def build_literal_tokenizer(
    tokenizer: LoadedTokenizer, control: Collection[str]
) -> LiteralTokenizer:
    """Make a `LiteralTokenizer` for these control tokens of a tokenizer; raise SetupError."""
    stored = json.loads(tokenizer.backend.to_str())
    for token in stored["added_tokens"]:
        if token["content"] in control:
            token["content"] = insert_marks(token["content"], [0])
    backend = tokenizers.Tokenizer.from_str(json.dumps(stored))
    known = tokenizer.backend.get_vocab()
    ids: Int32 = np.arange(max(backend.get_vocab().values()) + 1, dtype=np.int32)
    control_ids: list[int] = []
    for number, token in backend.get_added_tokens_decoder().items():
        content, marks = remove_marks(token.content)
        ids[number] = known[content]
        control_ids += [number] * len(marks)
        found = backend.encode(token.content, add_special_tokens=False).ids
        other = backend.model.id_to_token(number)  # differs if the vocabulary has gaps
        if (marks and found != [number]) or other not in (None, token.content):
            raise SetupError(
                f"{tokenizer.source}: this tokenizer can't encode the control token {content} as "
                "ordinary text; choose --control-tokens keep or error"
            )
    added_tokens = collect_added_tokens(backend, ())
    renamed = replace(
        tokenizer,
        load_backend=lambda: backend,
        is_as_stored=False,
        added_tokens=added_tokens,
    )
    contents = {known[content]: content for content in control}
    return LiteralTokenizer(
        tokenizer, contents, renamed, ids, np.array(control_ids, dtype=np.int32)
    )


def _to_unmarked(positions: Int32, marks: Int32) -> Int32:
    """Convert positions in a marked text to positions in the text without marks."""
    return positions - np.searchsorted(marks, positions).astype(np.int32)
