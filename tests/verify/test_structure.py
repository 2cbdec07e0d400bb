"""`verify`, structure: a sound output passes; every broken law is named with its position."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given

from mtpack.packing.columns import Columns
from mtpack.shards.arrow import ShardMetadata
from mtpack.shards.dataset import map_shards
from mtpack.shards.manifest import MANIFEST
from mtpack.verify.batch import ColumnBatch
from mtpack.verify.laws import LAWS
from mtpack.verify.structure import check_structure, find_first_violation
from tests.packing.test_columns import assemble_case, cases
from tests.support.builders import (
    PAD_ID,
    columns_of_sequences,
    hand_made_sequences,
    metadata_of,
    tally_of,
    write_columns,
    write_output,
)

LAYOUTS = [(alignment, multiple) for alignment in ("aligned", "shifted") for multiple in (1, 8)]
Location = tuple[int, int | None]
"""The sequence that breaks a law, and the position in it."""


@dataclass
class Draft:
    """Columns that can be changed, and the layout to change them in."""

    columns: Columns
    metadata: ShardMetadata

    @property
    def shift(self) -> int:
        return 1 if self.metadata.label_alignment == "shifted" else 0

    @property
    def multiple(self) -> int:
        return self.metadata.pad_documents_to

    def entry(self, row: int, number: int) -> int:
        return int(self.columns.entry_offsets[row]) + number

    def turn(self, row: int, number: int) -> int:
        return int(self.columns.turn_offsets[row]) + number

    def start(self, row: int, number: int) -> int:
        return int(self.columns.turn_starts[self.turn(row, number)])

    def set(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            object.__setattr__(self.columns, name, array)

    def drop_turn(self, row: int, number: int) -> None:
        turn = self.turn(row, number)
        self.columns.turn_num[row] -= 1
        self.columns.turn_offsets[row + 1 :] -= 1
        self.set(
            turn_starts=np.delete(self.columns.turn_starts, turn),
            turn_messages=np.delete(self.columns.turn_messages, turn),
            turn_bent=np.delete(self.columns.turn_bent, turn),
            turn_weights=np.delete(self.columns.turn_weights, turn),
        )

    def drop_entry(self, row: int, number: int) -> None:
        entry = self.entry(row, number)
        self.columns.entry_offsets[row + 1 :] -= 1
        for name in ("seq_lengths", "document_lengths", "dialogue_ids"):
            self.set(**{name: np.delete(getattr(self.columns, name), entry)})

    def drop_loss(self, row: int, positions: slice) -> None:
        self.columns.loss_mask[row, positions] = 0
        self.columns.labels[row, positions] = -100
        self.columns.loss_token_num[row, positions] = 1


def draft_of(alignment: str, multiple: int) -> Draft:
    metadata = metadata_of(alignment, multiple, extra_columns=("turn_bent", "turn_weights"))
    columns = columns_of_sequences(hand_made_sequences(), metadata)
    copied = copy.deepcopy(columns)
    return Draft(copied, metadata)


BREAKS: list[tuple[str, Callable[[Draft], Location]]] = []


def breaks(law: str) -> Callable[[Callable[[Draft], Location]], Callable[[Draft], Location]]:
    """Register a function that breaks a law and returns the location of the violation."""

    def register(change: Callable[[Draft], Location]) -> Callable[[Draft], Location]:
        BREAKS.append((law, change))
        return change

    return register


@breaks("turn_num")
def one_turn_too_many(draft):
    draft.columns.turn_num[1] += 1
    return 1, None


@breaks("seq_lengths_positive")
def an_entry_of_length_0(draft):
    draft.columns.seq_lengths[draft.entry(1, 1)] = 0
    return 1, 24


@breaks("seq_lengths_sum")
def lengths_beyond_the_sequence(draft):
    draft.columns.seq_lengths[draft.entry(2, 1)] += 8
    return 2, None


@breaks("seq_lengths_multiple")
def a_length_that_is_not_a_multiple(draft):
    if draft.multiple == 1:
        pytest.skip("every length is a multiple of 1")
    draft.columns.seq_lengths[draft.entry(0, 0)] -= 1
    draft.columns.seq_lengths[draft.entry(0, 1)] += 1
    return 0, 0


@breaks("dialogue_ids")
def a_dialogue_id_below_that_of_padding(draft):
    draft.columns.dialogue_ids[draft.entry(0, 2)] = -2
    return 0, 14 if draft.multiple == 1 else 24


@breaks("padding_last")
def padding_before_a_document(draft):
    draft.columns.dialogue_ids[draft.entry(0, 0)] = -1
    return 0, 0


@breaks("has_document")
def a_sequence_of_padding_only(draft):
    draft.drop_entry(2, 0)
    draft.columns.seq_lengths[draft.entry(2, 0)] = 32
    return 2, None


@breaks("document_lengths")
def a_document_without_tokens(draft):
    draft.columns.document_lengths[draft.entry(1, 1)] = 0
    return 1, 24


@breaks("document_lengths")
def a_document_longer_than_its_entry(draft):
    draft.columns.document_lengths[draft.entry(1, 0)] = 25
    return 1, 0


@breaks("document_lengths")
def padding_with_a_document_length(draft):
    draft.columns.document_lengths[draft.entry(2, 1)] = 1
    return 2, 13 if draft.multiple == 1 else 16


@breaks("document_padding")
def a_document_padded_too_far(draft):
    draft.columns.seq_lengths[draft.entry(2, 0)] += draft.multiple
    draft.columns.seq_lengths[draft.entry(2, 1)] -= draft.multiple
    return 2, 0


@breaks("turn_messages")
def a_message_below_0(draft):
    draft.columns.turn_messages[draft.turn(0, 1)] = -1
    return 0, draft.start(0, 1)


@breaks("turn_starts_range")
def a_turn_after_the_sequence(draft):
    draft.columns.turn_starts[draft.turn(1, 3)] = 32
    return 1, 32


@breaks("turn_starts_range")
def a_turn_before_the_sequence(draft):
    draft.columns.turn_starts[draft.turn(1, 0)] = -1
    return 1, -1


@breaks("turn_starts_ascend")
def two_turns_at_one_position(draft):
    draft.columns.turn_starts[draft.turn(1, 1)] = draft.start(1, 0)
    return 1, draft.start(1, 0)


@breaks("turn_starts_ascend")
def two_turns_swapped(draft):
    turns = slice(draft.turn(1, 0), draft.turn(1, 2))
    draft.columns.turn_starts[turns] = draft.columns.turn_starts[turns][::-1].copy()
    return 1, draft.start(1, 1)


@breaks("input_ids")
def a_token_below_0(draft):
    draft.columns.input_ids[1, 5] = -1
    return 1, 5


@breaks("loss_mask")
def a_mask_of_2(draft):
    draft.columns.loss_mask[1, 22] = 2
    return 1, 22


@breaks("padding_ids")
def a_token_in_the_padding(draft):
    draft.columns.input_ids[0, 31] = PAD_ID + 1
    return 0, 31


@breaks("padding_ids")
def a_token_after_its_document(draft):
    draft.columns.input_ids[2, 13] = PAD_ID + 1
    return 2, 13


@breaks("padding_loss")
def loss_in_the_padding(draft):
    draft.columns.loss_mask[0, 31] = 1
    return 0, 31


@breaks("first_token_loss")
def loss_that_nothing_predicts(draft):
    position = 31 if draft.shift else 24
    draft.columns.loss_mask[1, position] = 1
    return 1, position


@breaks("labels_ignored")
def a_label_without_loss(draft):
    draft.columns.labels[0, 0] = 7
    return 0, 0


@breaks("labels_token")
def a_label_of_another_token(draft):
    position = draft.start(1, 2)
    draft.columns.labels[1, position] += 1
    return 1, position


@breaks("labels_token")
def labels_shifted_twice(draft):
    draft.columns.labels[draft.columns.loss_mask == 1] += 1  # ids of documents ascend by 1
    return 0, draft.start(0, 0)


@breaks("loss_token_num_ignored")
def a_count_without_loss(draft):
    draft.columns.loss_token_num[0, 0] = 0
    return 0, 0


@breaks("turn_starts_loss")
def a_turn_that_starts_without_loss(draft):
    draft.columns.turn_starts[draft.turn(0, 0)] += 1
    return 0, draft.start(0, 0)


@breaks("turn_starts_first")
def loss_before_the_first_turn(draft):
    draft.columns.turn_starts[draft.turn(1, 0)] += 1
    return 1, draft.start(1, 0) - 1


@breaks("turn_starts_first")
def loss_without_a_turn(draft):
    first = draft.start(2, 0)
    draft.drop_turn(2, 1)
    draft.drop_turn(2, 0)
    return 2, first


@breaks("turn_crosses")
def a_turn_over_two_documents(draft):
    first = draft.start(1, 3)
    draft.drop_turn(1, 3)
    return 1, first


@breaks("document_turn")
def a_document_without_a_turn(draft):
    draft.drop_turn(1, 3)
    draft.drop_loss(1, slice(24, 32))
    return 1, 24


@breaks("loss_token_num")
def a_wrong_count_on_one_token(draft):
    position = draft.start(1, 3) + 4
    draft.columns.loss_token_num[1, position] += 1
    return 1, position


@breaks("loss_token_num")
def two_turns_in_one(draft):
    draft.drop_turn(1, 1)
    return 1, draft.start(1, 0)


@breaks("loss_token_num")
def one_turn_in_two(draft):
    turn = draft.turn(2, 1) + 1
    draft.columns.turn_num[2] += 1
    draft.columns.turn_offsets[3:] += 1
    second_start = draft.start(2, 1) + 2
    draft.set(
        turn_starts=np.insert(draft.columns.turn_starts, turn, second_start),
        turn_messages=np.insert(draft.columns.turn_messages, turn, 5),
        turn_bent=np.insert(draft.columns.turn_bent, turn, 0),
        turn_weights=np.insert(draft.columns.turn_weights, turn, 1),
    )
    return 2, draft.start(2, 1)


@breaks("loss_token_num")
def a_lost_loss_token(draft):
    start = draft.start(2, 1)
    draft.drop_loss(2, slice(start + 1, start + 2))
    return 2, start


@breaks("document_end")
def a_document_that_continues_after_its_last_turn(draft):
    start = draft.start(2, 1)
    draft.drop_loss(2, slice(start + 3, start + 4))
    draft.columns.loss_token_num[2, start : start + 3] = 3
    return 2, start + 3


@breaks("turn_messages_ascend")
def messages_out_of_order(draft):
    draft.columns.turn_messages[draft.turn(1, 0) : draft.turn(1, 2)] = [6, 4]
    return 1, draft.start(1, 1)


@breaks("turn_bent")
def a_flag_that_is_neither_0_nor_1(draft):
    draft.columns.turn_bent[draft.turn(1, 1)] = 2
    return 1, draft.start(1, 1)


@breaks("turn_weights")
def a_weight_that_is_not_above_0(draft):
    draft.columns.turn_weights[draft.turn(1, 1)] = 0
    return 1, draft.start(1, 1)


@breaks("turn_weights")
def a_weight_that_is_no_multiple_of_a_unit(draft):
    draft.columns.turn_weights[draft.turn(2, 0)] = 1 / 3
    return 2, draft.start(2, 0)


@breaks("turn_weights")
def a_weight_that_is_too_large(draft):
    draft.columns.turn_weights[draft.turn(1, 0)] = 16385
    return 1, draft.start(1, 0)


@breaks("turn_weights")
def a_weight_that_is_not_a_number(draft):
    draft.columns.turn_weights[draft.turn(1, 0)] = np.nan
    return 1, draft.start(1, 0)


@breaks("turn_unique")
def a_turn_trained_twice(draft):
    draft.columns.turn_messages[draft.turn(1, 0)] = 2
    return 1, draft.start(1, 0)


@pytest.mark.parametrize(("alignment", "multiple"), LAYOUTS)
@pytest.mark.parametrize("batch_rows", [1, 256])
def test_a_sound_shard_passes(tmp_path, alignment, multiple, batch_rows):
    draft = draft_of(alignment, multiple)
    write_columns(tmp_path / "shard.arrow", draft.columns, draft.metadata, batch_rows)
    report = check_structure(map_shards(tmp_path / "shard.arrow"))
    assert report.violation is None
    assert report.rows == 3


@pytest.mark.parametrize(("alignment", "multiple"), LAYOUTS)
@pytest.mark.parametrize("batch_rows", [1, 256])
@pytest.mark.parametrize(
    ("law", "change"), BREAKS, ids=[f"{law}-{change.__name__}" for law, change in BREAKS]
)
def test_a_broken_law_is_named_with_its_position(
    tmp_path, law, change, alignment, multiple, batch_rows
):
    draft = draft_of(alignment, multiple)
    row, position = change(draft)
    path = tmp_path / "shard.arrow"
    write_columns(path, draft.columns, draft.metadata, batch_rows)
    violation = check_structure(map_shards(path)).violation
    assert violation is not None
    assert (violation.law, violation.row, violation.position) == (law, row, position)
    assert violation.shard == str(path)
    assert "\n" not in violation.detail


def test_every_law_is_broken_by_a_case():
    assert {law for law, _ in BREAKS} == {*LAWS, "turn_unique"}


@given(cases())
def test_assembled_columns_keep_every_law(case):
    assert find_first_violation(ColumnBatch(assemble_case(case), case.layout)) is None


def test_sequences_are_counted_over_all_shards(tmp_path):
    sound, broken = draft_of("aligned", 1), draft_of("aligned", 1)
    broken.columns.dialogue_ids[broken.columns.dialogue_ids >= 0] += 100
    _, position = a_wrong_count_on_one_token(broken)
    folder = write_output(tmp_path / "out", [sound.columns, broken.columns], sound.metadata)
    report = check_structure(map_shards(folder))
    assert report.violation is not None
    assert report.violation.shard == str(folder / "shard-00001.arrow")
    assert (report.violation.row, report.violation.position) == (4, position)
    assert report.rows == 3


def test_a_turn_in_two_shards_is_found(tmp_path):
    draft = draft_of("aligned", 1)
    folder = write_output(tmp_path / "out", [draft.columns, draft.columns], draft.metadata)
    violation = check_structure(map_shards(folder)).violation
    assert violation is not None
    assert (violation.law, violation.row) == ("turn_unique", 3)
    assert violation.shard == str(folder / "shard-00001.arrow")


@pytest.mark.parametrize(("alignment", "other"), [("aligned", "shifted"), ("shifted", "aligned")])
def test_metadata_with_the_other_alignment_is_found(tmp_path, alignment, other):
    draft = draft_of(alignment, 1)
    write_columns(tmp_path / "shard.arrow", draft.columns, metadata_of(other))
    assert check_structure(map_shards(tmp_path / "shard.arrow")).violation is not None


def test_a_violation_does_not_contain_a_token(tmp_path):
    draft = draft_of("aligned", 1)
    draft.columns.labels[1, draft.start(1, 2)] = 987_654
    write_columns(tmp_path / "shard.arrow", draft.columns, draft.metadata)
    violation = check_structure(map_shards(tmp_path / "shard.arrow")).violation
    assert violation is not None
    assert "987" not in violation.detail


@pytest.mark.parametrize(("alignment", "multiple"), LAYOUTS)
def test_a_sound_output_with_a_manifest_passes(tmp_path, alignment, multiple):
    draft = draft_of(alignment, multiple)
    folder = write_output(tmp_path / "out", [draft.columns], draft.metadata)
    report = check_structure(map_shards(folder))
    assert report.violation is None


@pytest.mark.parametrize(
    "name",
    [
        "rows_packed",
        "documents",
        "turns_packed",
        "tokens",
        "loss_tokens",
        "sequences",
        "bent",
        "weight_units",
    ],
)
def test_a_count_that_differs_from_the_manifest_is_found(tmp_path, name):
    draft = draft_of("aligned", 8)
    true = getattr(tally_of([draft.columns]), name)
    tally = tally_of([draft.columns], **{name: true + 1})
    folder = write_output(tmp_path / "out", [draft.columns], draft.metadata, tally)
    violation = check_structure(map_shards(folder)).violation
    assert violation is not None
    assert (violation.law, violation.shard) == ("tally", str(folder / MANIFEST))
    assert f"{true + 1:,} {name}; the shards hold {true:,}" in violation.detail


def test_shards_without_a_sequence_fail(tmp_path):
    metadata = metadata_of()
    columns = columns_of_sequences([], metadata)
    write_columns(tmp_path / "shard.arrow", columns, metadata)
    report = check_structure(map_shards(tmp_path / "shard.arrow"))
    assert report.violation is not None
    assert (report.violation.law, report.rows) == ("sequences", 0)
