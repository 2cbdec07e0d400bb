"""`open_shards`: what reads all shards once takes the memory of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mtpack.shards.dataset import Shards, map_shards
from tests.support.builders import columns_of_sequences, metadata_of, write_output
from tests.support.strategies import Document, Turn

SMAPS = Path("/proc/self/smaps")
SEQ_LEN, SEQUENCES, SHARDS = 4096, 64, 4


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Shards of 3 MB each."""
    metadata = metadata_of(seq_len=SEQ_LEN)
    ids = [1000 + number for number in range(SEQ_LEN)]
    parts = [
        columns_of_sequences(
            [
                [Document(shard * SEQUENCES + number, ids, [Turn(1, 0, [(1, SEQ_LEN)])])]
                for number in range(SEQUENCES)
            ],
            metadata,
        )
        for shard in range(SHARDS)
    ]
    return map_shards(write_output(tmp_path / "packed", parts, metadata))


def count_resident_bytes(folder: Path) -> int:
    """Return how much of the files of a folder is in the memory of this process, as mapped pages.

    See proc(5), `/proc/pid/smaps`.
    """
    total, is_inside = 0, False
    for line in SMAPS.read_text().splitlines():
        if line.split()[0].endswith(":"):
            total += int(line.split()[1]) * 1024 if is_inside and line.startswith("Rss:") else 0
        else:
            is_inside = str(folder) in line
    return total


@pytest.mark.skipif(not SMAPS.exists(), reason="needs /proc to see which pages are mapped")
def test_a_pass_over_all_shards_holds_the_pages_of_one(shards: Shards, tmp_path: Path) -> None:
    shard_bytes = max(path.stat().st_size for path in tmp_path.rglob("shard-*.arrow"))
    most = 0
    for batch in shards.batches():
        for name in ("input_ids", "labels", "loss_mask", "loss_token_num"):
            assert np.count_nonzero(getattr(batch, name))
        most = max(most, count_resident_bytes(tmp_path))
        del batch
    assert 0.9 * shard_bytes < most < 1.5 * shard_bytes
