"""Which encoder a process uses: the reference, or the fast one once it has proven itself."""

from __future__ import annotations

from collections.abc import Iterable

from mtpack.tokenizer.byte_level import byte_level_of
from mtpack.tokenizer.encode import TextEncoder
from mtpack.tokenizer.engines import EngineFailedError, load_fast_engine, reference_engine
from mtpack.tokenizer.loading import LoadedTokenizer


class Encoders:
    """The encoders of a tokenizer."""

    def __init__(self, tokenizer: LoadedTokenizer, seed: int) -> None:
        """Make the reference; seed: of the audit."""
        self._tokenizer = tokenizer
        self._seed = seed
        self._byte_level = byte_level_of(tokenizer)
        self.reference = TextEncoder(tokenizer, reference_engine(tokenizer), self._byte_level)
        self._fast: TextEncoder | None = None
        self._is_proven = False

    def load_fast(self) -> None:
        """Load the fast engine, but do not use it yet; raise EngineFailedError."""
        if self._byte_level is None:
            raise EngineFailedError("fastokens can't tell what text the tokens stand for")
        engine = load_fast_engine(self._tokenizer)
        self._fast = TextEncoder(self._tokenizer, engine, self._byte_level)

    def choose(self, own_texts: Iterable[str], *, fast: bool) -> TextEncoder:
        """Return the fast encoder if it may be used and is loaded, or the reference.

        own_texts: what it is proven on beside the probe, before its first use in this process.
        Raises EngineFailedError where it gives other ids than the reference.
        """
        if not fast or self._fast is None:
            return self.reference
        return self._fast
