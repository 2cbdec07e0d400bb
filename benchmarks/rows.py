"""Random sequences of the same shards: `mtpack.open_shards` and `datasets` in four formats.

A sequence counts as read when the library has returned it: as arrays over mapped memory in some
formats, as copies in others. As tensors, mtpack returns a batch of one sequence: int64 where a
model needs it, with positions and turn heads, without the lists. `datasets` returns all columns as
int64.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.packing import ensure_output
from benchmarks.setting import Figures, Setting

FORMATS = (None, "numpy", "torch", "arrow")


def read_rows(setting: Setting) -> Figures:
    """Read in a separate process, so that no other way inherits its libraries."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(read_all_ways, ensure_output(setting), setting.read_seconds).result()


def read_all_ways(output: Path, seconds: float) -> Figures:
    import datasets

    from mtpack.shards.dataset import open_shards
    from mtpack.torch_data import PackedDataset, collate

    shards, packed = open_shards(output), PackedDataset(output)
    indices = np.random.default_rng(0).integers(len(shards), size=100_000).tolist()
    figures = {
        "rows.mtpack": _measure_rows_per_second(shards.__getitem__, indices, seconds),
        "rows.tensors": _measure_rows_per_second(
            lambda index: collate([packed[index]]), indices, seconds
        ),
    }
    for name in FORMATS:
        loaded = datasets.load_from_disk(str(output)).with_format(name)
        figures[f"rows.{name}"] = _measure_rows_per_second(loaded.__getitem__, indices, seconds)
    return figures


def _measure_rows_per_second(
    read: Callable[[int], object], indices: list[int], seconds: float
) -> float:
    """Read sequences for some seconds, after a warm-up of ten."""
    for index in indices[:10]:
        read(index)
    started = time.perf_counter()
    count = 0
    while time.perf_counter() - started < seconds:
        read(indices[count % len(indices)])
        count += 1
    return count / (time.perf_counter() - started)
