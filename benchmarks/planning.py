"""How many sequences the planner needs, against the lower bound and best-fit decreasing.

    python benchmarks/planning.py data/*.jsonl.gz --tokenizer path/to/model

Packs the input once, then plans its documents' lengths at several sequence lengths. Seconds are of
planning alone; the last column is what the best of the trainers' packers would need.
"""

from __future__ import annotations

import bisect
import tempfile
import time

import click
import numpy as np

import mtpack
from mtpack.planning import plan_sequences
from mtpack.turns import Int64


@click.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option("--tokenizer")
@click.option("--chat-template")
@click.option("--seq-len", "seq_lens", type=int, multiple=True, default=(2048, 4096, 8192))
def main(
    inputs: tuple[str, ...],
    tokenizer: str | None,
    chat_template: str | None,
    seq_lens: tuple[int, ...],
) -> None:
    """Print a line for each sequence length."""
    with tempfile.TemporaryDirectory() as folder:
        mtpack.pack(
            inputs,
            tokenizer=tokenizer,
            chat_template=chat_template,
            seq_len=max(seq_lens),
            output=f"{folder}/packed",
        )
        shards = mtpack.open_shards(f"{folder}/packed")
        columns = [batch.document_lengths for shard in shards.opened for batch in shard.batches]
        lengths = np.concatenate(columns).astype(np.int64)
    print(f"{'seq_len':>9} {'documents':>10} {'sequences':>10} {'bound':>10} {'s':>6} {'BFD':>10}")
    for seq_len in seq_lens:
        fitting = lengths[(lengths > 0) & (lengths <= seq_len)]
        started = time.perf_counter()
        plan = plan_sequences(fitting, seq_len, "optimal", (0,))
        seconds = time.perf_counter() - started
        print(
            f"{seq_len:>9,} {len(fitting):>10,} {plan.num_sequences:>10,} "
            f"{plan.lower_bound:>10,} {seconds:>6.2f} {best_fit_decreasing(fitting, seq_len):>10,}"
        )


def best_fit_decreasing(lengths: Int64, seq_len: int) -> int:
    """Count the sequences when each document, longest first, goes where it leaves least room."""
    rooms: list[int] = []  # of all sequences, ascending
    for length in np.sort(lengths)[::-1].tolist():
        place = bisect.bisect_left(rooms, length)
        room = rooms.pop(place) if place < len(rooms) else seq_len
        bisect.insort(rooms, room - length)
    return len(rooms)


if __name__ == "__main__":
    main()
