"""Random batches of tensors from the same shards: `PackedDataset` with `collate`, and `datasets`.

Both return the same batches, which is checked before the timing: the columns of a training step,
positions and document offsets for variable length attention, and turn heads. `datasets` reads only
the columns that these need. Its collate function uses torch only, as a user would write it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.packing import ensure_output
from benchmarks.setting import Figures, Setting

BATCH_ROWS = 8
_TOKEN_COLUMNS = ["input_ids", "labels", "loss_mask", "loss_token_num"]
_COLUMNS = [*_TOKEN_COLUMNS, "turn_num", "turn_starts", "seq_lengths"]


def load_batches(setting: Setting) -> Figures:
    """Load in a separate process, so that no other way inherits its libraries."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(
            load_all_ways, ensure_output(setting), setting.workers, setting.read_seconds
        ).result()


def load_all_ways(output: Path, workers: int, seconds: float) -> Figures:
    import datasets
    import torch

    from mtpack.torch_data import PackedDataset, collate

    torch.set_num_threads(1)  # as in a worker of a DataLoader
    packed = PackedDataset(output)
    loaded = datasets.load_from_disk(str(output)).select_columns(_COLUMNS).with_format("torch")
    ways = {"mtpack": (packed, collate), "datasets": (loaded, collate_tensors)}
    _check_same_batches(*(way([rows[0], rows[len(rows) - 1]]) for rows, way in ways.values()))
    return {
        f"batches.{name}.{setup}": figure
        for setup, num_workers in (("alone", 0), ("workers", workers))
        for name, figure in _measure_rows_per_second(ways, num_workers, seconds).items()
    }


def collate_tensors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Build the batch of `mtpack.torch_data.collate` from rows of tensors."""
    import torch

    batch = {name: torch.stack([row[name] for row in rows]) for name in _TOKEN_COLUMNS}
    lengths = [row["seq_lengths"] for row in rows]
    positions = [torch.cat([torch.arange(length) for length in row.tolist()]) for row in lengths]
    ends = torch.cat(lengths).cumsum(0, dtype=torch.int32)
    turn_heads = torch.zeros_like(batch["loss_mask"])
    for heads, row in zip(turn_heads, rows, strict=True):
        heads[row["turn_starts"]] = 1
    return batch | {
        "position_ids": torch.stack(positions),
        "cu_seqlens": torch.nn.functional.pad(ends, (1, 0)),
        "max_seqlen": torch.cat(lengths).max(),
        "turn_num": torch.stack([row["turn_num"] for row in rows]),
        "turn_heads": turn_heads,
    }


def _check_same_batches(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert values.tolist() == theirs[name].tolist(), name


def _measure_rows_per_second(
    ways: dict[str, Any], num_workers: int, seconds: float
) -> dict[str, float]:
    """Load random batches with all ways in turns, for so many seconds each, in ten intervals."""
    batches = {name: _load_endlessly(*way, num_workers) for name, way in ways.items()}
    elapsed, counts = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    for interval in range(11):
        for name in ways:
            started = time.perf_counter()
            count = 0
            while time.perf_counter() - started < seconds / 10:
                next(batches[name])
                count += BATCH_ROWS
            if interval > 0:  # the first one is a warm-up
                elapsed[name] += time.perf_counter() - started
                counts[name] += count
    return {name: counts[name] / elapsed[name] for name in ways}


def _load_endlessly(rows: Any, collate: Callable[..., Any], num_workers: int) -> Iterator[Any]:
    from torch.utils.data import DataLoader, RandomSampler

    return iter(
        DataLoader(
            rows,
            batch_size=BATCH_ROWS,
            sampler=RandomSampler(rows, replacement=True, num_samples=10**9),
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,
            collate_fn=collate,
        )
    )
