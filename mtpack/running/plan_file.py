"""Plan files: which documents are in each sequence of a window.

The task that plans a window writes one, and the tasks that write its shards read it. For f document
files, d documents and s sequences, it holds:

    int64   f, d, s
    int64   the index of the first row of each document file, f
    int64   where the documents of each sequence start, and the end, s + 1
    int32   the file of each document, in the order of the sequences, d
    int32   the index of each document in its file, d
    JSON    the paths of the document files, f
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mtpack.shards.atomic_file import atomic_file
from mtpack.token_batch import Int32, Int64


class StoredPlan(NamedTuple):
    """The plan of a window, with the places of its documents."""

    files: list[str]
    """The document files of its splits."""
    first_rows: Int64
    """(files,): the index of the first row of each split."""
    sequence_offsets: Int64
    """(sequences + 1,): where the documents of each sequence start, and the end."""
    document_files: Int32
    """(documents,): the index of the file of each document, in the order of the sequences."""
    documents: Int32
    """(documents,): the index of each document in its file."""


def save_plan(path: Path, plan: StoredPlan) -> None:
    """Write the plan of a window to a file."""
    numbers = [len(plan.files), len(plan.documents), len(plan.sequence_offsets) - 1]
    arrays = (
        np.array(numbers, dtype=np.int64),
        plan.first_rows,
        plan.sequence_offsets,
        plan.document_files,
        plan.documents,
    )
    with atomic_file(path) as file:
        file.writelines(np.ascontiguousarray(array).data for array in arrays)
        file.write(json.dumps(plan.files).encode())


def open_plan(path: Path) -> StoredPlan:
    """Map a file that `save_plan` wrote into memory."""
    with pa.memory_map(str(path)) as file:
        view = memoryview(file.read_buffer())
    files, documents, sequences = view[:24].cast("q")
    wide: Int64 = np.frombuffer(view, np.int64, files + sequences + 1, offset=24)
    offset = 24 + wide.nbytes
    narrow: Int32 = np.frombuffer(view, np.int32, 2 * documents, offset=offset)
    return StoredPlan(
        files=json.loads(bytes(view[offset + narrow.nbytes :])),
        first_rows=wide[:files],
        sequence_offsets=wide[files:],
        document_files=narrow[:documents],
        documents=narrow[documents:],
    )
