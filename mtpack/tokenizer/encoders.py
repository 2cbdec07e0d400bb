"""Which encoder a process uses: the reference, or the fast one once it has proven itself."""

from __future__ import annotations

from collections.abc import Iterable

from mtpack.tokenizer.byte_level import byte_level_of
from mtpack.tokenizer.encode import TextEncoder
from mtpack.tokenizer.engines import Fast
from mtpack.tokenizer.engines import Slow as ReferenceEngine
from mtpack.tokenizer.loading import LoadedTokenizer


class Encoders:
    """The encoders of a tokenizer."""

    def __init__(self, tokenizer: LoadedTokenizer, seed: int) -> None:
        """Make the reference; seed: of the audit."""
        self._byte_level = byte_level_of(tokenizer)
        self._tokenizer = tokenizer
        self._seed = seed
        self.reference = TextEncoder(
            tokenizer, ReferenceEngine(tokenizer.backend), self._byte_level
        )
        self._fast: TextEncoder | None = None
        self._is_proven = False

    def load_fast(self) -> None:
        import fastokens

        F = fastokens.Tokenizer.from_json_str(self._tokenizer.backend.to_str())
        self._fast = TextEncoder(self._tokenizer, Fast(F), self._byte_level)

    def choose(self, own_texts: Iterable[str], *, fast: bool) -> TextEncoder:
        if not fast or self._fast is None:
            return self.reference
        return self._fast
