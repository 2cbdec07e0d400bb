"""The encoder of a tokenizer, for tests that encode one dialogue at a time."""

import os

from mtpack.fast_path import FastPathFailedError
from mtpack.tokenizer.encode import TextEncoder
from mtpack.tokenizer.encoders import Encoders
from mtpack.tokenizer.loading import LoadedTokenizer

_cache: dict[str, TextEncoder] = {}


def encoder_of(tokenizer: LoadedTokenizer) -> TextEncoder:
    """Return the encoder of the engine that the tests use; it is created once, which is slow."""
    if tokenizer.sha256 not in _cache:
        _cache[tokenizer.sha256] = _choose_encoder(Encoders(tokenizer, seed=0))
    return _cache[tokenizer.sha256]


def _choose_encoder(encoders: Encoders) -> TextEncoder:
    if os.environ.get("MTPACK_PACK_TOKENIZER_ENGINE") == "fastokens":
        try:
            return encoders.fast
        except FastPathFailedError:
            pass
    return encoders.reference
