"""The encoder that is always right, for tests that encode one dialogue at a time."""

from mtpack.tokenizer.encode import TextEncoder
from mtpack.tokenizer.encoders import Encoders
from mtpack.tokenizer.loading import LoadedTokenizer

_made: dict[str, TextEncoder] = {}


def encoder_of(tokenizer: LoadedTokenizer) -> TextEncoder:
    """Return the reference encoder of a tokenizer; made once, as its tables take a while."""
    if tokenizer.sha256 not in _made:
        _made[tokenizer.sha256] = Encoders(tokenizer, seed=0).reference
    return _made[tokenizer.sha256]
