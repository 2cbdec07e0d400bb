"""The lower limit of the time: encoding the rendered texts only, with as many processes.

Every process loads its tokenizer, encodes a batch, and waits at a barrier; then each encodes its
share of the texts. There is no rendering, no spans, no packing and no writing. The ids are counted
and discarded.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

from benchmarks.setting import Figures, Setting
from mtpack.running.thread_limits import SINGLE_THREAD_ENV

Encode = Callable[[list[str]], int]
"""Encodes texts and returns the number of their tokens."""

_BATCH_SIZES = (16, 128, 1024)  # texts
_TRIAL_TEXTS = 512
_BARRIER_SECONDS = 120


def load_tokenizers_calls(file: Path) -> dict[str, Encode]:
    """Load a tokenizer with `tokenizers` and return its functions that encode batches."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))

    def call(encode_batch: Callable[..., list[Any]]) -> Encode:
        return lambda texts: sum(map(len, encode_batch(texts, add_special_tokens=False)))

    return {name: call(getattr(tokenizer, name)) for name in ("encode_batch_fast", "encode_batch")}


def load_fastokens_calls(file: Path) -> dict[str, Encode]:
    """Do the same with `fastokens`."""
    from fastokens import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return {"encode_batch_flat": lambda texts: len(tokenizer.encode_batch_flat(texts)[0]) // 4}


_CALLS = {"tokenizers": load_tokenizers_calls, "fastokens": load_fastokens_calls}


def encode_with_tokenizers(setting: Setting) -> Figures:
    return _encode(setting, "tokenizers")


def encode_with_fastokens(setting: Setting) -> Figures:
    return _encode(setting, "fastokens")


def _encode(setting: Setting, engine: str) -> Figures:
    call, batch_size = _find_fastest(setting, engine)
    shares = [slice(first, None, setting.workers) for first in range(setting.workers)]
    encode_share = functools.partial(_encode_share, engine, call, batch_size)
    with _start_processes(setting, setting.workers) as executor:
        started, ended, tokens = zip(*executor.map(encode_share, shares), strict=True)
    seconds = max(ended) - min(started)
    return {engine: setting.megabytes / seconds, f"{engine}.tokens": sum(tokens)}


@functools.cache
def _find_fastest(setting: Setting, engine: str) -> tuple[str, int]:
    """Return the call and the batch size that are the fastest in a short trial."""
    with _start_processes(setting, 1) as executor:
        return executor.submit(_try_all, engine).result()


def _start_processes(setting: Setting, number: int) -> ProcessPoolExecutor:
    """Start processes that inherit the texts, which are not copied."""
    context = multiprocessing.get_context("fork")
    file = setting.tokenizer / "tokenizer.json"
    return ProcessPoolExecutor(
        number,
        mp_context=context,
        initializer=_init_process,
        initargs=(setting.texts, file, context.Barrier(number)),
    )


# The state of each of these processes.
_texts: list[str]
_file: Path
_barrier: Barrier


def _init_process(texts: list[str], file: Path, barrier: Barrier) -> None:
    global _texts, _file, _barrier
    _texts, _file, _barrier = texts, file, barrier
    os.environ.update(SINGLE_THREAD_ENV)


def _encode_share(
    engine: str, call: str, batch_size: int, share: slice
) -> tuple[float, float, int]:
    """Return start and end on the clock of all processes, and the number of tokens."""
    encode = _CALLS[engine](_file)[call]
    texts = _texts[share]
    encode(texts[:batch_size])
    _barrier.wait(_BARRIER_SECONDS)
    started = time.perf_counter()
    tokens = sum(map(encode, _split_into_batches(texts, batch_size)))
    return started, time.perf_counter(), tokens


def _try_all(engine: str) -> tuple[str, int]:
    texts = _texts[:_TRIAL_TEXTS]
    taken: dict[tuple[str, int], float] = {}
    for (name, encode), batch_size in itertools.product(
        _CALLS[engine](_file).items(), _BATCH_SIZES
    ):
        encode(texts[:batch_size])
        started = time.perf_counter()
        for batch in _split_into_batches(texts, batch_size):
            encode(batch)
        taken[name, batch_size] = time.perf_counter() - started
    return min(taken, key=taken.__getitem__)


def _split_into_batches(texts: list[str], batch_size: int) -> Iterator[list[str]]:
    return (texts[first : first + batch_size] for first in range(0, len(texts), batch_size))
