"""The planner: number of sequences, time and memory.

    python benchmarks/planning.py
    python benchmarks/planning.py --kind short --documents 10000000 --seq-len 4096
    python benchmarks/planning.py data/*.jsonl.gz --tokenizer path/to/model

Without inputs, random lengths are drawn, by default for one window of `pack` (256 Mi tokens).
Inputs are packed once, and the lengths of their documents are planned at each sequence length.

Every line is planned in a separate process on one core; seconds are CPU time. `peak MB` is the
peak memory of the process, including the interpreter, numpy and the lengths. The last columns are
best-fit decreasing, the best packer of other trainers. Here it also works on the histogram of the
lengths, which is far faster than their implementations.
"""

from __future__ import annotations

import bisect
import math
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import click
import numpy as np

import mtpack
from mtpack.packing.plan import plan_sequences
from mtpack.token_batch import Int32

Draw = Callable[[np.random.Generator, int, int], np.ndarray]
_WINDOW = 2**28  # tokens

KINDS: dict[str, Draw] = {
    # Each maps (random, documents, seq_len) to lengths, which are then clipped to 1 ... seq_len.
    "short": lambda random, num, seq_len: random.lognormal(5.5, 1, num),
    "long": lambda random, num, seq_len: random.lognormal(math.log(seq_len / 3), 0.6, num),
    "uniform": lambda random, num, seq_len: random.integers(1, seq_len + 1, num),
    "half and fills": lambda random, num, seq_len: np.where(
        random.random(num) < 0.5,
        seq_len // 2 + 1 + random.integers(0, seq_len // 50 + 1, num),
        random.integers(1, seq_len // 2, num),
    ),
    "above half": lambda random, num, seq_len: (
        seq_len // 2 + 1 + random.integers(0, seq_len // 50 + 1, num)
    ),
    "equal": lambda random, num, seq_len: np.full(num, seq_len * 2 // 5),
    "few lengths": lambda random, num, seq_len: random.choice(
        (np.array([0.11, 0.23, 0.31, 0.37, 0.47]) * seq_len).astype(np.int64), num
    ),
    "all different": lambda random, num, seq_len: 1 + np.arange(num) % seq_len,
    # Without short documents for the gaps, almost every sequence is hard to fill.
    "tenth to quarter": lambda random, num, seq_len: random.integers(
        seq_len // 10, seq_len // 4, num
    ),
    "quarter to half": lambda random, num, seq_len: random.integers(
        seq_len // 4, seq_len // 2, num
    ),
    "cut at half": lambda random, num, seq_len: np.minimum(
        random.normal(0.37 * seq_len, 0.12 * seq_len, num), seq_len // 2
    ),
}


class PlanResult(NamedTuple):
    """The cost and the result of one plan, and of best-fit decreasing."""

    documents: int
    sequences: int
    lower_bound: int
    seconds: float
    peak_bytes: int
    best_fit: int
    best_fit_seconds: float


@click.command()
@click.argument("inputs", nargs=-1)
@click.option("--tokenizer")
@click.option("--chat-template")
@click.option("--seq-len", "seq_lens", type=int, multiple=True)
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, default=KINDS)
@click.option("--documents", type=int, help="Documents to draw. Default: one window.")
def main(
    inputs: tuple[str, ...],
    tokenizer: str | None,
    chat_template: str | None,
    seq_lens: tuple[int, ...],
    kinds: tuple[str, ...],
    documents: int | None,
) -> None:
    """Print a line for each sequence length; without INPUTS, also for each kind of lengths."""
    seq_lens = seq_lens or ((2048, 4096, 8192) if inputs else (2048, 16_384, 131_072, 1_048_576))
    print(
        f"{'lengths':<16} {'seq_len':>9} {'documents':>11} {'sequences':>10} {'bound':>10} "
        f"{'excess':>8} {'s':>6} {'peak MB':>8} {'BFD':>10} {'BFD s':>6}"
    )
    lengths = pack_lengths(inputs, tokenizer, chat_template, max(seq_lens)) if inputs else None
    for kind in ["input"] if inputs else kinds:
        for seq_len in seq_lens:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                found = process.submit(measure_plan, kind, seq_len, lengths, documents).result()
            excess = 100 * (found.sequences / found.lower_bound - 1)
            print(
                f"{kind:<16} {seq_len:>9,} {found.documents:>11,} {found.sequences:>10,} "
                f"{found.lower_bound:>10,} {excess:>7.3f}% {found.seconds:>6.2f} "
                f"{found.peak_bytes / 1e6:>8,.0f} {found.best_fit:>10,} "
                f"{found.best_fit_seconds:>6.2f}",
                flush=True,
            )


def pack_lengths(
    inputs: tuple[str, ...], tokenizer: str | None, chat_template: str | None, seq_len: int
) -> Int32:
    """Pack the inputs and return the lengths of their documents."""
    with tempfile.TemporaryDirectory() as folder:
        mtpack.pack(
            inputs,
            tokenizer=tokenizer,
            chat_template=chat_template,
            seq_len=seq_len,
            output=f"{folder}/packed",
        )
        shards = mtpack.open_shards(f"{folder}/packed")
        columns = [batch.document_lengths for shard in shards.opened for batch in shard.batches]
        return np.concatenate(columns)


def draw_lengths(kind: str, seq_len: int, documents: int | None) -> Int32:
    """Draw the lengths of `documents` documents, or of one window."""

    def draw(num: int) -> Int32:
        drawn = KINDS[kind](np.random.default_rng(0), num, seq_len)
        return np.clip(drawn, 1, seq_len, out=drawn).astype(np.int32)

    if documents is not None:
        return draw(documents)
    return draw(max(1, int(_WINDOW / draw(100_000).mean())))


def measure_plan(
    kind: str, seq_len: int, lengths: Int32 | None, documents: int | None
) -> PlanResult:
    """Plan in this process, which must be new, because its peak memory is measured."""
    if lengths is None:
        lengths = draw_lengths(kind, seq_len, documents)
    lengths = lengths[(lengths > 0) & (lengths <= seq_len)]
    started = time.process_time()
    plan = plan_sequences(lengths, seq_len, "dense", (0,))
    seconds = time.process_time() - started
    unit = 1 if sys.platform == "darwin" else 1024
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    started = time.process_time()
    best_fit = count_best_fit_decreasing(lengths, seq_len)
    return PlanResult(
        documents=len(lengths),
        sequences=plan.num_sequences,
        lower_bound=plan.lower_bound,
        seconds=seconds,
        peak_bytes=peak_bytes,
        best_fit=best_fit,
        best_fit_seconds=time.process_time() - started,
    )


def count_best_fit_decreasing(lengths: Int32, seq_len: int) -> int:
    """Return the number of sequences of best-fit decreasing.

    It places documents, the longest first, into the sequence with the least room that is
    sufficient. Documents of one length are placed together: the tightest sequence stays the
    tightest until it has no room for another of them.
    """
    counts = np.bincount(lengths)
    rooms: list[int] = []  # the different amounts of free room in open sequences, ascending
    sequences_with: Counter[int] = Counter()
    num_sequences = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            index = bisect.bisect_left(rooms, length)
            room = rooms[index] if index < len(rooms) else seq_len
            each = min(left, room // length)
            filled = left // each
            if index < len(rooms):
                filled = min(filled, sequences_with[room])
                sequences_with[room] -= filled
                if not sequences_with[room]:
                    del rooms[index]
            else:
                num_sequences += filled
            left -= each * filled
            rest = room - each * length
            if not sequences_with[rest]:
                bisect.insort(rooms, rest)
            sequences_with[rest] += filled
    return num_sequences


if __name__ == "__main__":
    main()
