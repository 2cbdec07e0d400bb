"""Which encoder a process uses: the reference, or the fast one once it has proven itself."""

from __future__ import annotations

from collections.abc import Iterable

from mtpack.audit import Audit
from mtpack.tokenizer.byte_level import byte_level_of
from mtpack.tokenizer.encode import TextEncoder
from mtpack.tokenizer.engines import EngineFailedError, load_fast_engine, reference_engine
from mtpack.tokenizer.loading import LoadedTokenizer
from mtpack.tokenizer.probe import probe_texts, prove_equal


class Encoders:
    """The encoders of a tokenizer."""

    def __init__(self, tokenizer: LoadedTokenizer, seed: int) -> None:
        """Make the reference; seed: of the audit."""
        self._tokenizer = tokenizer
        self._byte_level = byte_level_of(tokenizer)
        self.reference = TextEncoder(tokenizer, reference_engine(tokenizer), self._byte_level)
        self._audit = Audit(seed)
        self._fast: TextEncoder | None = None
        self._is_proven = False

    @property
    def audited(self) -> int:
        """How many texts both engines have encoded since this process began."""
        return self._audit.done

    def load_fast(self) -> None:
        """Load the fast engine, but do not use it yet; raise EngineFailedError.

        A process that has used it can't fork any more.
        """
        if self._byte_level is None:
            raise EngineFailedError(
                "fastokens does not tell what text the tokens of this tokenizer stand for"
            )
        engine = load_fast_engine(self._tokenizer)
        self._fast = TextEncoder(self._tokenizer, engine, self._byte_level, self._audit)

    def choose(self, own_texts: Iterable[str], *, fast: bool) -> TextEncoder:
        """Return the fast encoder if it is loaded and wanted, the reference otherwise.

        own_texts: what it is proven on beside the probe, before its first use in this process.
        Raises EngineFailedError where it gives other ids than the reference.
        """
        if not fast or self._fast is None:
            return self.reference
        if not self._is_proven:
            texts = probe_texts(self._tokenizer.added_tokens, list(own_texts))
            prove_equal(self.reference.engine, self._fast.engine, texts)
            self._is_proven = True
        return self._fast
