"""How many bytes of text each token stands for, where every text is cut into just these bytes.

A byte-level vocabulary spells every byte as one character, so the bytes that a token stands for are
as many as its name has characters. Summed up, they tell where in its text every token starts and
ends. `tokenizers` can tell as well, in a third more time than the ids take it; `fastokens` can't.
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
_KEEPING_ALL = {"Split", "Digits", "Punctuation"}


@dataclass(frozen=True, slots=True)
class ByteLevel:
    """The bytes of text behind each token, in UTF-8.

    They hold for a text if its tokens have as many bytes as the text has, and if the text is in the
    normal form, where there is one (`unicodedata.is_normalized`). Tokens can have fewer: one that
    swallows white space counts without it, so such a text does not add up. They never have more.
    """

    lengths: Int32
    """(highest id + 1,); 0 for ids that are none."""
    normal_form: Literal["NFC"] | None
    """What the tokenizer brings text into first."""


def byte_level_of(tokenizer: LoadedTokenizer) -> ByteLevel | None:
    """Return the table (110 ms for 150,000 tokens), or None where bytes can't tell.

    They can't where text is changed before it is cut, unless into NFC, where a token can stand for
    text that the vocabulary can't spell, and where tokens do not spell bytes at all.
    """
    backend = tokenizer.backend
    normalizers = [step["type"] for step in _steps(backend.normalizer)]
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if not (
        set(normalizers) <= {"NFC"}
        and _spells_bytes(_steps(backend.pre_tokenizer))
        and _spells_nothing_else(backend.model)
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


def _steps(component: Any) -> list[dict[str, Any]]:
    """Return a normalizer or pre-tokenizer as the steps that it consists of, as JSON has them."""
    return [] if component is None else list(_flat(json.loads(component.__getstate__())))


def _flat(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if step["type"] != "Sequence":
        yield step
    for inner in (*step.get("normalizers", ()), *step.get("pretokenizers", ())):
        yield from _flat(inner)


def _spells_bytes(steps: list[dict[str, Any]]) -> bool:
    """Return whether text is cut without loss, and spelled as bytes at last, once."""
    return (
        bool(steps)
        and steps[-1]["type"] == "ByteLevel"
        and not steps[-1]["add_prefix_space"]
        and all(step["type"] in _KEEPING_ALL for step in steps[:-1])
        and all(step.get("behavior") != "Removed" for step in steps[:-1])
    )


def _spells_nothing_else(model: tokenizers.models.Model) -> bool:
    return (
        isinstance(model, tokenizers.models.BPE)
        and not model.byte_fallback
        and not model.continuing_subword_prefix
        and not model.end_of_word_suffix
    )
