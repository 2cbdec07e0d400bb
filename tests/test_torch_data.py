"""Sequences of shards as a torch dataset, in both alignments, and batches of them as tensors."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mtpack.errors import InputError, SetupError
from mtpack.packing.columns import Columns
from mtpack.packing.label_alignment import ALIGNMENTS, convert
from mtpack.shards.arrow import ENTRY_COLUMNS, EXTRA_TYPES, TOKEN_COLUMNS, TURN_COLUMNS, write_shard
from mtpack.shards.dataset import Row, open_shards, row_of
from mtpack.token_batch import offsets_from_lengths
from mtpack.verify.batch import ColumnBatch
from mtpack.verify.structure import find_first_violation
from tests.packing.test_columns import Case, assemble_case, cases
from tests.support.builders import (
    columns_of_sequences,
    hand_made_sequences,
    metadata_of,
    open_sequences,
    random_sequences,
    weigh_turns,
    write_columns,
    write_output,
)

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from mtpack.loss import turn_mean_loss  # noqa: E402
from mtpack.torch_data import PackedDataset, collate  # noqa: E402

OTHER = {"aligned": "shifted", "shifted": "aligned"}
DTYPES = {
    "input_ids": torch.int64,
    "labels": torch.int64,
    "position_ids": torch.int64,
    "loss_mask": torch.uint8,
    "loss_token_num": torch.int32,
    "turn_heads": torch.uint8,
    "turn_num": torch.int64,
    "cu_seqlens": torch.int32,
    "max_seqlen": torch.int32,
    "turn_weight": torch.float32,
    "weight_sum": torch.float64,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assemble_rows(case: Case, label_alignment: str) -> list[Row]:
    """Return the sequences of a case, assembled in an alignment."""
    columns = assemble_case(
        replace(case, layout=replace(case.layout, label_alignment=label_alignment))
    )
    return [row_of(columns, row) for row in range(len(columns.turn_num))]


def build_columns(rows: list[Row]) -> Columns:
    return Columns(
        **{name: np.stack([row[name] for row in rows]) for name in TOKEN_COLUMNS},
        turn_num=np.array([row["turn_num"] for row in rows], np.int32),
        turn_offsets=offsets_from_lengths(np.array([len(row["turn_starts"]) for row in rows])),
        entry_offsets=offsets_from_lengths(np.array([len(row["seq_lengths"]) for row in rows])),
        **{
            name: np.concatenate([row[name] for row in rows])
            for name in (*TURN_COLUMNS, *EXTRA_TYPES, *ENTRY_COLUMNS)
        },
    )


def write_hand_made_shard(folder, label_alignment="aligned", pad_documents_to=1, change=None):
    """Write the hand-made sequences as a shard, after `change` is applied to their columns."""
    metadata = metadata_of(label_alignment, pad_documents_to)
    columns = columns_of_sequences(hand_made_sequences(), metadata)
    columns = copy.deepcopy(columns)
    if change is not None:
        change(columns)
    write_columns(folder / "shard.arrow", columns, metadata)
    return folder / "shard.arrow"


def write_two_shards(folder, seed: int = 0):
    """Write an output folder of two shards with three sequences each."""
    metadata = metadata_of(seq_len=64)
    parts = [
        columns_of_sequences(random_sequences(number, 64, [[20, 30], [64], [9, 9, 40]]), metadata)
        for number in (seed, seed + 1)
    ]
    parts[1].dialogue_ids[parts[1].dialogue_ids >= 0] += 100
    return write_output(folder, parts, metadata)


def assert_same_row(found: Row, expected: Row) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name
        assert np.asarray(found[name]).dtype == np.asarray(value).dtype, name


# Sequences


def test_rows_equal_those_of_open_shards_for_every_kind_of_path(tmp_path):
    folder = write_two_shards(tmp_path / "packed")
    shards = sorted(folder.glob("*.arrow"))
    for path in (folder, str(folder), shards, shards[0]):
        dataset, expected = PackedDataset(path), open_shards(path)
        assert len(dataset) == len(expected)
        assert dataset.metadata == expected.metadata
        for number, row in enumerate(expected):
            assert_same_row(dataset[number], row)
        assert_same_row(dataset[np.int64(-1)], expected[-1])
        with pytest.raises(IndexError):
            dataset[len(expected)]
        with pytest.raises(TypeError):
            dataset[0:2]


def test_a_row_is_a_view_of_the_file_until_a_batch_is_built(tmp_path):
    dataset = PackedDataset(write_hand_made_shard(tmp_path))
    first, again = dataset[1], dataset[1]
    for name in first.keys() - {"turn_num"}:
        assert np.shares_memory(first[name], again[name]), name
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            first[name].flags.writeable = True


@pytest.mark.parametrize("label_alignment", ALIGNMENTS)
def test_changes_of_rows_or_batches_never_reach_the_file(tmp_path, label_alignment):
    path = write_hand_made_shard(tmp_path)
    written = path.read_bytes()
    dataset = PackedDataset(path, label_alignment=label_alignment)
    for name in dataset[0].keys() - {"turn_num"}:
        with pytest.raises(ValueError, match="read-only"):
            dataset[0][name][:] = 7
    for values in collate([dataset[0], dataset[1]]).values():
        values.fill_(7)
    assert path.read_bytes() == written
    assert_same_row(dataset[0], PackedDataset(path, label_alignment=label_alignment)[0])


# Alignments


@given(cases(), st.sampled_from(ALIGNMENTS))
def test_a_converted_row_equals_packing_in_that_alignment(case, label_alignment):
    packed = assemble_rows(case, OTHER[label_alignment])
    expected = assemble_rows(case, label_alignment)
    for row, twin in zip(packed, expected, strict=True):
        assert_same_row({**row, **convert(row, label_alignment)}, twin)


@given(cases())
def test_shifted_labels_are_the_next_token_of_the_same_document(case):
    for row in assemble_rows(case, "aligned"):
        shifted = {**row, **convert(row, "shifted")}
        for start, end in pairwise(offsets_from_lengths(row["seq_lengths"]).tolist()):
            for position in range(start, end):
                trained = position + 1 < end and row["loss_mask"][position + 1]
                assert shifted["loss_mask"][position] == trained
                assert shifted["labels"][position] == (
                    row["input_ids"][position + 1] if trained else -100
                )
                assert shifted["loss_token_num"][position] == (
                    row["loss_token_num"][position + 1] if trained else 1
                )


@given(cases(), st.sampled_from(ALIGNMENTS))
def test_converting_there_and_back_returns_the_same_row(case, label_alignment):
    for row in assemble_rows(case, label_alignment):
        there = {**row, **convert(row, OTHER[label_alignment])}
        assert_same_row({**there, **convert(there, label_alignment)}, row)


@given(cases(), st.sampled_from(ALIGNMENTS))
def test_converted_rows_satisfy_every_rule_of_a_shard(case, label_alignment):
    rows = [
        {**row, **convert(row, label_alignment)}
        for row in assemble_rows(case, OTHER[label_alignment])
    ]
    assume(rows)
    layout = replace(case.layout, label_alignment=label_alignment)
    assert find_first_violation(ColumnBatch(build_columns(rows), layout)) is None


@pytest.mark.parametrize("packed", ALIGNMENTS)
@pytest.mark.parametrize("wanted", [None, *ALIGNMENTS])
def test_a_dataset_returns_the_requested_alignment(tmp_path, packed, wanted):
    dataset = PackedDataset(write_hand_made_shard(tmp_path, packed, 8), label_alignment=wanted)
    expected = metadata_of(wanted or packed, 8)
    assert (dataset.metadata, dataset.label_alignment) == (expected, wanted or packed)
    columns = columns_of_sequences(hand_made_sequences(), expected)
    for number in range(3):
        assert_same_row(dataset[number], row_of(columns, number))


@pytest.mark.parametrize(("packed", "position"), [("aligned", 24), ("shifted", 31)])
def test_loss_that_conversion_would_move_out_of_its_document_is_refused(tmp_path, packed, position):
    def change(columns: Columns) -> None:
        columns.loss_mask[1, position] = 1

    path = write_hand_made_shard(tmp_path, packed, change=change)
    dataset = PackedDataset(path, label_alignment=OTHER[packed])
    assert dataset[0]["turn_num"] == 3
    with pytest.raises(InputError, match=r"shard\.arrow: sequence 1: damaged"):
        dataset[1]


# Batches


def collate_by_definition(rows: list[Row]) -> dict[str, Any]:
    """Return the columns of a batch, computed one position after another."""
    batch: dict[str, Any] = {name: [] for name in DTYPES}
    for name in ("input_ids", "labels", "loss_mask", "loss_token_num"):
        batch[name] = [row[name].tolist() for row in rows]
    batch["turn_num"] = [row["turn_num"] for row in rows]
    batch["cu_seqlens"] = [0]
    for row in rows:
        positions: list[int] = []
        for length in row["seq_lengths"].tolist():
            positions += range(length)
            batch["cu_seqlens"].append(batch["cu_seqlens"][-1] + length)
        batch["position_ids"].append(positions)
        starts = set(row["turn_starts"].tolist())
        batch["turn_heads"].append([int(at in starts) for at in range(len(positions))])
        batch["weight_sum"].append(sum(row["turn_weights"].tolist()))
        weights, next_weights, own = [], iter(row["turn_weights"].tolist()), 0.0
        for at, is_trained in enumerate(row["loss_mask"]):
            own = next(next_weights) if at in starts else own
            weights.append(own if is_trained else 0.0)
        batch["turn_weight"].append(weights)
    batch["max_seqlen"] = max(end - start for start, end in pairwise(batch["cu_seqlens"]))
    return batch


@given(cases(), st.sampled_from(ALIGNMENTS))
def test_a_batch_equals_its_definition(case, label_alignment):
    rows = assemble_rows(case, label_alignment)
    assume(rows)
    batch = collate(rows)
    assert {name: values.tolist() for name, values in batch.items()} == collate_by_definition(rows)
    assert {name: values.dtype for name, values in batch.items()} == DTYPES
    assert all(values.is_contiguous() for values in batch.values())


def test_padding_is_a_document_of_its_own(tmp_path):
    row = PackedDataset(write_hand_made_shard(tmp_path))[0]  # 10 and 4 tokens of 32
    batch = collate([row])
    assert batch["cu_seqlens"].tolist() == [0, 10, 14, 32]
    assert batch["position_ids"][0].tolist() == [*range(10), *range(4), *range(18)]
    assert batch["max_seqlen"].tolist() == 18


@given(cases(), st.sampled_from(ALIGNMENTS))
def test_turn_heads_are_on_loss_tokens_and_their_sum_is_the_number_of_turns(case, label_alignment):
    rows = assemble_rows(case, label_alignment)
    assume(rows)
    batch = collate(rows)
    assert batch["turn_heads"].sum(1).tolist() == batch["turn_num"].tolist()
    assert (batch["turn_heads"] <= batch["loss_mask"]).all()


def test_a_batch_of_no_rows_is_refused():
    with pytest.raises(InputError, match="no sequences"):
        collate([])


def test_rows_of_different_lengths_are_refused(tmp_path):
    long, short = (
        PackedDataset(write_two_shards(tmp_path / "packed")),
        PackedDataset(write_hand_made_shard(tmp_path)),
    )
    with pytest.raises(InputError, match=r"32 and 64 tokens.*--seq-len"):
        collate([long[0], short[0]])


DAMAGES = {
    "documents": {
        "too_few": {"seq_lengths": np.array([10, 4, 17], np.int32)},
        "too_many": {"seq_lengths": np.array([10, 4, 19], np.int32)},
        "empty": {"seq_lengths": np.array([10, 4, 0, 18], np.int32)},
        "negative": {"seq_lengths": np.array([10, 40, -18], np.int32)},
        "none": {"seq_lengths": np.array([], np.int32)},
        "overflow": {"seq_lengths": np.array([2**31 - 1, 2**31 - 1, 34], np.int32)},
    },
    "turns": {
        "one_less": {"turn_num": 2},
        "one_more": {"turn_num": 4},
        "outside": {"turn_starts": np.array([2, 5, 32], np.int32)},
        "before": {"turn_starts": np.array([-1, 5, 11], np.int32)},
        "twice": {"turn_starts": np.array([2, 5, 5], np.int32)},
    },
}


@pytest.mark.parametrize(
    ("what", "damage"), [(what, damage) for what, damages in DAMAGES.items() for damage in damages]
)
def test_damaged_documents_and_turns_are_refused(tmp_path, what, damage):
    dataset = PackedDataset(write_hand_made_shard(tmp_path))
    assert len(collate([dataset[0], dataset[1]])["cu_seqlens"]) == 6
    with pytest.raises(InputError, match=f"damaged: {what}"):
        collate([{**dataset[0], **DAMAGES[what][damage]}, dataset[1]])


@pytest.mark.parametrize("packed", ALIGNMENTS)
def test_the_loss_is_the_mean_over_turns_in_both_alignments(tmp_path, packed):
    path = write_hand_made_shard(tmp_path, packed)
    logits = torch.randn(3, 32, 100, dtype=torch.float64, generator=torch.manual_seed(0))

    by_definition = []
    for sequence, scores in zip(hand_made_sequences(), torch.log_softmax(logits, -1), strict=True):
        start = 0
        for document in sequence:
            for turn in document.turns:
                tokens = [-scores[start + p - 1, document.ids[p]] for p in turn.positions]
                by_definition.append(sum(tokens) / len(tokens))
            start += len(document.ids)

    for label_alignment in ALIGNMENTS:
        dataset = PackedDataset(path, label_alignment=label_alignment)
        batch = collate([dataset[number] for number in range(3)])
        shift = 1 if label_alignment == "aligned" else 0
        columns = [batch[name][:, shift:] for name in ("labels", "loss_mask", "loss_token_num")]
        losses = torch.nn.functional.cross_entropy(
            logits[:, : 32 - shift].transpose(1, 2), columns[0], reduction="none"
        )
        loss_sum, turns = turn_mean_loss(losses, columns[1], columns[2], batch["turn_num"])
        assert turns == len(by_definition)
        assert torch.allclose(loss_sum, sum(by_definition), rtol=1e-14)


# Worker processes


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_return_every_row_once_per_epoch(tmp_path, start):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    dataset = PackedDataset(write_two_shards(tmp_path / "packed"), label_alignment="shifted")
    loader = DataLoader(
        dataset,
        batch_size=2,
        shuffle=True,
        num_workers=2 if start == "fork" else 1,
        persistent_workers=True,
        multiprocessing_context=start,
        collate_fn=collate,
    )
    expected = collate([dataset[number] for number in range(len(dataset))])
    for _ in range(2):
        batches = list(loader)
        for name in ("input_ids", "labels", "loss_mask", "turn_heads", "position_ids"):
            found = torch.cat([batch[name] for batch in batches])
            assert sorted(found.tolist()) == sorted(expected[name].tolist()), name


def test_a_pickled_dataset_holds_a_path_that_is_opened_again(tmp_path, monkeypatch):
    write_two_shards(tmp_path / "packed")
    monkeypatch.chdir(tmp_path)
    dataset = PackedDataset("packed", label_alignment="shifted")
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 2000
    monkeypatch.chdir("/")
    again = pickle.loads(pickled)
    assert again.metadata == dataset.metadata
    for number in range(len(dataset)):
        assert_same_row(again[number], dataset[number])
    assert pickle.loads(pickle.dumps(again)).label_alignment == "shifted"


def test_a_worker_refuses_an_output_that_was_packed_again(tmp_path):
    pickled = pickle.dumps(PackedDataset(write_two_shards(tmp_path / "packed")))
    (tmp_path / "packed").rename(tmp_path / "before")
    write_two_shards(tmp_path / "packed", seed=5)
    with pytest.raises(InputError, match=r"packed: packed again since it was opened"):
        pickle.loads(pickled)


# Errors


def test_errors_of_open_shards_are_passed_on(tmp_path):
    with pytest.raises(SetupError, match="no such shard or output folder"):
        PackedDataset(tmp_path / "nothing")
    (tmp_path / "text.arrow").write_text("text")
    with pytest.raises(InputError, match="not a shard that can be read"):
        PackedDataset(tmp_path / "text.arrow")


def test_an_unknown_alignment_is_refused(tmp_path):
    with pytest.raises(SetupError, match="'left' is unknown; use one of aligned, shifted"):
        PackedDataset(write_hand_made_shard(tmp_path), label_alignment="left")


def test_compressed_shards_and_random_access_files_have_the_same_rows(tmp_path):
    metadata = metadata_of()
    columns = columns_of_sequences(hand_made_sequences(), metadata)
    plain = PackedDataset(write_hand_made_shard(tmp_path))
    for ipc_format, compression in (("stream", "zstd"), ("file", "lz4"), ("file", "none")):
        path = tmp_path / f"{compression}.{ipc_format}"
        write_shard(path, [columns], metadata, ipc_format=ipc_format, compression=compression)
        dataset = PackedDataset(path)
        for number in range(3):
            assert_same_row(dataset[number], plain[number])
            assert not dataset[number]["labels"].flags.writeable


# Weights of turns


@given(cases())
def test_the_weights_at_the_heads_of_turns_add_up_to_those_of_the_sequence(case):
    rows = assemble_rows(case, case.layout.label_alignment)
    assume(rows)
    batch = collate(rows)
    heads = (batch["turn_heads"] * batch["turn_weight"].double()).sum(1)
    assert torch.equal(heads, batch["weight_sum"])


def open_weighted(tmp_path) -> PackedDataset:
    open_sequences(tmp_path, weigh_turns(hand_made_sequences(), 512, 3072))
    return PackedDataset(tmp_path / "out")


def test_a_batch_has_weights_only_if_its_sequences_have(tmp_path):
    rows = list(PackedDataset(write_hand_made_shard(tmp_path)))
    assert not {"turn_weight", "weight_sum"} & collate(rows).keys()
    with pytest.raises(InputError, match="pack all data with --turn-weights"):
        collate([rows[0], open_weighted(tmp_path)[1]])


def test_the_other_alignment_keeps_the_weights(tmp_path):
    aligned = open_weighted(tmp_path)
    shifted = PackedDataset(tmp_path / "out", label_alignment="shifted")
    batch, other = collate(list(aligned)), collate(list(shifted))
    assert torch.equal(batch["turn_weight"][:, 1:], other["turn_weight"][:, :-1])
    assert torch.equal(batch["weight_sum"], other["weight_sum"])


@pytest.mark.parametrize("weights", [[0.5], [0.5, 0.0, 1.0], [0.5, float("nan"), 1.0]])
def test_damaged_weights_are_refused(tmp_path, weights):
    row = open_weighted(tmp_path)[0]
    assert row["turn_num"] == 3
    with pytest.raises(InputError, match="damaged: turn_weights"):
        collate([{**row, "turn_weights": np.array(weights, np.float32)}])
