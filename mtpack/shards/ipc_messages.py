"""The messages of an Arrow IPC file or stream, and how much memory a record batch needs.

Sources: docs/source/format/Columnar.rst of Apache Arrow (encapsulated messages, compressed
buffers), format/Message.fbs for the fields of `Message` and `RecordBatch`, and the FlatBuffers
internals for tables, vectors and structs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

_MAGIC = b"ARROW1"
_STREAM_START = 8  # in the random-access format, which is a stream between two magic words
# The numbers of fields in their tables.
_HEADER, _BUFFERS, _COMPRESSION = 2, 2, 3
_BUFFER_BYTES = 16
_NOT_COMPRESSED = -1


def read_messages(source: Any) -> Iterator[Any]:
    """Yield the schema message and those of the record batches, from either IPC format.

    source: an Arrow file at its start. Raises ArrowInvalid if it has messages of another kind, as
    dictionaries, or if a random-access file is cut off.
    """
    if source.read(len(_MAGIC)) == _MAGIC:
        source.seek(source.size() - len(_MAGIC))
        if source.read(len(_MAGIC)) != _MAGIC:
            raise pa.ArrowInvalid("the mark at the end of the file is missing")
        source.seek(_STREAM_START)
    else:
        source.seek(0)
    wanted = "schema"
    for message in pa.ipc.MessageReader.open_stream(source):
        if message.type != wanted:
            raise pa.ArrowInvalid(f"a message of the kind {message.type}")
        yield message
        wanted = "record batch"


def count_decoded_bytes(message: Any) -> int:
    """Return the number of bytes that decoding takes; 0 if the batch is not compressed.

    Arrow allocates exactly what the start of each compressed buffer says, and fails if the buffer
    decodes to more. Raises ArrowInvalid for a batch that can't be decoded.
    """
    metadata, body = memoryview(message.metadata), message.body
    try:
        batch = _follow(metadata, _find_field(metadata, _follow(metadata, 0), _HEADER))
        if not _find_field(metadata, batch, _COMPRESSION):
            return 0
        vector = _follow(metadata, _find_field(metadata, batch, _BUFFERS))
        (count,) = struct.unpack_from("<I", metadata, vector)
        content, total = memoryview(body), 0
        for start in range(vector + 4, vector + 4 + count * _BUFFER_BYTES, _BUFFER_BYTES):
            offset, length = struct.unpack_from("<qq", metadata, start)
            if length:
                (size,) = struct.unpack_from("<q", content, _require_inside(offset))
                total += max(size, length if size == _NOT_COMPRESSED else 0)
    except struct.error as error:
        raise pa.ArrowInvalid("a record batch that is damaged") from error
    return total


def _find_field(metadata: memoryview, table: int, number: int) -> int:
    """Return the position of a field of a table; 0 if the table does not have it."""
    (back,) = struct.unpack_from("<i", metadata, table)
    fields = _require_inside(table - back)
    (size,) = struct.unpack_from("<H", metadata, fields)
    slot = 4 + 2 * number
    if slot >= size:
        return 0
    (offset,) = struct.unpack_from("<H", metadata, fields + slot)
    return table + int(offset) if offset else 0


def _follow(metadata: memoryview, position: int) -> int:
    """Return the position that the offset at `position` points to."""
    (offset,) = struct.unpack_from("<I", metadata, position)
    return position + int(offset)


def _require_inside(position: int) -> int:
    if position < 0:  # Python would count from the end
        raise struct.error
    return position
