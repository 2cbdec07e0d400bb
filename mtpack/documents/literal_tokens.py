"""Texts in which some control tokens are ordinary text, to ids.

A tokenizer cuts its added tokens out of a text wherever they are spelled. The one that is made here
knows its control tokens under other names, with a mark in them. A text is given to it with that
mark in the control tokens that are meant; what spells one without a mark is text like any other,
encoded together with what stands beside it, as by a tokenizer that never heard of that token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tokenizers

from mtpack.documents.control_tokens_in_text import with_marks, without_marks
from mtpack.errors import SetupError
from mtpack.token_batch import Int32
from mtpack.tokenizer.added_tokens import AddedTokens, added_tokens_of
from mtpack.tokenizer.encode import EncodedText, encode_with_offsets
from mtpack.tokenizer.loading import LoadedTokenizer


class NotLiteralError(Exception):
    """The tokenizer can't encode a control token as ordinary text here."""


@dataclass(frozen=True, slots=True)
class LiteralTokenizer:
    """A tokenizer for texts that spell control tokens."""

    added_tokens: AddedTokens
    """As the tokenizer has them."""
    renamed: LoadedTokenizer
    """The same tokenizer with a mark in the names of its control tokens."""
    ids: Int32
    """(vocabulary of `renamed`,): the id that a token has in the tokenizer itself."""
    control_ids: Int32
    """The ids in `renamed` of its control tokens."""

    def encode(self, text: str, ordinary: Sequence[int]) -> EncodedText:
        """Encode a text in which the control tokens that start at `ordinary` are text.

        Raises NotLiteralError where the tokenizer makes a control token of such text even so, or
        does not find all the others.
        """
        meant = self.added_tokens.control_tokens_in(text, frozenset(ordinary))
        (found,) = encode_with_offsets(self.renamed, [with_marks(text, meant)])
        if np.count_nonzero(np.isin(found.ids, self.control_ids)) != len(meant):
            raise NotLiteralError
        marks: Int32 = np.array([start + mark for mark, start in enumerate(meant, 1)], np.int32)
        encoded = EncodedText(
            ids=self.ids[found.ids],
            starts=_without(marks, found.starts),
            ends=_without(marks, found.ends),
        )
        if self._has_control_token_at(ordinary, text, encoded):
            raise NotLiteralError
        return encoded

    def _has_control_token_at(
        self, ordinary: Sequence[int], text: str, encoded: EncodedText
    ) -> bool:
        """Return whether a token at one of these places is the control token spelled there."""
        control = self.added_tokens.control
        ids, starts, ends = encoded.ids.tolist(), encoded.starts.tolist(), encoded.ends.tolist()
        return any(
            control.get(ids[token]) == text[starts[token] : ends[token]]
            for token in np.flatnonzero(np.isin(encoded.starts, ordinary)).tolist()
        )


def literal_tokenizer(tokenizer: LoadedTokenizer) -> LiteralTokenizer:
    """Make the tokenizer for texts that spell control tokens; raise SetupError."""
    stored = json.loads(tokenizer.backend.to_str())
    control = tokenizer.added_tokens.control.values()
    for token in stored["added_tokens"]:
        if token["content"] in control:
            token["content"] = with_marks(token["content"], [0])
    backend = tokenizers.Tokenizer.from_str(json.dumps(stored))
    known = tokenizer.backend.get_vocab()
    ids: Int32 = np.arange(max(backend.get_vocab().values()) + 1, dtype=np.int32)
    control_ids: list[int] = []
    for number, token in backend.get_added_tokens_decoder().items():
        content, marks = without_marks(token.content)
        ids[number] = known[content]
        control_ids += [number] * len(marks)
        found = backend.encode(token.content, add_special_tokens=False).ids
        other = backend.model.id_to_token(number)  # where the vocabulary has gaps
        if (marks and found != [number]) or other not in (None, token.content):
            raise SetupError(
                f"{tokenizer.source}: this tokenizer can't encode the control token {content} as "
                "ordinary text; choose --control-tokens keep or error"
            )
    renamed = replace(tokenizer, backend=backend, added_tokens=added_tokens_of(backend, None))
    return LiteralTokenizer(
        tokenizer.added_tokens, renamed, ids, np.array(control_ids, dtype=np.int32)
    )


def _without(marks: Int32, positions: Int32) -> Int32:
    """Return where positions of a marked text lie in the text without its marks."""
    return positions - np.searchsorted(marks, positions).astype(np.int32)
