"""The encoders of a process: the reference, and the fast one once the probe has passed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property

from mtpack.fast_path import FASTOKENS, Audit, FastPathFailedError
from mtpack.tokenizer.byte_level import ByteLevel, build_byte_level
from mtpack.tokenizer.encode import TextEncoder
from mtpack.tokenizer.engines import (
    TOKENIZERS,
    FastLoading,
    load_fast_engine,
    load_reference_engine,
)
from mtpack.tokenizer.kept_results import KeptResults
from mtpack.tokenizer.loading import LoadedTokenizer
from mtpack.tokenizer.probe import build_probe_texts, choose_sample, find_wrong_text


class Encoders:
    """The encoders of a tokenizer, each created at its first use.

    Workers share what a process creates before it forks.
    """

    def __init__(
        self,
        tokenizer: LoadedTokenizer,
        seed: int,
        kept: KeptResults | None = None,
        begun: FastLoading | None = None,
    ) -> None:
        """Create no encoder yet.

        seed: of the audit. kept: results of earlier runs; by default, all is computed. begun: loads
        the tokenizer with fastokens.
        """
        self._tokenizer = tokenizer
        self._kept = kept or KeptResults(tokenizer.files, is_kept=False)
        self._begun = begun
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
            self._end_loading()
            raise FastPathFailedError(
                FASTOKENS, "fastokens gives no token positions, and this tokenizer needs them"
            )
        engine = load_fast_engine(self._tokenizer, self._begun)
        return TextEncoder(self._tokenizer, engine, self._byte_level, self.audit)

    @cached_property
    def _byte_level(self) -> ByteLevel | None:
        return self._kept.find_byte_level(lambda: build_byte_level(self._tokenizer))

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
            self._probe(choose_sample(sample_texts))
            self._is_probed = True
        return self.fast

    def _probe(self, sample: list[str]) -> None:
        """Probe the fast encoder with the fixed texts, unless that is known, and with a sample."""
        refusal = self._kept.read_probe()
        if refusal:
            self._end_loading()
            raise FastPathFailedError(FASTOKENS, refusal)
        texts = build_probe_texts(self._tokenizer.added_tokens) if refusal is None else []
        reference = self.reference.engine
        # `fast` waits until fastokens is loaded, so the reference comes first.
        expected, expected_sample = reference.encode(texts), reference.encode(sample)
        engine = self.fast.engine
        if refusal is None:
            refusal = _describe(find_wrong_text(engine, texts, expected), "probe")
            self._kept.keep_probe(refusal)
        refusal = refusal or _describe(find_wrong_text(engine, sample, expected_sample), "sample")
        if refusal:
            raise FastPathFailedError(FASTOKENS, refusal)

    def _end_loading(self) -> None:
        """Wait for the thread that loads the fast encoder, which is not used."""
        if self._begun is not None:
            with suppress(FastPathFailedError):
                self._begun.finish()


def _describe(wrong_text: int | None, what: str) -> str:
    """Return why fastokens is refused, or ""."""
    if wrong_text is None:
        return ""
    return (
        f"{FASTOKENS} gives other ids than {TOKENIZERS} for this tokenizer "
        f"(text {wrong_text} of the {what})"
    )
