"""`verify`, samples: their least size, and shortened sequences whose turns are whole."""

from __future__ import annotations

import numpy as np
import pytest

from mtpack.shards.dataset import Row
from tests.support.builders import (
    hand_made_sequences,
    open_sequences,
    random_sequences,
    weigh_turns,
)

torch = pytest.importorskip("torch")

from mtpack.torch_data import PackedDataset  # noqa: E402
from mtpack.verify.causal_model import fold_ids, make_built_in_model  # noqa: E402
from mtpack.verify.equivalence import check_equivalence  # noqa: E402
from mtpack.verify.sampling import (  # noqa: E402
    LEAST,
    USUAL,
    SampleSize,
    count_coverage,
    draw_sample,
    find_entries,
    find_turns,
    shorten_row,
)

ALIGNMENTS = ("aligned", "shifted")


pytestmark = pytest.mark.usefixtures("one_thread")


def read_turns(row: Row, alignment: str) -> dict[tuple[int, int], list[int]]:
    """Return the tokens of each turn and the one before it, by dialogue and message."""
    entries = find_entries(row)[row["turn_starts"]]
    return {
        (int(row["dialogue_ids"][entry]), int(message)): [
            int(row["input_ids"][turn.positions[0] - 1]),
            *row["input_ids"][turn.positions].tolist(),
        ]
        for entry, message, turn in zip(
            entries, row["turn_messages"], find_turns(row, alignment), strict=True
        )
    }


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("size", [SampleSize(1, 1, 16), SampleSize(1, 2, 40), LEAST, USUAL])
def test_a_shortened_sequence_has_whole_turns_and_consistent_columns(
    tmp_path, alignment, multiple, size
):
    sequences = random_sequences(0, 700, [[150, 300, 249], [600, 90], [12, 500], [8, 9, 10]])
    sequences = weigh_turns(sequences, 512, 3072, 100, 1)
    for row in open_sequences(tmp_path, sequences, alignment, multiple, seq_len=720):
        short = shorten_row(row, size, alignment)
        turns, kept = read_turns(row, alignment), read_turns(short, alignment)
        assert kept.items() <= turns.items()
        weights = dict(zip(turns, row["turn_weights"], strict=True))
        assert short["turn_weights"].tolist() == [weights[turn] for turn in kept]
        assert short["loss_mask"].sum() == sum(len(tokens) - 1 for tokens in kept.values())
        assert short["seq_lengths"].sum() == len(short["input_ids"]) == len(short["labels"])
        documents = short["document_lengths"][short["dialogue_ids"] >= 0]
        lengths = row["document_lengths"][row["dialogue_ids"] >= 0]
        assert len(documents) == min(size.documents, len(lengths))
        assert (documents >= 16).sum() == min(len(documents), (lengths >= 16).sum())
        model = make_built_in_model("cpu", torch.float64)
        assert check_equivalence(model, fold_ids([short]), alignment)[0].ok


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("multiple", [1, 8])
def test_a_sequence_of_short_documents_stays_as_it_is(tmp_path, alignment, multiple):
    for row in open_sequences(tmp_path, hand_made_sequences(), alignment, multiple):
        short = shorten_row(row, LEAST, alignment)
        assert short.keys() == row.keys()
        assert all(np.array_equal(short[name], row[name]) for name in row)


@pytest.mark.parametrize("size", [LEAST, USUAL])
def test_a_sample_has_three_sequences_with_two_documents_and_eight_turns(tmp_path, size):
    lone = [[690]] * 40  # most sequences have one document
    sequences = random_sequences(0, 700, [*lone, [300, 390], [20, 600], *lone, [16, 16, 9]])
    shards = open_sequences(tmp_path, sequences, seq_len=700)
    rows = draw_sample(PackedDataset(tmp_path / "out"), size)
    assert sum((row["document_lengths"] >= 16).sum() >= 2 for row in rows) == 3
    assert sum(row["turn_num"] for row in rows) >= 8
    coverage = count_coverage(rows, shards)
    assert (coverage["sequences"], coverage["sequences_of"]) == (len(rows), 83)
    assert coverage["turns_of"] == sum(row["turn_num"] for row in shards)
    assert coverage["documents_of"] == 80 + 7


def test_sequences_of_one_turn_are_drawn_until_there_are_eight_turns(tmp_path):
    open_sequences(tmp_path, random_sequences(0, 64, [[20, 20]] * 9), seq_len=64)
    rows = draw_sample(PackedDataset(tmp_path / "out"), LEAST)
    assert [row["turn_num"] for row in rows] == [2, 2, 2, 2]


def test_the_same_sample_is_drawn_again(tmp_path):
    open_sequences(tmp_path, random_sequences(0, 700, [[300, 390]] * 20), seq_len=700)
    dataset = PackedDataset(tmp_path / "out")
    first, second = (draw_sample(dataset, LEAST) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one["input_ids"].tolist() == other["input_ids"].tolist()
