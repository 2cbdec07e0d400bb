"""Every kind of file that mtpack reads, written from rows."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet

from tests.support.compression import compress_zst

Rows = list[dict[str, Any]]


def make_table(rows: Rows) -> pa.Table:
    """Return a table with a column for every key; what a row lacks is null.

    Values of several types become JSON text, as datasets stores them.
    """
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key) for row in rows] for key in keys}
    try:
        return pa.table({key: pa.array(values) for key, values in columns.items()})
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return datasets.Dataset.from_dict(columns, on_mixed_types="use_json").data.table


def _to_lines(rows: Rows) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def _to_list(rows: Rows) -> bytes:
    return json.dumps(rows, indent=1).encode()


def _text(
    to_bytes: Callable[[Rows], bytes], pack: Callable[[bytes], bytes] = bytes
) -> Callable[[Path, Rows], None]:
    def write(path: Path, rows: Rows) -> None:
        path.write_bytes(pack(to_bytes(rows)))

    return write


def _write_parquet(path: Path, rows: Rows) -> None:
    pa.parquet.write_table(make_table(rows), path)


def _write_stream(path: Path, rows: Rows) -> None:
    table = make_table(rows)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)


def _write_file(path: Path, rows: Rows) -> None:
    table = make_table(rows)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)


def _save_to_disk(path: Path, rows: Rows) -> None:
    data = datasets.Dataset(make_table(rows))
    data.save_to_disk(path, num_shards=min(2, len(rows)))


TEXT_FILES: dict[str, Callable[[Path, Rows], None]] = {
    "lines.jsonl": _text(_to_lines),
    "lines.jsonl.gz": _text(_to_lines, gzip.compress),
    "lines.jsonl.zst": _text(_to_lines, compress_zst),
    "lines.ndjson": _text(_to_lines),
    "lines.json": _text(_to_lines),
    "lines.json.gz": _text(_to_lines, gzip.compress),
    "list.json": _text(_to_list),
    "list.json.gz": _text(_to_list, gzip.compress),
    "list.json.zst": _text(_to_list, compress_zst),
}
"""By file name, what writes rows as JSON."""
TABLES: dict[str, Callable[[Path, Rows], None]] = {
    "table.parquet": _write_parquet,
    "stream.arrow": _write_stream,
    "file.arrow": _write_file,
    "saved": _save_to_disk,
}
"""By file name, what writes rows as a table, or as a folder of `datasets.save_to_disk`."""
FILE_KINDS = TEXT_FILES | TABLES
