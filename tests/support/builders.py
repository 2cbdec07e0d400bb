"""Build columns, shards, or an output folder with its manifest from hand-made documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from mtpack.counts import Counts
from mtpack.packing.columns import Columns, Layout, assemble
from mtpack.shards.arrow import (
    ENTRY_COLUMNS,
    EXTRA_TYPES,
    TOKEN_COLUMNS,
    TURN_COLUMNS,
    ShardMetadata,
    write_shard,
)
from mtpack.shards.dataset import Shards, open_shards
from mtpack.shards.manifest import (
    MANIFEST,
    Manifest,
    PackReport,
    RunIdentity,
    RunInfo,
    ShardRecord,
)
from mtpack.token_batch import offsets_from_lengths
from tests.support.strategies import Document, Turn, as_batch

PAD_ID = 0
SEQ_LEN = 32


def hand_made_sequences() -> list[list[Document]]:
    """Return three sequences of at most 32 tokens, for documents padded to multiples of 1 or 8.

    They have turns of 1 to 7 tokens, one of them with two spans; a dialogue in two documents and
    two sequences; a sequence without padding after its documents (24 + 8); and a token in a
    document with the id of padding.
    """
    return [
        [
            Document(0, [*range(10, 20)], [Turn(1, 0, [(2, 3)]), Turn(3, 0, [(5, 10)])]),
            Document(2, [*range(30, 34)], [Turn(2, 0, [(1, 4)])]),
        ],
        [
            Document(
                2,
                [*range(40, 63), PAD_ID],
                [
                    Turn(4, 0, [(3, 5), (7, 9)]),
                    Turn(6, 0, [(9, 11)]),
                    Turn(8, 0, [(20, 24)]),
                ],
            ),
            Document(5, [*range(70, 78)], [Turn(1, 0, [(1, 8)])]),
        ],
        [Document(7, [*range(10, 23)], [Turn(1, 0, [(4, 6)]), Turn(3, 0, [(9, 13)])])],
    ]


def weigh_turns(sequences: list[list[Document]], *units: int) -> list[list[Document]]:
    """Return sequences whose turns have these weights in units of 1/1024, over and over."""
    next_units = cycle(units)
    return [
        [
            replace(each, turns=[replace(turn, units=next(next_units)) for turn in each.turns])
            for each in sequence
        ]
        for sequence in sequences
    ]


def metadata_of(
    label_alignment: str = "aligned",
    pad_documents_to: int = 1,
    seq_len: int = SEQ_LEN,
    extra_columns: tuple[str, ...] = (),
) -> ShardMetadata:
    layout = seq_len, label_alignment, pad_documents_to, PAD_ID
    return ShardMetadata(*layout, "0" * 64, "1" * 64, extra_columns=extra_columns)


def columns_of_sequences(sequences: list[list[Document]], layout: Layout) -> Columns:
    """Return the columns of these sequences; each inner list is a sequence."""
    documents = [document for sequence in sequences for document in sequence]
    return assemble(
        as_batch(documents),
        offsets_from_lengths(np.array([len(sequence) for sequence in sequences])),
        layout,
    )


def write_columns(
    path: Path, columns: Columns, metadata: ShardMetadata, batch_rows: int = 256
) -> str:
    """Write a shard and return its sha256."""
    _, sha256 = write_shard(
        path,
        cut_into_batches(columns, batch_rows),
        metadata,
        ipc_format="stream",
        compression="none",
    )
    return sha256


def cut_into_batches(columns: Columns, batch_rows: int) -> Iterator[Columns]:
    """Yield the columns of every record batch."""
    for first in range(0, len(columns.turn_num), batch_rows):
        rows = slice(first, first + batch_rows)
        cut: dict[str, Any] = {
            name: getattr(columns, name)[rows] for name in (*TOKEN_COLUMNS, "turn_num")
        }
        for offsets, names in (("turn_offsets", TURN_COLUMNS), ("entry_offsets", ENTRY_COLUMNS)):
            edges = getattr(columns, offsets)[first : first + batch_rows + 1]
            cut[offsets] = edges - edges[0]
            cut |= {name: getattr(columns, name)[edges[0] : edges[-1]] for name in names}
            for name in EXTRA_TYPES if offsets == "turn_offsets" else ():
                values = getattr(columns, name)
                cut[name] = None if values is None else values[edges[0] : edges[-1]]
        yield Columns(**cut)


def tally_of(parts: list[Columns], **changes: Any) -> Counts:
    """Return the counts of a run that wrote these columns and dropped and rejected nothing."""
    documents = [columns.dialogue_ids[columns.dialogue_ids >= 0] for columns in parts]
    tokens = sum(int(columns.document_lengths.sum()) for columns in parts)
    turns = sum(int(columns.turn_num.sum()) for columns in parts)
    rows = len(np.unique(np.concatenate(documents)))
    counts = Counts(
        rows_read=rows,
        rows_packed=rows,
        documents=sum(map(len, documents)),
        turns_read=turns,
        turns_packed=turns,
        tokens=tokens,
        tokens_if_merged=tokens,
        loss_tokens=sum(int(columns.loss_mask.sum()) for columns in parts),
        weight_units=sum(
            int(columns.turn_weights.sum() * 1024)
            for columns in parts
            if columns.turn_weights is not None
        ),
        sequences=sum(len(columns.turn_num) for columns in parts),
        sequences_lower_bound=1,
    )
    return replace(counts, **changes)


def write_output(
    folder: Path, parts: list[Columns], metadata: ShardMetadata, tally: Counts | None = None
) -> Path:
    """Write an output folder: one shard for each element of `parts`, and a manifest."""
    folder.mkdir()
    records = []
    for number, columns in enumerate(parts):
        path = folder / f"shard-{number:05}.arrow"
        sha256 = write_columns(path, columns, metadata)
        rows = len(columns.turn_num)
        records.append(ShardRecord(path.name, rows, path.stat().st_size, sha256))
    run = RunIdentity(
        options={"seq_len": metadata.seq_len},
        inputs=[],
        tokenizer_sha256=metadata.tokenizer_sha256,
        template_sha256=metadata.template_sha256,
    )
    about = RunInfo(
        mtpack_version="0",
        tokenizer="none",
        seconds={"start": 0.0, "total": 0.0},
        warnings=[],
        inputs=[],
    )
    report = PackReport(
        output=str(folder),
        seq_len=metadata.seq_len,
        tally=tally or tally_of(parts),
        shards=records,
        about=about,
    )
    Manifest(run, report).write(folder / MANIFEST)
    return folder


def random_sequences(
    seed: int, seq_len: int, document_lengths: list[list[int]], vocabulary: int = 1000
) -> list[list[Document]]:
    """Return random documents of these lengths, with turns of many lengths.

    Each inner list is a sequence.
    """
    random = np.random.default_rng(seed)
    sequences = []
    row = 0
    for lengths in document_lengths:
        assert sum(lengths) <= seq_len
        documents = []
        for length in lengths:
            edges = np.unique(random.integers(1, length, size=max(1, length // 40)))
            starts, ends = edges, np.append(edges[1:], length)
            ends = np.maximum(starts + 1, ends - random.integers(0, 20, len(ends)))
            ends[-1] = length
            turns = [
                Turn(2 * number + 1, 0, [(int(start), int(end))])
                for number, (start, end) in enumerate(zip(starts, ends, strict=True))
            ]
            ids = random.integers(1, vocabulary, size=length).tolist()
            documents.append(Document(row, ids, turns))
            row += 1
        sequences.append(documents)
    return sequences


def open_sequences(
    tmp_path: Path,
    sequences: list[list[Document]],
    label_alignment: str = "aligned",
    pad_documents_to: int = 1,
    seq_len: int = SEQ_LEN,
) -> Shards:
    """Write an output folder, `tmp_path / "out"`, and open it; each inner list is a sequence.

    It has weights if the turns have some.
    """
    turns = [turn for sequence in sequences for document in sequence for turn in document.turns]
    extra = ("turn_weights",) if any(turn.units is not None for turn in turns) else ()
    metadata = metadata_of(label_alignment, pad_documents_to, seq_len, extra)
    columns = columns_of_sequences(sequences, metadata)
    return open_shards(write_output(tmp_path / "out", [columns], metadata))
