"""The number of bytes of text that each token of a byte-level vocabulary stands for.

A byte-level vocabulary spells every byte as one character, so a token stands for as many bytes as
its name has characters. Their cumulative sum is the start and end of every token in its text.
`tokenizers` can also compute positions, which takes it a third longer than the ids alone;
`fastokens` can't.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tokenizers

from mtpack.token_batch import Int32
from mtpack.tokenizer.loading import LoadedTokenizer

_ALPHABET = frozenset(tokenizers.pre_tokenizers.ByteLevel.alphabet())
_LOSSLESS = {"Split", "Digits", "Punctuation"}


@dataclass(frozen=True, slots=True)
class ByteLevel:
    """The number of bytes of text of each token, in UTF-8.

    They are right for a text if their sum is the length of the text, and if the text is in the
    normal form, where there is one (`unicodedata.is_normalized`). The sum can be smaller: a token
    that absorbs white space is counted without it. It is never larger.
    """

    lengths: Int32
    """(highest id + 1,); 0 for unused ids."""
    normal_form: Literal["NFC"] | None
    """The form to which the tokenizer normalizes text first; None if it does not."""


def build_byte_level(tokenizer: LoadedTokenizer) -> ByteLevel | None:
    """Return the table (110 ms for 150,000 tokens), or None if byte counts give no positions.

    That is so if text is changed before it is cut (except by NFC), if a token can stand for text
    that the vocabulary can't spell, and if tokens do not spell bytes.
    """
    backend = tokenizer.backend
    normalizers = [step["type"] for step in _read_steps(backend.normalizer)]
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if not (
        set(normalizers) <= {"NFC"}
        and _spells_bytes(_read_steps(backend.pre_tokenizer))
        and _spells_only_bytes(backend.model)
        and vocabulary.keys() >= _ALPHABET
    ):
        return None
    ids = np.fromiter(vocabulary.values(), np.int64, len(vocabulary))
    lengths = np.zeros(ids.max() + 1, np.int32)
    lengths[ids] = np.fromiter(map(len, vocabulary), np.int32, len(vocabulary))
    for number, token in backend.get_added_tokens_decoder().items():
        composed = token.normalized and normalizers
        content = unicodedata.normalize("NFC", token.content) if composed else token.content
        lengths[number] = len(content.encode())
    return ByteLevel(lengths, "NFC" if normalizers else None)


def _read_steps(component: Any) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, as in tokenizer.json."""
    return [] if component is None else list(_flatten(json.loads(component.__getstate__())))


def _flatten(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if step["type"] != "Sequence":
        yield step
    for inner in (*step.get("normalizers", ()), *step.get("pretokenizers", ())):
        yield from _flatten(inner)


def _spells_bytes(steps: list[dict[str, Any]]) -> bool:
    """Return whether the steps cut text without loss, and one of them spells it as bytes."""
    others = [step for step in steps if step["type"] != "ByteLevel"]
    return (
        len(steps) - len(others) == 1
        and not any(step.get("add_prefix_space") for step in steps)
        and all(step["type"] in _LOSSLESS for step in others)
        and all(step.get("behavior") != "Removed" for step in others)
    )


def _spells_only_bytes(model: tokenizers.models.Model) -> bool:
    return (
        isinstance(model, tokenizers.models.BPE)
        and not model.byte_fallback
        and not model.continuing_subword_prefix
        and not model.end_of_word_suffix
    )
