"""The documents of an output folder as text, with what is trained in ⟦brackets⟧."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import mtpack

Decode = Callable[..., str]


def list_texts(output: Path, decode: Decode) -> list[tuple[int, str]]:
    """Return the input row and the text of each document, in the order of rows, then of turns.

    decode: the method of a tokenizer of the library tokenizers.
    """
    found = []
    for row in mtpack.open_shards(output):
        for dialogue, start, end in iterate_documents(row):
            turns = [
                (int(turn), int(message))
                for turn, message in zip(row["turn_starts"], row["turn_messages"], strict=True)
                if start <= turn < end
            ]
            text = bracket_text(row, start, end, [turn for turn, _ in turns], decode)
            found.append((dialogue, turns[0][1], text))
    return [(dialogue, text) for dialogue, _, text in sorted(found)]


def iterate_documents(row: dict[str, Any]) -> Iterator[tuple[int, int, int]]:
    """Yield the input row, the start and the end of each document of a sequence."""
    ends = np.cumsum(row["seq_lengths"])
    for dialogue, start, end in zip(
        row["dialogue_ids"], ends - row["seq_lengths"], ends, strict=True
    ):
        if dialogue >= 0:
            yield int(dialogue), int(start), int(end)


def bracket_text(
    row: dict[str, Any], start: int, end: int, turn_starts: list[int], decode: Decode
) -> str:
    """Return the text of a document, with each run of loss tokens of one turn in brackets."""
    mask = row["loss_mask"][start:end]
    edges = {0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), end - start}
    edges |= {turn - start for turn in turn_starts}  # a turn may begin where another ends
    text = ""
    for first, last in pairwise(sorted(edges)):
        part = decode(row["input_ids"][start + first : start + last], skip_special_tokens=False)
        text += f"⟦{part}⟧" if mask[first] else part
    return text
