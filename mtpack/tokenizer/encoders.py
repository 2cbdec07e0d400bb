"""Which encoder a process uses: the reference, or the fast one once it has proven itself."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from mtpack.sampled_check import Audit
from mtpack.tokenizer.byte_level import ByteLevel, byte_level_of
from mtpack.tokenizer.encode import TextEncoder
from mtpack.tokenizer.engines import EngineFailedError, load_fast_engine, reference_engine
from mtpack.tokenizer.loading import LoadedTokenizer
from mtpack.tokenizer.probe import probe_texts, prove_equal


class Encoders:
    """The encoders of a tokenizer, each made when it is first asked for.

    What a process makes before it forks, its workers share.
    """

    def __init__(self, tokenizer: LoadedTokenizer, seed: int) -> None:
        """Make nothing yet; seed: of the audit."""
        self._tokenizer = tokenizer
        self._audit = Audit(seed)
        self._is_proven = False

    @cached_property
    def reference(self) -> TextEncoder:
        """The encoder that is right by definition."""
        return TextEncoder(self._tokenizer, reference_engine(self._tokenizer), self._byte_level)

    @cached_property
    def fast(self) -> TextEncoder:
        """The fast encoder, not proven yet; raises EngineFailedError where it can't serve."""
        if self._byte_level is None:
            raise EngineFailedError(
                "fastokens does not tell what text the tokens of this tokenizer stand for"
            )
        engine = load_fast_engine(self._tokenizer)
        return TextEncoder(self._tokenizer, engine, self._byte_level, self._audit)

    @cached_property
    def _byte_level(self) -> ByteLevel | None:
        return byte_level_of(self._tokenizer)

    @property
    def audited(self) -> int:
        """How many texts both engines have encoded since this process began."""
        return self._audit.done

    def proven(self, own_texts: Iterable[str]) -> TextEncoder:
        """Return the fast encoder; prove it before its first use in this process.

        own_texts: what it is proven on beside the probe. Raises EngineFailedError where it can't
        serve, or gives other ids than the reference.
        """
        if not self._is_proven:
            texts = probe_texts(self._tokenizer.added_tokens, own_texts)
            prove_equal(self.reference.engine, self.fast.engine, texts)
            self._is_proven = True
        return self.fast
