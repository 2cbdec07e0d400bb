"""A compressed shard that claims to decode to more than such sequences need is refused by name."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

import mtpack
from mtpack.cli import main
from mtpack.errors import InputError
from mtpack.shards.arrow import shard_schema, write_shard
from mtpack.shards.ipc_messages import count_decoded_bytes
from tests.support.builders import columns_of_sequences, hand_made_sequences, metadata_of

METADATA = metadata_of()
# Of a batch of 4 MiB of token columns whose tokens are all a document and a turn.
LIMIT = "with this seq_len, at most 12,003,142 are read"


def write_small_shard(path: Path, compression: str = "zstd") -> int:
    """Write three sequences and return the bytes to which their record batch decodes."""
    columns = columns_of_sequences(hand_made_sequences(), METADATA)
    write_shard(path, [columns], METADATA, ipc_format="stream", compression=compression)
    return sum(map(count_decoded_bytes, read_batches(path)))


def read_batches(path: Path) -> list[pa.Message]:
    with pa.OSFile(str(path)) as source:
        return list(pa.ipc.MessageReader.open_stream(source))[1:]


def write_claim(path: Path) -> None:
    """Write a small shard, and let its first compressed buffer say that it decodes to 1 TiB."""
    write_small_shard(path)
    content = path.read_bytes()
    claimed = struct.pack("<q", 3 * METADATA.seq_len * 4)  # what `input_ids` decode to
    path.write_bytes(content.replace(claimed, struct.pack("<q", 2**40), 1))


def write_long_lists(path: Path) -> None:
    """Write a sequence with 5 million turns, all 0: 40 MB that zstd makes small."""
    columns = columns_of_sequences(hand_made_sequences()[:1], METADATA)
    schema = shard_schema(METADATA)
    zeros = pa.Array.from_buffers(pa.int32(), 5_000_000, [None, pa.py_buffer(bytes(20_000_000))])
    arrays = []
    for field in schema:
        if pa.types.is_fixed_size_list(field.type):
            values = pa.array(getattr(columns, field.name).ravel())
            arrays.append(pa.FixedSizeListArray.from_arrays(values, METADATA.seq_len))
        elif field.name in ("turn_starts", "turn_messages"):
            arrays.append(pa.ListArray.from_arrays(pa.array([0, len(zeros)], pa.int32()), zeros))
        elif pa.types.is_list(field.type):
            arrays.append(pa.array([getattr(columns, field.name).tolist()], field.type))
        else:
            arrays.append(pa.array([len(zeros)], field.type))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(str(path), schema, options=options) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


BOMBS: dict[str, Callable[[Path], None]] = {"claim": write_claim, "lists": write_long_lists}


@pytest.fixture(params=BOMBS)
def bomb(request, tmp_path) -> Path:
    path = tmp_path / "bomb.arrow"
    BOMBS[request.param](path)
    assert path.stat().st_size < 100_000
    return path


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_the_claim_of_a_small_shard_is_what_it_decodes_to(tmp_path, compression):
    """Arrow decodes it to buffers of this size, so the comparison is with what it allocates."""
    path = tmp_path / "small.arrow"
    claimed = write_small_shard(path, compression)
    with pa.ipc.open_stream(str(path)) as reader:
        (batch,) = reader
        assert claimed == sum(
            buffer.size for column in batch.columns for buffer in column.buffers() if buffer
        )
    assert len(mtpack.open_shards(path)) == 3


@pytest.fixture
def memory_pool() -> Iterator[pa.MemoryPool]:
    """Provide the pool that Arrow takes memory from during this test."""
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    yield pool
    pa.set_memory_pool(default)


def test_a_bomb_is_refused_by_name_before_memory_is_taken(bomb, memory_pool):
    with pytest.raises(InputError, match=rf"bomb\.arrow: a record batch claims .*{LIMIT}"):
        mtpack.open_shards(bomb)
    assert memory_pool.max_memory() < 2**20


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_the_commands_that_read_shards_refuse_a_bomb_in_one_line(bomb, command):
    done = CliRunner().invoke(main, [command, str(bomb)])
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mtpack: {bomb}: a record batch claims to decode to ")
    assert done.stdout == ""
