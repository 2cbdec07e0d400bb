"""The bytes of every token of a byte-level vocabulary: texts are found without decoding them all.

In such a vocabulary, a text is in the decoded text of a document exactly if its bytes are in the
bytes of the document's tokens, since UTF-8 has no character inside another one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from mtpack.token_batch import Int32, Int64, UInt8, expand_ranges, offsets_from_lengths
from mtpack.tokenizer.byte_level import build_byte_level
from mtpack.tokenizer.loading import LoadedTokenizer


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """The bytes of tokens. Token t has the bytes `content[offsets[t]:offsets[t+1]]`."""

    content: UInt8
    """(bytes,)"""
    offsets: Int64
    """(highest id + 3,): unknown ids have no bytes, and the last entry stands for them."""

    def join(self, ids: Int32) -> tuple[bytes, Int64]:
        """Return the bytes of tokens, and the position of each: (tokens + 1,)."""
        known = np.minimum(ids, len(self.offsets) - 2)
        lengths = np.diff(self.offsets)[known]
        positions = expand_ranges(self.offsets[known], lengths)
        return self.content[positions].tobytes(), offsets_from_lengths(lengths)


def build_token_bytes(tokenizer: LoadedTokenizer) -> TokenBytes | None:
    """Return the bytes of all tokens; None if its decoder does not just join the bytes."""
    backend = tokenizer.backend
    decoder = backend.decoder
    if decoder is None or json.loads(decoder.__getstate__())["type"] != "ByteLevel":
        return None
    if build_byte_level(tokenizer) is None:
        return None
    byte_of_character = _list_characters()
    added = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    content: list[bytes] = [b""] * (max(vocabulary.values()) + 2)
    for name, number in vocabulary.items():
        if number in added:
            content[number] = added[number].content.encode()
        elif all(character in byte_of_character for character in name):
            content[number] = bytes(map(byte_of_character.__getitem__, name))
        else:
            return None
    lengths = np.fromiter(map(len, content), np.int64, len(content))
    return TokenBytes(np.frombuffer(b"".join(content), np.uint8), offsets_from_lengths(lengths))


def _list_characters() -> dict[str, int]:
    """Return the byte of each character that byte-level vocabularies spell bytes with.

    The table is that of GPT-2 (`bytes_to_unicode`): printable characters of Latin-1 are their own
    bytes, and all other bytes are the characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }
