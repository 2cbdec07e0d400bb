"""Random rows of the same shards: `mtpack.open_shards` and `datasets` in four formats.

A row counts as read when the library has returned it: arrays over mapped memory in some of them,
copies in others. Of the tensors, ours are a batch of one row: int64 where a model wants it, with
positions and turn heads, without the lists; those of `datasets` are all columns, as int64.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.packing import kept_output
from benchmarks.setting import Figures, Setting

FORMATS = (None, "numpy", "torch", "arrow")
_SECONDS = 0.5  # for each way


def read_rows(setting: Setting) -> Figures:
    """Read in a process of its own, so that no other way inherits its libraries."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(read_all_ways, kept_output(setting)).result()


def read_all_ways(output: Path) -> Figures:
    import datasets

    from mtpack.shards.dataset import open_shards
    from mtpack.torch_data import PackedDataset, collate

    shards, packed = open_shards(output), PackedDataset(output)
    indices = np.random.default_rng(0).integers(len(shards), size=100_000).tolist()
    figures = {
        "rows.mtpack": _rows_a_second(shards.__getitem__, indices),
        "rows.tensors": _rows_a_second(lambda index: collate([packed[index]]), indices),
    }
    for name in FORMATS:
        loaded = datasets.load_from_disk(str(output)).with_format(name)
        figures[f"rows.{name}"] = _rows_a_second(loaded.__getitem__, indices)
    return figures


def _rows_a_second(read: Callable[[int], object], indices: list[int]) -> float:
    """Read rows until their time is up; the first ones warm up."""
    for index in indices[:10]:
        read(index)
    started = time.perf_counter()
    count = 0
    while time.perf_counter() - started < _SECONDS:
        read(indices[count % len(indices)])
        count += 1
    return count / (time.perf_counter() - started)
