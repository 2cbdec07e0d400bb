"""The floor: what encoding the rendered texts takes by itself, with as many processes.

Every process loads its tokenizer and encodes a batch before a barrier; from there on, each encodes
its share of the texts. Rendering, spans, packing and writing are left out, and so are the ids: what
an engine returns is counted and dropped.
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
from mtpack.running.thread_limits import ONE_THREAD

Encode = Callable[[list[str]], int]
"""Texts to the number of their tokens."""

_BATCH_SIZES = (16, 128, 1024)  # texts
_TRIAL_TEXTS = 512
_BARRIER_SECONDS = 120


def tokenizers_calls(file: Path) -> dict[str, Encode]:
    """Load `tokenizers` and return what of it encodes batches."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))

    def call(encode_batch: Callable[..., list[Any]]) -> Encode:
        return lambda texts: sum(map(len, encode_batch(texts, add_special_tokens=False)))

    return {name: call(getattr(tokenizer, name)) for name in ("encode_batch_fast", "encode_batch")}


def fastokens_calls(file: Path) -> dict[str, Encode]:
    """The same for `fastokens`."""
    from fastokens import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return {"encode_batch_flat": lambda texts: len(tokenizer.encode_batch_flat(texts)[0]) // 4}


_CALLS = {"tokenizers": tokenizers_calls, "fastokens": fastokens_calls}


def with_tokenizers(setting: Setting) -> Figures:
    return _encode(setting, "tokenizers")


def with_fastokens(setting: Setting) -> Figures:
    return _encode(setting, "fastokens")


def _encode(setting: Setting, engine: str) -> Figures:
    call, batch_size = _fastest(setting, engine)
    shares = [slice(first, None, setting.workers) for first in range(setting.workers)]
    encode_share = functools.partial(_encode_share, engine, call, batch_size)
    with _processes(setting, setting.workers) as executor:
        started, ended, tokens = zip(*executor.map(encode_share, shares), strict=True)
    seconds = max(ended) - min(started)
    return {engine: setting.megabytes / seconds, f"{engine}.tokens": sum(tokens)}


@functools.cache
def _fastest(setting: Setting, engine: str) -> tuple[str, int]:
    """Return the call and the batch size that a short trial finds the fastest."""
    with _processes(setting, 1) as executor:
        return executor.submit(_try_all, engine).result()


def _processes(setting: Setting, number: int) -> ProcessPoolExecutor:
    """Return processes that inherit the texts: they are not copied."""
    context = multiprocessing.get_context("fork")
    file = setting.tokenizer / "tokenizer.json"
    return ProcessPoolExecutor(
        number,
        mp_context=context,
        initializer=_start,
        initargs=(setting.texts, file, context.Barrier(number)),
    )


# Of each of these processes.
_texts: list[str]
_file: Path
_barrier: Barrier


def _start(texts: list[str], file: Path, barrier: Barrier) -> None:
    global _texts, _file, _barrier
    _texts, _file, _barrier = texts, file, barrier
    os.environ.update(ONE_THREAD)


def _encode_share(
    engine: str, call: str, batch_size: int, share: slice
) -> tuple[float, float, int]:
    """Return when it started and ended, on the clock that all processes share, and its tokens."""
    encode = _CALLS[engine](_file)[call]
    texts = _texts[share]
    encode(texts[:batch_size])
    _barrier.wait(_BARRIER_SECONDS)
    started = time.perf_counter()
    tokens = sum(map(encode, _batches(texts, batch_size)))
    return started, time.perf_counter(), tokens


def _try_all(engine: str) -> tuple[str, int]:
    texts = _texts[:_TRIAL_TEXTS]
    taken: dict[tuple[str, int], float] = {}
    for (name, encode), batch_size in itertools.product(
        _CALLS[engine](_file).items(), _BATCH_SIZES
    ):
        encode(texts[:batch_size])
        started = time.perf_counter()
        for batch in _batches(texts, batch_size):
            encode(batch)
        taken[name, batch_size] = time.perf_counter() - started
    return min(taken, key=taken.__getitem__)


def _batches(texts: list[str], batch_size: int) -> Iterator[list[str]]:
    return (texts[first : first + batch_size] for first in range(0, len(texts), batch_size))
