"""Hand-made shards for the tests of what `inspect` shows, and their output as text."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from mtpack.counts import Counts
from mtpack.packing.columns import Columns, assemble
from mtpack.report.decoding import Decoder
from mtpack.report.figures import count_figures
from mtpack.shards.arrow import ShardMetadata
from mtpack.shards.dataset import Shards, map_shards
from mtpack.shards.manifest import Manifest, PackReport, RunIdentity, RunInfo
from mtpack.token_batch import TokenBatch, offsets_from_lengths
from tests.support.builders import write_columns

ALIGNMENTS = ("aligned", "shifted")
PAD_ID = 0


class Document(NamedTuple):
    dialogue: int
    ids: list[int]
    turns: list[tuple[int, list[tuple[int, int]]]]
    """Message index and spans of loss tokens."""


DOCUMENTS = [
    Document(0, [*range(10, 20)], [(1, [(2, 3)]), (3, [(5, 10)])]),
    Document(2, [*range(30, 34)], [(2, [(1, 4)])]),
    Document(2, [*range(40, 49)], [(4, [(3, 5), (7, 9)])]),  # one turn with two spans
    Document(5, [*range(50, 58)], [(1, [(1, 8)])]),
]
SEQUENCES = [2, 1, 1]  # documents in each


def batch_of(documents: list[Document]) -> TokenBatch:
    turns = [turn for document in documents for turn in document.turns]
    spans = [span for _, turn_spans in turns for span in turn_spans]

    def lengths(lists: Iterable[list[Any]]) -> np.ndarray:
        return offsets_from_lengths(np.array([len(entries) for entries in lists]))

    return TokenBatch(
        ids=np.array([number for document in documents for number in document.ids], np.int32),
        document_offsets=lengths(document.ids for document in documents),
        document_rows=np.array([document.dialogue for document in documents]),
        turn_offsets=lengths(document.turns for document in documents),
        turn_messages=np.array([message for message, _ in turns], np.int32),
        turn_flags=np.zeros(len(turns), np.uint8),
        span_offsets=lengths(turn_spans for _, turn_spans in turns),
        span_starts=np.array([start for start, _ in spans], np.int32),
        span_ends=np.array([end for _, end in spans], np.int32),
    )


def write(path: Path, columns: Columns, metadata: ShardMetadata) -> Path:
    write_columns(path, columns, metadata, batch_rows=2)
    return path


def pack(
    folder: Path,
    documents: list[Document] = DOCUMENTS,
    sequences: list[int] = SEQUENCES,
    *,
    alignment: str = "aligned",
    seq_len: int = 16,
    pad_documents_to: int = 1,
    tokenizer_sha256: str = "0",
    **damage: Any,
) -> Shards:
    metadata = ShardMetadata(seq_len, alignment, pad_documents_to, PAD_ID, tokenizer_sha256, "0")
    columns = assemble(batch_of(documents), offsets_from_lengths(np.array(sequences)), metadata)
    path = folder / f"{alignment}.arrow"
    return map_shards(write(path, replace(columns, **damage), metadata))


def tally_of(shards: Shards, **counts: Any) -> Counts:
    figures = count_figures(shards)
    known = {"turns_packed": figures.turns, "tokens": figures.tokens}
    return Counts(**(known | counts))


def with_manifest(shards: Shards, tally: Counts, tokenizer: str = "nowhere") -> Shards:
    run = RunIdentity(options={}, inputs=[], tokenizer_sha256="0", template_sha256="0")
    about = RunInfo(mtpack_version="0", tokenizer=tokenizer, seconds={}, warnings=[], inputs=[])
    report = PackReport(output="", seq_len=16, tally=tally, shards=[], about=about)
    return Shards(shards.opened, shards.metadata, Manifest(run, report))


def plain_console() -> Console:
    return Console(width=80, force_terminal=False, file=io.StringIO())


def text_of(console: Console) -> str:
    """Return the printed text without the spaces at the ends of lines."""
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


CHARACTERS = Decoder(lambda ids: "".join(map(chr, ids)))
"""Decodes an id as the character with this code point."""


def text_document(text: str, start: int, end: int) -> Document:
    return Document(0, [ord(character) for character in text], [(1, [(start, end)])])


def random_documents() -> tuple[list[Document], list[int]]:
    generator = np.random.default_rng(7)
    documents = []
    for number in range(50):
        length = int(generator.integers(2, 32))
        cuts = np.sort(generator.choice(np.arange(1, length + 1), min(length, 4), replace=False))
        turns = [(2 * turn + 1, [tuple(cuts[2 * turn :][:2])]) for turn in range(len(cuts) // 2)]
        documents.append(Document(number // 2, [*range(length)], turns))
    return documents, [2] * 25
