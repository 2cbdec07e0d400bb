"""Engines: libraries that encode texts to ids.

`tokenizers` is the reference. `fastokens` is many times as fast, and is used where it is shown to
give the same ids (probe.py, docs/engines.md). It must not make a run fail: whatever it can't do
raises FastPathFailedError, and the caller continues with the reference.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from mtpack.fast_path import FASTOKENS, FastPathFailedError
from mtpack.token_batch import Int32, Int64, offsets_from_lengths
from mtpack.tokenizer.loading import (
    LoadedTokenizer,
    TokenizerFiles,
    is_tokenizer_failure,
    wrap_tokenizer_errors,
)

TOKENIZERS: Final = "tokenizers"
"""The name of the reference engine; the other one is `FASTOKENS`."""

# Texts per call of `tokenizers`: its results, ten times the size of the ids, should fit into the
# processor's cache. All of a split at once take a tenth longer.
_AT_A_TIME = 64


class FlatTokens(NamedTuple):
    """Several texts as tokens. Text i has the tokens [offsets[i], offsets[i + 1])."""

    ids: Int32
    """(tokens,); may be read-only."""
    offsets: Int64
    """(texts + 1,)"""

    def of(self, text: int) -> Int32:
        """Return the ids of one text, (tokens,)."""
        return self.ids[self.offsets[text] : self.offsets[text + 1]]


def find_first_difference(expected: FlatTokens, found: FlatTokens) -> int | None:
    """Return the index of the first text with other tokens than expected; None if there is none."""
    if len(expected.offsets) != len(found.offsets):
        return 0
    if np.array_equal(expected.offsets, found.offsets) and np.array_equal(expected.ids, found.ids):
        return None
    texts = range(len(expected.offsets) - 1)
    return next(text for text in texts if not np.array_equal(expected.of(text), found.of(text)))


@dataclass(frozen=True, slots=True)
class Engine:
    """One library, loaded with one tokenizer."""

    name: str
    """The value of `--tokenizer-engine` that chooses it."""
    encode: Callable[[Sequence[str]], FlatTokens]
    """Encodes each text as a whole, and adds no special tokens."""


def load_reference_engine(tokenizer: LoadedTokenizer) -> Engine:
    """Return the engine `tokenizers`; it raises SetupError if it can't encode a text."""

    def encode(texts: Sequence[str]) -> FlatTokens:
        parts = [encode_batch(texts[n : n + _AT_A_TIME]) for n in range(0, len(texts), _AT_A_TIME)]
        lengths = [np.diff(part.offsets) for part in parts]
        return FlatTokens(
            np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)]),
            offsets_from_lengths(np.concatenate([np.empty(0, np.int64), *lengths])),
        )

    def encode_batch(texts: Sequence[str]) -> FlatTokens:
        with wrap_tokenizer_errors(tokenizer.source):
            encodings = tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
        offsets = offsets_from_lengths(np.array(list(map(len, encodings)), np.int64))
        # This takes 30 ns per token, encoding takes 1,400; an array for each text would take 36.
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        return FlatTokens(np.fromiter(ids, np.int32, int(offsets[-1])), offsets)

    return Engine(TOKENIZERS, encode)


class FastLoading:
    """fastokens loads a tokenizer in a thread, which needs no lock of Python meanwhile.

    `tokenizers` takes that lock as long as it loads. So one core loads the one, and another core
    the other.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        """Start the thread. It loads tokenizer.json as it is stored."""
        self._content = files.content
        self._backend: Any = None
        self._error: FastPathFailedError | None = None
        self._thread = threading.Thread(target=self._run, name="fastokens")
        try:
            self._thread.start()
        except RuntimeError:  # the system allows no more threads
            self._load()

    def _run(self) -> None:
        # So the main thread gets them at once, as it would without this one.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        self._load()

    def _load(self) -> None:
        try:
            self._backend = _load_fastokens(self._content)
        except FastPathFailedError as error:
            self._error = error

    def finish(self) -> Any:
        """Return the loaded tokenizer, at the end of the thread; raise FastPathFailedError."""
        if self._thread.ident is not None:
            self._thread.join()
            _wait_for_end(Path(f"/proc/self/task/{self._thread.native_id}"))
        if self._error is not None:
            raise self._error
        return self._backend


def _wait_for_end(task: Path) -> None:
    """Wait until a thread that was joined is gone, at most a second.

    Python's `join` returns a moment before, and then no fork would be safe.
    """
    end = time.monotonic() + 1.0
    while task.exists() and time.monotonic() < end:
        time.sleep(0.0005)


def load_fast_engine(tokenizer: LoadedTokenizer, begun: FastLoading | None = None) -> Engine:
    """Return the engine `fastokens` for a tokenizer; raise FastPathFailedError if it can't be used.

    begun: has begun to load tokenizer.json. Where the tokenizer has other added tokens than that
    file, and where fastokens does not take the file, it gets what `tokenizers` writes of the
    tokenizer, without a post-processor. For 150,000 tokens this takes 1.1 s.
    """
    backend = _choose_backend(tokenizer, begun)

    def encode(texts: Sequence[str]) -> FlatTokens:
        try:
            ids, offsets = backend.encode_batch_flat(list(texts), add_special_tokens=False)
        except BaseException as error:
            if is_tokenizer_failure(error):
                raise _failure(f"failed ({type(error).__name__})") from error
            raise
        tokens = _read_buffers(ids, offsets, len(texts))
        highest = int(tokens.ids.max(initial=0))
        if len(tokens.ids) and tokenizer.backend.id_to_token(highest) is None:
            raise _failure("returned an id that is not in the vocabulary")
        return tokens

    return Engine(FASTOKENS, encode)


def _choose_backend(tokenizer: LoadedTokenizer, begun: FastLoading | None) -> Any:
    try:
        stored = begun.finish() if begun is not None else None
        if tokenizer.is_as_stored:
            return stored if begun is not None else _load_fastokens(tokenizer.files.content)
    except FastPathFailedError:
        pass
    return _load_fastokens(tokenizer.backend.to_str())


def _load_fastokens(content: str) -> Any:
    """Load a tokenizer.json with fastokens; raise FastPathFailedError.

    This starts no thread. The first `encode` may, for some tokenizers and long texts: then the
    process can't fork any more (`running/processes.py` checks).
    """
    try:
        import fastokens
    except ImportError as error:
        raise _failure(f"can't be imported ({error})") from error
    # mtpack runs in parallel by processes: 64 of them with 32 threads each would slow each other
    # down. The variable is read at the first `encode`.
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    try:
        backend = fastokens.Tokenizer.from_json_str(content)
        if os.environ["FASTOKENS_BPE_THREADS"] == "1":
            backend.encode_batch_flat(["a"], add_special_tokens=False)  # the first takes 80 ms
    except BaseException as error:
        if is_tokenizer_failure(error):
            raise _failure(f"can't load this tokenizer ({error})") from error
        raise
    return backend


def _failure(reason: str) -> FastPathFailedError:
    return FastPathFailedError(FASTOKENS, f"fastokens {reason}")


def _read_buffers(ids: bytes, offsets: bytes, num_texts: int) -> FlatTokens:
    """Read little-endian uint32 and uint64; raise FastPathFailedError if they can't be right."""
    if len(ids) % 4 or len(offsets) != 8 * (num_texts + 1):
        raise _failure("returned buffers of the wrong size")
    tokens = FlatTokens(np.frombuffer(ids, "<i4"), np.frombuffer(offsets, "<i8"))
    lengths = np.diff(tokens.offsets)
    ends = (tokens.offsets[0], tokens.offsets[-1])
    if ends != (0, len(tokens.ids)) or lengths.min(initial=0) < 0:
        raise _failure("returned texts that overlap")
    if tokens.ids.min(initial=0) < 0:
        raise _failure("returned an id that is not in the vocabulary")
    return tokens
