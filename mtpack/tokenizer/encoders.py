"""The encoders of a process: the reference, and the fast one once the probe has passed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from mtpack.fast_path import FASTOKENS, Audit, FastPathFailedError
from mtpack.tokenizer.byte_level import ByteLevel, build_byte_level
from mtpack.tokenizer.encode import TextEncoder
from mtpack.tokenizer.engines import load_fast_engine, load_reference_engine
from mtpack.tokenizer.loading import LoadedTokenizer
from mtpack.tokenizer.probe import build_probe_texts, run_probe


class Encoders:
    """The encoders of a tokenizer, each created at its first use.

    Workers share what a process creates before it forks.
    """

    def __init__(self, tokenizer: LoadedTokenizer, seed: int) -> None:
        """Create no encoder yet; seed: of the audit."""
        self._tokenizer = tokenizer
        self.audit = Audit(seed)
        self._is_probed = False

    @cached_property
    def reference(self) -> TextEncoder:
        """The encoder with `tokenizers`, which is right by definition."""
        return TextEncoder(
            self._tokenizer, load_reference_engine(self._tokenizer), self._byte_level
        )

    @cached_property
    def fast(self) -> TextEncoder:
        """The fast encoder, not probed yet; raises FastPathFailedError if it can't be used."""
        if self._byte_level is None:
            raise FastPathFailedError(
                FASTOKENS, "fastokens gives no token positions, and this tokenizer needs them"
            )
        engine = load_fast_engine(self._tokenizer)
        return TextEncoder(self._tokenizer, engine, self._byte_level, self.audit)

    @cached_property
    def _byte_level(self) -> ByteLevel | None:
        return build_byte_level(self._tokenizer)

    @property
    def audited(self) -> int:
        """The number of texts that both engines have encoded since this process began."""
        return self.audit.done

    def probe_fast(self, sample_texts: Iterable[str]) -> TextEncoder:
        """Return the fast encoder; probe it before its first use in this process.

        sample_texts: some texts of the run, which become part of the probe. Raises
        FastPathFailedError if it can't be used, or gives other ids than the reference.
        """
        if not self._is_probed:
            texts = build_probe_texts(self._tokenizer.added_tokens, sample_texts)
            run_probe(self.reference.engine, self.fast.engine, texts)
            self._is_probed = True
        return self.fast
