"""Decode token ids to text, only with the tokenizer that the shards were packed with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from mtpack.errors import SetupError
from mtpack.shards.dataset import Shards
from mtpack.tokenizer.loading import LoadedTokenizer, load_tokenizer

Decoder = Callable[[Sequence[int]], str]
_CUT_CHARACTER = "\ufffd"  # what a decoder writes for an incomplete character


def find_decoder(shards: Shards, tokenizer_option: str | None) -> tuple[Decoder | None, str | None]:
    """Return the decoder for shards and None, or None and a line that says how to get one.

    Only this machine is searched, never the network. Raises SetupError if `tokenizer_option` names
    no tokenizer, or not the one of the shards.
    """
    expected = shards.metadata.tokenizer_sha256
    if tokenizer_option is not None:
        return _make_decoder(_load_named_tokenizer(tokenizer_option, expected)), None
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
            return _make_decoder(tokenizer), None
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


def _make_decoder(tokenizer: LoadedTokenizer) -> Decoder:
    backend = tokenizer.backend

    def decode(ids: Sequence[int]) -> str:
        return backend.decode(ids, skip_special_tokens=False)

    return decode


def decode_part(decode: Decoder, ids: Sequence[int], before: Sequence[int]) -> str:
    """Decode a part of a document's ids; `before` holds the one id before the part, or nothing.

    Decoders of SentencePiece and WordPiece vocabularies drop the first space of a text, also in
    the middle of a document. So the part is decoded together with the token before it.
    """
    if not before:
        return decode(ids)
    head, text = decode(before), decode([*before, *ids])
    if text.startswith(head) and not head.endswith(_CUT_CHARACTER):
        return text[len(head) :]
    return decode(ids)
