"""The encoder of a tokenizer, for tests that encode one dialogue at a time."""

import os

from mtpack.tokenizer.encode import TextEncoder
from mtpack.tokenizer.encoders import Encoders
from mtpack.tokenizer.engines import EngineFailedError
from mtpack.tokenizer.loading import LoadedTokenizer

_made: dict[str, TextEncoder] = {}


def encoder_of(tokenizer: LoadedTokenizer) -> TextEncoder:
    """Return the encoder of the engine that tests run with; made once, as that takes a while."""
    if tokenizer.sha256 not in _made:
        _made[tokenizer.sha256] = _encoder_of(Encoders(tokenizer, seed=0))
    return _made[tokenizer.sha256]


def _encoder_of(encoders: Encoders) -> TextEncoder:
    if os.environ.get("MTPACK_PACK_TOKENIZER_ENGINE") == "fastokens":
        try:
            return encoders.fast
        except EngineFailedError:
            pass
    return encoders.reference
