"""The share of the loss that turns of each length have, under several means."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from mtpack.report.verify_view import show
from mtpack.verify.verify import VerifyReport
from mtpack.verify.weights import MEANS, compute_weight_buckets
from tests.support.builders import (
    hand_made_sequences,
    open_sequences,
    random_sequences,
    weigh_turns,
)
from tests.support.strategies import Document, Turn


def compute_by_definition(sequences: list[list[Document]]) -> list[tuple[int, dict[str, float]]]:
    """Return the length of every turn and its weight under each mean, document by document."""
    found = []
    for document in (document for sequence in sequences for document in sequence):
        lengths = [sum(stop - start for start, stop in turn.spans) for turn in document.turns]
        for turn, length in zip(document.turns, lengths, strict=True):
            own = 1 if turn.units is None else turn.units / 1024
            weights = {
                "turn_mean": own,
                "token_mean": own * length,
                "dialogue_mean": own * length / sum(lengths),
                "square_root": own * length**0.5,
            }
            found.append((length, weights))
    return found


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
@pytest.mark.parametrize(
    "sequences",
    [
        hand_made_sequences(),
        random_sequences(3, 200, [[90, 60, 50], [200], [30, 40]]),
        weigh_turns(hand_made_sequences(), 512, 3072, 1),
    ],
)
def test_weights_equal_those_of_the_definition(tmp_path, alignment, sequences):
    buckets = compute_weight_buckets(open_sequences(tmp_path, sequences, alignment, seq_len=224))
    turns = compute_by_definition(sequences)
    for mean in MEANS:
        whole = sum(weights[mean] for _, weights in turns)
        for bucket in buckets:
            expected = sum(
                weights[mean] for length, weights in turns if bucket.low <= length <= bucket.high
            )
            assert bucket.weights[mean] == pytest.approx(expected / whole)
        assert sum(bucket.weights[mean] for bucket in buckets) == pytest.approx(1)
    assert sum(bucket.turns for bucket in buckets) == len(turns)
    assert sum(bucket.tokens for bucket in buckets) == sum(length for length, _ in turns)


def test_buckets_are_powers_of_two_without_a_gap_between_them(tmp_path):
    turns = [Turn(1, 0, [(1, 2)]), Turn(3, 0, [(10, 15)])]
    document = Document(0, [*range(15)], turns)
    buckets = compute_weight_buckets(open_sequences(tmp_path, [[document]]))
    assert [(bucket.low, bucket.high, bucket.turns, bucket.tokens) for bucket in buckets] == [
        (1, 1, 1, 1),
        (2, 3, 0, 0),
        (4, 7, 1, 5),
    ]
    assert [bucket.weights["token_mean"] for bucket in buckets] == pytest.approx([1 / 6, 0, 5 / 6])


def test_the_table_has_the_weight_of_a_turn_under_the_token_mean(tmp_path):
    document = Document(
        0, [*range(15)], [Turn(1, 0, [(1, 2)]), Turn(3, 0, [(4, 9)]), Turn(5, 0, [(9, 15)])]
    )
    report = VerifyReport(
        rows=1,
        rows_of=1,
        checks={},
        device="cpu",
        violation=None,
        tally=None,
        weights=compute_weight_buckets(open_sequences(tmp_path, [[document]])),
    )
    console = Console(file=io.StringIO(), width=80)
    show(report, console)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    # Turns of 1, 5 and 6 tokens: the first has 1/12 of the tokens, and is 1/3 of the turns.
    assert ["1", "1", "33.3%", "8.3%", "8.3%", "17.6%", "0.25"] in lines
    assert np.isclose(1 / (1 + 5**0.5 + 6**0.5), 0.176, atol=5e-4)
    assert ["2-3", "0", "0.0%", "0.0%", "0.0%", "0.0%"] in lines
