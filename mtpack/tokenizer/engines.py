"""Engines: libraries that make ids of texts.

`tokenizers` is the reference. `fastokens` is many times as fast, and serves where it is shown to
give the same ids (probe.py, docs/engines.md). It must not make a run fail: whatever it can't do
raises EngineFailedError, and the caller goes on with the reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

import numpy as np

from mtpack.token_batch import Int32, Int64, offsets_from_lengths
from mtpack.tokenizer.loading import LoadedTokenizer, failures_named, is_tokenizer_failure

TOKENIZERS: Final = "tokenizers"
FASTOKENS: Final = "fastokens"

# Texts that `tokenizers` encodes at a time: its results, ten times the size of the ids, should stay
# in the processor's cache. All of a split at once take a tenth longer.
_AT_A_TIME = 64


class EngineFailedError(Exception):
    """An engine can't serve; the message is one line that says why, without any text."""


class FlatTokens(NamedTuple):
    """Several texts as tokens. Text i has the tokens [offsets[i], offsets[i + 1])."""

    ids: Int32
    """(tokens,); may be read-only."""
    offsets: Int64
    """(texts + 1,)"""

    def of(self, text: int) -> Int32:
        """Return the ids of one text, (tokens of it,)."""
        return self.ids[self.offsets[text] : self.offsets[text + 1]]


def first_difference(expected: FlatTokens, found: FlatTokens) -> int | None:
    """Return the first text that does not have the expected tokens, or None if all have."""
    if len(expected.offsets) != len(found.offsets):
        return 0
    if np.array_equal(expected.offsets, found.offsets) and np.array_equal(expected.ids, found.ids):
        return None
    texts = range(len(expected.offsets) - 1)
    return next(text for text in texts if not np.array_equal(expected.of(text), found.of(text)))


@dataclass(frozen=True, slots=True)
class Engine:
    """One library with one tokenizer."""

    name: str
    """As `--tokenizer-engine` has it."""
    encode: Callable[[Sequence[str]], FlatTokens]
    """Encode each text as a whole, and add no token to what it says."""


def reference_engine(tokenizer: LoadedTokenizer) -> Engine:
    """Return `tokenizers`; it raises SetupError where it can't encode a text."""

    def encode(texts: Sequence[str]) -> FlatTokens:
        parts = [encode_some(texts[n : n + _AT_A_TIME]) for n in range(0, len(texts), _AT_A_TIME)]
        lengths = [np.diff(part.offsets) for part in parts]
        return FlatTokens(
            np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)]),
            offsets_from_lengths(np.concatenate([np.empty(0, np.int64), *lengths])),
        )

    def encode_some(texts: Sequence[str]) -> FlatTokens:
        with failures_named(tokenizer.source):
            encodings = tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
        offsets = offsets_from_lengths(np.array(list(map(len, encodings)), np.int64))
        # 30 ns a token where encoding takes 1,400; 36 with an array for each text.
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        return FlatTokens(np.fromiter(ids, np.int32, int(offsets[-1])), offsets)

    return Engine(TOKENIZERS, encode)


def load_fast_engine(tokenizer: LoadedTokenizer) -> Engine:
    """Load `fastokens` with all that the reference knows; raise EngineFailedError.

    It is told of the reference as that stands, not of tokenizer.json: with tokens that only
    tokenizer_config.json declares, and without a post-processor. Of the 1.1 s that it takes for
    150,000 tokens, writing this down is 0.09, and the file's own text would load no faster.

    Loading starts no thread. The first `encode` may, for some tokenizers and long texts: then the
    process can't fork any more (`runners/starting.py` looks).
    """
    try:
        import fastokens
    except ImportError as error:
        raise EngineFailedError(f"fastokens can't be imported ({error})") from error
    # mtpack's processes are the parallelism: 64 of them with 32 threads each would be in each
    # other's way. It is read at the first `encode`.
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    try:
        backend = fastokens.Tokenizer.from_json_str(tokenizer.backend.to_str())
    except BaseException as error:
        if is_tokenizer_failure(error):
            raise EngineFailedError(f"fastokens can't load this tokenizer ({error})") from error
        raise

    def encode(texts: Sequence[str]) -> FlatTokens:
        try:
            ids, offsets = backend.encode_batch_flat(list(texts), add_special_tokens=False)
        except BaseException as error:
            if is_tokenizer_failure(error):
                raise EngineFailedError(f"fastokens failed ({type(error).__name__})") from error
            raise
        tokens = _read(ids, offsets, len(texts))
        highest = int(tokens.ids.max(initial=0))
        if len(tokens.ids) and tokenizer.backend.id_to_token(highest) is None:
            raise EngineFailedError("fastokens returned an id that is none")
        return tokens

    return Engine(FASTOKENS, encode)


def _read(ids: bytes, offsets: bytes, num_texts: int) -> FlatTokens:
    """Read little-endian uint32 and uint64; raise EngineFailedError where they can't be right."""
    if len(ids) % 4 or len(offsets) != 8 * (num_texts + 1):
        raise EngineFailedError("fastokens returned buffers of a wrong size")
    tokens = FlatTokens(np.frombuffer(ids, "<i4"), np.frombuffer(offsets, "<i8"))
    lengths = np.diff(tokens.offsets)
    ends = (tokens.offsets[0], tokens.offsets[-1])
    if ends != (0, len(tokens.ids)) or lengths.min(initial=0) < 0:
        raise EngineFailedError("fastokens returned texts that overlap")
    if tokens.ids.min(initial=0) < 0:
        raise EngineFailedError("fastokens returned an id that is none")
    return tokens
