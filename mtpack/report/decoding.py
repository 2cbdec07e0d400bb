"""Decode token ids to text, only with the tokenizer that the shards were packed with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from mtpack.errors import SetupError
from mtpack.report.token_bytes import TokenBytes, build_token_bytes
from mtpack.shards.dataset import Shards
from mtpack.tokenizer.byte_level import build_byte_level
from mtpack.tokenizer.loading import LoadedTokenizer, load_tokenizer, wrap_tokenizer_errors

CUT_CHARACTER = "\ufffd"
"""What a decoder writes for an incomplete character."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Decoder:
    """A tokenizer, for the way back from ids to text; a call decodes ids."""

    decode: Decode
    """Returns the text of ids, control tokens included."""
    control: Mapping[int, str] = field(default_factory=dict)
    """The control tokens, by id."""
    find_spans: Callable[[str], list[tuple[int, int]]] | None = None
    """Returns the characters of each token of a text, encoded as a whole. None if its texts are
    never cut where a turn starts (docs/turns.md)."""

    load_token_bytes: Callable[[], TokenBytes | None] = lambda: None
    """Returns the bytes of each token; None if a text is not just their bytes."""

    def __call__(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return self.decode(ids)


def find_decoder(shards: Shards, tokenizer_option: str | None) -> tuple[Decoder | None, str | None]:
    """Return the decoder for shards and None, or None and a line that says how to get one.

    Only this machine is searched, never the network. Raises SetupError if `tokenizer_option` names
    no tokenizer, or not the one of the shards.
    """
    expected = shards.metadata.tokenizer_sha256
    if tokenizer_option is not None:
        return make_decoder(_load_named_tokenizer(tokenizer_option, expected)), None
    packed_with = shards.manifest.report.about.tokenizer if shards.manifest else None
    sources: list[str | None] = [None]
    if packed_with is not None and os.path.exists(packed_with):
        sources.append(packed_with)
    for source in sources:
        try:
            tokenizer = load_tokenizer(source)
        except SetupError:
            continue
        if tokenizer.sha256 == expected:
            return make_decoder(tokenizer), None
    name = "their tokenizer" if packed_with is None else f"the tokenizer {packed_with!r}"
    return (
        None,
        f"{name} was not found on this machine, so ids are shown; to see text, pass --tokenizer",
    )


def _load_named_tokenizer(source: str, expected_sha256: str) -> LoadedTokenizer:
    if not os.path.exists(source):
        raise SetupError(
            f"{source}: no such tokenizer on this machine; "
            "name a folder with tokenizer.json, or that file"
        )
    tokenizer = load_tokenizer(source)
    if tokenizer.sha256 != expected_sha256:
        raise SetupError(f"{source}: the shards were packed with another tokenizer; name that one")
    return tokenizer


def make_decoder(tokenizer: LoadedTokenizer) -> Decoder:
    """Return the decoder of a loaded tokenizer."""
    backend = tokenizer.backend

    def decode(ids: Sequence[int]) -> str:
        return backend.decode(ids, skip_special_tokens=False)

    def find_spans(text: str) -> list[tuple[int, int]]:
        with wrap_tokenizer_errors(tokenizer.source):
            return backend.encode(text, add_special_tokens=False).offsets

    can_cut = build_byte_level(tokenizer) is not None
    return Decoder(
        decode,
        tokenizer.added_tokens.control,
        find_spans if can_cut else None,
        partial(build_token_bytes, tokenizer),
    )


def decode_part(decode: Decode, ids: Sequence[int], before: Sequence[int]) -> str:
    """Decode a part of a document's ids; `before` holds the id before the part, or nothing.

    It may hold several: all those that make up the character before the part.

    Decoders of SentencePiece and WordPiece vocabularies drop the first space of a text, also in
    the middle of a document. So the part is decoded together with the token before it.
    """
    if not before:
        return decode(ids)
    head, text = decode(before), decode([*before, *ids])
    if text.startswith(head) and not head.endswith(CUT_CHARACTER):
        return text[len(head) :]
    return decode(ids)


def decode_tokens(decode: Decode, ids: Sequence[int], before: Sequence[int]) -> tuple[str, ...]:
    """Return the text of each token of a part of a document; `before` as for `decode_part`.

    Of the tokens that make up a character together, the first has the character, and the texts of
    the others are empty.
    """
    texts: list[str] = []
    start, previous = 0, before
    while start < len(ids):
        for stop in range(start + 1, min(start + _MOST_TOKENS, len(ids)) + 1):
            text = decode_part(decode, ids[start:stop], previous)
            if not text.endswith(CUT_CHARACTER):
                break
        else:
            stop, text = start + 1, decode_part(decode, ids[start : start + 1], previous)
        texts += [text, *[""] * (stop - start - 1)]
        start, previous = stop, ids[start:stop]
    return tuple(texts)


_MOST_TOKENS = 8
"""A character has at most 4 bytes; two that share a token are made up of at most 7."""
