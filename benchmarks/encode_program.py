"""Encodes texts with one library; needs nothing else, so it runs in any environment.

    python -I benchmarks/encode_program.py < request.json

`benchmarks.release_candidate` starts it. The request names the library, a tokenizer.json and a JSON
file of texts. The program loads the tokenizer, encodes the texts twice, and prints an `Answer` as
JSON. If the request names a file for the tokens, it also writes ids and offsets there.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from itertools import chain, pairwise
from operator import attrgetter
from typing import Any, TypedDict

_BATCH = 128  # texts

Encode = Callable[[list[str]], tuple[bytes, list[int]]]
"""Returns the ids of all texts as native uint32, and the number of tokens of each text."""

CALLS = (
    *("AddedToken", "models.BPE", "pre_tokenizers.ByteLevel.alphabet", "Encoding.offsets"),
    *("Tokenizer.from_str", "Tokenizer.to_str", "Tokenizer.decode", "Tokenizer.decoder"),
    *("Tokenizer.encode", "Tokenizer.encode_batch", "Tokenizer.encode_batch_fast"),
    *("Tokenizer.add_tokens", "Tokenizer.get_added_tokens_decoder", "Tokenizer.get_vocab"),
    *("Tokenizer.id_to_token", "Tokenizer.token_to_id"),
    *("Tokenizer.model", "Tokenizer.normalizer", "Tokenizer.pre_tokenizer"),
    *("Tokenizer.post_processor", "Tokenizer.truncation", "Tokenizer.padding"),
)
"""What mtpack uses of `tokenizers`."""


class Request(TypedDict):
    """What to encode, and with what."""

    library: str
    """`tokenizers` or `fastokens`."""
    tokenizer: str
    """A tokenizer.json."""
    texts: str
    """A JSON file of texts."""
    tokens: str | None
    """Where to write ids and offsets; None: nowhere."""
    one_core: bool
    """Whether to use one core only: some versions start a thread for each core, in any case."""


class Answer(TypedDict):
    """What the program found. A time is CPU time in seconds, of all threads."""

    version: str
    failure: str | None
    """Why the library can't load the tokenizer or encode the texts; None: it can."""
    load: float
    first: float
    """To encode all texts for the first time."""
    again: float
    """To encode them once more: the library has seen all words."""
    threads: int
    """Of this process after that."""
    missing: list[str]
    """Those of `CALLS` that the library does not have; empty for fastokens."""


class Tokens(TypedDict):
    """The tokens of all texts."""

    ids: list[list[int]]
    offsets: list[list[tuple[int, int]]] | None
    """Start and end of each token in characters; None if the library has no offsets."""


def load_tokenizers(file: str) -> tuple[Encode, Callable[[list[str]], Tokens]]:
    """Load a tokenizer with `tokenizers`, of any version."""
    from tokenizers import Encoding, Tokenizer

    tokenizer = Tokenizer.from_file(file)
    encode_batch = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    returns_arrays, has_offsets = hasattr(Encoding, "ids_array"), hasattr(Encoding, "offsets")

    def encode(texts: list[str]) -> tuple[bytes, list[int]]:
        found = encode_batch(texts, add_special_tokens=False)
        if returns_arrays:
            return b"".join(map(attrgetter("ids_array"), found)), list(map(len, found))
        ids = array("I", chain.from_iterable([encoding.ids for encoding in found]))
        return ids.tobytes(), list(map(len, found))

    def find_tokens(texts: list[str]) -> Tokens:
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        return Tokens(
            ids=[encoding.ids for encoding in found],
            offsets=[encoding.offsets for encoding in found] if has_offsets else None,
        )

    return encode, find_tokens


def load_fastokens(file: str) -> tuple[Encode, Callable[[list[str]], Tokens]]:
    """Load a tokenizer with `fastokens`."""
    from fastokens import Tokenizer

    tokenizer = Tokenizer.from_file(file)

    def encode(texts: list[str]) -> tuple[bytes, list[int]]:
        ids, offsets = tokenizer.encode_batch_flat(texts, add_special_tokens=False)
        return ids, [end - start for start, end in pairwise(memoryview(offsets).cast("Q"))]

    def find_tokens(texts: list[str]) -> Tokens:
        ids, lengths = encode(texts)
        flat = iter(memoryview(ids).cast("I"))
        return Tokens(ids=[[next(flat) for _ in range(length)] for length in lengths], offsets=None)

    return encode, find_tokens


LOADERS = {"tokenizers": load_tokenizers, "fastokens": load_fastokens}


def run(request: Request) -> Answer:
    """Encode, and write the tokens if the request names a file for them."""
    library = importlib.import_module(request["library"])
    with suppress(ImportError):
        importlib.import_module("numpy")  # some versions do so at the first result
    with open(request["texts"], encoding="utf-8") as file:
        texts: list[str] = json.load(file)
    if request["one_core"]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    answer = Answer(
        version=version(request["library"]),
        failure=None,
        load=0.0,
        first=0.0,
        again=0.0,
        threads=0,
        missing=find_missing(library),
    )
    try:
        _measure(request, texts, answer)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic is no Exception
        answer["failure"] = str(error)
    return answer


def _measure(request: Request, texts: list[str], answer: Answer) -> None:
    started = time.process_time()
    encode, find_tokens = LOADERS[request["library"]](request["tokenizer"])
    times = [started, time.process_time()]
    for _ in range(2):
        for batch in _split_into_batches(texts):
            encode(batch)
        times.append(time.process_time())
    answer["load"], answer["first"], answer["again"] = (end - at for at, end in pairwise(times))
    answer["threads"] = len(os.listdir("/proc/self/task"))
    if request["tokens"] is not None:
        with open(request["tokens"], "w", encoding="utf-8") as file:
            json.dump(find_tokens(texts), file)


def find_missing(library: Any) -> list[str]:
    """Return those of `CALLS` that this module `tokenizers` does not have."""
    return [name for name in CALLS if library.__name__ == "tokenizers" and not _has(library, name)]


def _has(library: Any, name: str) -> bool:
    try:
        attrgetter(name)(library)
    except AttributeError:
        return False
    return True


def _split_into_batches(texts: list[str]) -> Iterator[list[str]]:
    return (texts[first : first + _BATCH] for first in range(0, len(texts), _BATCH))


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
