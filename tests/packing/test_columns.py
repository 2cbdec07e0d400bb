"""The columns of a shard follow docs/format.md: they equal those of simple loops and obey laws."""

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpack.packing.columns import Columns, Layout, assemble, pad_lengths
from mtpack.token_batch import TokenBatch, TurnFlag
from tests.support.strategies import Document, as_batch, as_documents, token_batches

SEQUENCE_COLUMNS = ("input_ids", "labels", "loss_mask", "loss_token_num", "turn_num")
EXTRA_COLUMNS = ("turn_bent", "turn_weights")
TURN_COLUMNS = ("turn_starts", "turn_messages", *EXTRA_COLUMNS)
ENTRY_COLUMNS = ("seq_lengths", "document_lengths", "dialogue_ids")


@dataclass(frozen=True)
class Case:
    """Documents, the indices of those in each sequence, and the layout."""

    batch: TokenBatch
    plan: list[list[int]]
    layout: Layout

    @property
    def documents(self) -> list[Document]:
        return as_documents(self.batch)


@st.composite
def cases(draw) -> Case:
    """Draw documents in any order; each sequence has as many as fit, or fewer."""
    batch = draw(token_batches())
    multiple = draw(st.sampled_from([1, 4, 8]))
    lengths = pad_lengths(batch.document_lengths, multiple).tolist()
    longest = max(lengths, default=multiple)
    seq_len = longest + multiple * draw(st.integers(0, 8))
    plan: list[list[int]] = []
    room = 0
    for document in draw(st.permutations(range(len(lengths)))):
        if lengths[document] > room or draw(st.booleans()):
            plan.append([])
            room = seq_len
        plan[-1].append(document)
        room -= lengths[document]
    # The padding token may also be in documents, for example if it is the end-of-turn token.
    pad_id = draw(st.sampled_from([0, 1000, 1001, 2002]))
    alignment = draw(st.sampled_from(["aligned", "shifted"]))
    layout = Layout(seq_len, alignment, multiple, pad_id, extra_columns=EXTRA_COLUMNS)
    return Case(batch, plan, layout)


def assemble_case(case: Case) -> Columns:
    order = [document for sequence in case.plan for document in sequence]
    offsets = list(accumulate(map(len, case.plan), initial=0))
    return assemble(
        case.batch.take(np.array(order, dtype=np.int64)),
        np.array(offsets, dtype=np.int64),
        case.layout,
    )


def as_lists(columns: Columns) -> dict[str, list]:
    """Return the columns as lists with one value or list per sequence."""

    def cut(values: list, offsets: list[int]) -> list[list]:
        return [values[start:end] for start, end in pairwise(offsets)]

    lists = {name: getattr(columns, name).tolist() for name in SEQUENCE_COLUMNS}
    for name in TURN_COLUMNS:
        lists[name] = cut(getattr(columns, name).tolist(), columns.turn_offsets.tolist())
    for name in ENTRY_COLUMNS:
        lists[name] = cut(getattr(columns, name).tolist(), columns.entry_offsets.tolist())
    return lists


def as_rows(case: Case) -> list[dict]:
    """Return the sequences, each as a mapping of its columns."""
    lists = as_lists(assemble_case(case))
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def lay_out(documents: list[Document], plan: list[list[int]], layout: Layout) -> dict[str, list]:
    """Do what `assemble` does in the simplest way: docs/format.md, token by token."""
    columns: dict[str, list] = {
        name: [] for name in (*SEQUENCE_COLUMNS, *TURN_COLUMNS, *ENTRY_COLUMNS)
    }
    for sequence in plan:
        row: dict[str, list] = {name: [] for name in columns}
        row["turn_num"] = 0
        for number in sequence:
            _add_document(row, documents[number], layout)
        padding = layout.seq_len - len(row["input_ids"])
        if padding:
            _add_tokens(row, padding, layout)
            row["seq_lengths"].append(padding)
            row["document_lengths"].append(0)
            row["dialogue_ids"].append(-1)
        for name, value in row.items():
            columns[name].append(value)
    return columns


def _add_document(row: dict[str, list], document: Document, layout: Layout) -> None:
    start = len(row["input_ids"])
    length = len(document.ids)
    while length % layout.pad_documents_to:
        length += 1
    _add_tokens(row, length, layout)
    for position, token in enumerate(document.ids):
        row["input_ids"][start + position] = token
    for turn in document.turns:
        indices = []
        for position in turn.positions:
            index = start + position - (1 if layout.label_alignment == "shifted" else 0)
            row["labels"][index] = document.ids[position]
            row["loss_mask"][index] = 1
            row["loss_token_num"][index] = len(turn.positions)
            indices.append(index)
        row["turn_num"] += 1
        row["turn_starts"].append(indices[0])
        row["turn_messages"].append(turn.message)
        row["turn_bent"].append(int(turn.flags & TurnFlag.BENT > 0))
        row["turn_weights"].append(1.0 if turn.units is None else turn.units / 1024)
    row["seq_lengths"].append(length)
    row["document_lengths"].append(len(document.ids))
    row["dialogue_ids"].append(document.row)


def _add_tokens(row: dict[str, list], num: int, layout: Layout) -> None:
    row["input_ids"] += [layout.pad_id] * num
    row["labels"] += [-100] * num
    row["loss_mask"] += [0] * num
    row["loss_token_num"] += [1] * num


def entries_of(row: dict) -> list[tuple[int, int, int, int]]:
    """Return (start, end of the document, end of its padding, dialogue) of each entry."""
    ends = list(accumulate(row["seq_lengths"]))
    return [
        (end - length, end - length + document_length, end, dialogue)
        for end, length, document_length, dialogue in zip(
            ends, row["seq_lengths"], row["document_lengths"], row["dialogue_ids"], strict=True
        )
    ]


@given(cases())
def test_the_columns_equal_those_of_simple_loops(case):
    assert as_lists(assemble_case(case)) == lay_out(case.documents, case.plan, case.layout)


@given(cases())
def test_the_columns_have_the_dtypes_and_shapes_of_the_format(case):
    columns = assemble_case(case)
    types = {field.name: getattr(columns, field.name).dtype.name for field in fields(Columns)}
    others = {
        "loss_mask": "uint8",
        "turn_bent": "uint8",
        "turn_weights": "float32",
        "dialogue_ids": "int64",
        "turn_offsets": "int64",
        "entry_offsets": "int64",
    }
    assert types == {name: others.get(name, "int32") for name in types}
    for name in ("input_ids", "labels", "loss_mask", "loss_token_num"):
        assert getattr(columns, name).shape == (len(case.plan), case.layout.seq_len)


@given(cases())
def test_every_document_is_in_the_columns_exactly_once(case):
    found = [
        (dialogue, row["input_ids"][start:end])
        for row in as_rows(case)
        for start, end, _, dialogue in entries_of(row)
        if dialogue != -1
    ]
    assert sorted(found) == sorted((document.row, document.ids) for document in case.documents)


@given(cases())
def test_every_turn_is_in_the_columns_exactly_once_with_its_tokens(case):
    shift = 1 if case.layout.label_alignment == "shifted" else 0
    found = []
    for row in as_rows(case):
        turns = list(zip(row["turn_starts"], row["turn_messages"], strict=True))
        for start, end, _, dialogue in entries_of(row):
            inside = [turn for turn in turns if start <= turn[0] + shift < end]
            for (head, message), (stop, _) in pairwise([*inside, (end, None)]):
                indices = [index for index in range(head, stop) if row["loss_mask"][index]]
                found.append((dialogue, message, [row["labels"][index] for index in indices]))
    expected = [
        (document.row, turn.message, [document.ids[position] for position in turn.positions])
        for document in case.documents
        for turn in document.turns
    ]
    assert sorted(found) == sorted(expected)


@given(cases())
def test_each_turn_has_exactly_loss_token_num_loss_tokens(case):
    for row in as_rows(case):
        assert len(row["turn_starts"]) == row["turn_num"]
        for head, stop in pairwise([*row["turn_starts"], case.layout.seq_len]):
            indices = [index for index in range(head, stop) if row["loss_mask"][index]]
            assert indices[0] == head
            assert {row["loss_token_num"][index] for index in indices} == {len(indices)}


@given(cases())
def test_the_weights_of_loss_tokens_in_a_sequence_sum_to_its_number_of_turns(case):
    for row in as_rows(case):
        weights = map(Fraction, row["loss_mask"], row["loss_token_num"])
        assert sum(weights) == row["turn_num"]


@given(cases())
def test_labels_are_the_tokens_to_predict_or_ignored(case):
    shift = 1 if case.layout.label_alignment == "shifted" else 0
    for row in as_rows(case):
        # The first token of a document is never a target, so no label crosses a document's start.
        targets = {
            position for start, end, _, _ in entries_of(row) for position in range(start + 1, end)
        }
        for index, label in enumerate(row["labels"]):
            if row["loss_mask"][index]:
                assert index + shift in targets
                assert label == row["input_ids"][index + shift]
            else:
                assert (label, row["loss_token_num"][index]) == (-100, 1)


@given(cases())
def test_shifted_columns_equal_aligned_columns_one_position_earlier(case):
    aligned = assemble_case(replace(case, layout=replace(case.layout, label_alignment="aligned")))
    shifted = assemble_case(replace(case, layout=replace(case.layout, label_alignment="shifted")))
    for name, without_loss in (("labels", -100), ("loss_mask", 0), ("loss_token_num", 1)):
        later, earlier = getattr(aligned, name), getattr(shifted, name)
        assert np.array_equal(later[:, 1:], earlier[:, :-1])
        assert (later[:, :1] == without_loss).all()
        assert (earlier[:, -1:] == without_loss).all()
    assert (aligned.turn_starts - 1).tolist() == shifted.turn_starts.tolist()
    for name in ("input_ids", "turn_num", "turn_messages", *ENTRY_COLUMNS):
        assert np.array_equal(getattr(aligned, name), getattr(shifted, name))


@given(cases())
def test_the_lengths_of_a_sequence_sum_to_seq_len_with_padding_last(case):
    for row in as_rows(case):
        assert sum(row["seq_lengths"]) == case.layout.seq_len
        assert min(row["seq_lengths"]) >= 1
        assert -1 not in row["dialogue_ids"][:-1]
        is_padding = [dialogue == -1 for dialogue in row["dialogue_ids"]]
        assert is_padding == [length == 0 for length in row["document_lengths"]]


@given(cases())
def test_documents_are_padded_to_the_multiple_and_no_further(case):
    multiple = case.layout.pad_documents_to
    for row in as_rows(case):
        for start, end, padded_end, dialogue in entries_of(row):
            assert start % multiple == padded_end % multiple == 0
            assert dialogue == -1 or padded_end - end < multiple


@given(cases())
def test_padding_is_the_padding_token_and_never_carries_loss(case):
    for row in as_rows(case):
        for _, end, padded_end, _ in entries_of(row):
            for index in range(end, padded_end):
                assert row["input_ids"][index] == case.layout.pad_id
                assert row["loss_mask"][index] == 0


@given(cases(), st.integers(0, 3000))
def test_the_padding_token_changes_only_the_ids_of_padding(case, pad_id):
    columns = as_lists(assemble_case(case))
    other = as_lists(assemble_case(replace(case, layout=replace(case.layout, pad_id=pad_id))))
    del columns["input_ids"], other["input_ids"]
    assert columns == other


@given(st.data(), cases())
def test_a_sequence_does_not_depend_on_the_sequences_around_it(data, case):
    together = as_rows(case)
    if together:
        number = data.draw(st.integers(0, len(together) - 1))
        assert as_rows(replace(case, plan=[case.plan[number]])) == [together[number]]


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
def test_without_sequences_all_columns_are_empty(alignment):
    layout = Layout(8, alignment, 1, 0, extra_columns=EXTRA_COLUMNS)
    empty = assemble(as_batch([]), np.zeros(1, dtype=np.int64), layout)
    assert empty.input_ids.shape == empty.loss_mask.shape == (0, 8)
    assert all(not values for values in as_lists(empty).values())
