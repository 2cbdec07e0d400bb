"""Megatron-LM: all turns have the same weight, for every division into ranks and micro-batches.

The tests run the real megatron-core: its dataset builders, model, schedule, loss contract, process
groups and finalization of gradients, on CPU ranks over gloo (tests/support/megatron_ranks.py).
"""

from __future__ import annotations

import importlib.util
import re
from contextlib import contextmanager
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("megatron.core", reason="needs megatron-core, which has wheels for Linux")

import torch
from megatron.core import num_microbatches_calculator
from torch.utils.data import default_collate

from mtpack.context_parallel import find_positions_on_rank
from mtpack.errors import InputError, SetupError
from mtpack.integrations import megatron as integration
from mtpack.integrations.megatron import (
    ContextParallel,
    build_datasets,
    find_document_bounds,
    loss_func,
)
from mtpack.shards.dataset import open_shards
from tests.conftest import ROOT
from tests.support import megatron_ranks as megatron
from tests.support.builders import (
    columns_of_sequences,
    hand_made_sequences,
    metadata_of,
    weigh_turns,
    write_output,
)
from tests.support.strategies import Document, Turn

SEQUENCES = [
    *hand_made_sequences(),
    [Document(9, [*range(50, 82)], [Turn(1, 0, [(5, 17)]), Turn(3, 0, [(20, 21)])])],
]
DOCUMENTS = [document for sequence in SEQUENCES for document in sequence]
WEIGHTED = weigh_turns(SEQUENCES, 512, 3072, 100)
TURNS = sum(len(document.turns) for document in DOCUMENTS)
HAS_CUDA = torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def pack(folder, alignment: str = "shifted", multiple: int = 8, sequences=SEQUENCES) -> str:
    extra = () if sequences is SEQUENCES else ("turn_weights",)
    metadata = metadata_of(alignment, multiple, extra_columns=extra)
    columns = columns_of_sequences(sequences, metadata)
    return str(write_output(folder / alignment, [columns], metadata))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def reference():
    """Return the loss and the gradients of one sample per turn."""
    (rank,) = megatron.run_on_ranks(1, megatron.run_one_sample_per_turn, DOCUMENTS)
    return rank


@pytest.fixture(scope="module")
def steps_on(packed):
    """Return a function that runs a step on a number of ranks, once for each number."""
    return cache(
        lambda ranks, size: megatron.run_on_ranks(ranks, megatron.run_training_step, packed, size)
    )


def compute_distance(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def compute_log(reports) -> float:
    """Compute the loss that train_step and evaluate (without --sft) of megatron/training log."""
    loss, count = np.sum([np.sum(of_rank, axis=0) for of_rank in reports], axis=0)
    return loss / count


# A whole step of Megatron's schedule, over all kinds of ranks


@pytest.mark.parametrize(
    ("ranks", "context_parallel_size"), [(1, 1), (2, 1), (2, 2), (4, 2), (4, 4)]
)
def test_a_step_has_the_gradients_of_one_sample_per_turn(
    steps_on, reference, ranks, context_parallel_size
):
    loss, expected = reference
    steps = steps_on(ranks, context_parallel_size)
    for _, gradients in steps:
        assert compute_distance(gradients, expected) < 1e-6
    assert compute_log([reports for reports, _ in steps]) == pytest.approx(loss, rel=1e-6)


def test_a_hybrid_step_has_the_gradients_of_one_sample_per_turn(packed, reference):
    loss, expected = reference
    steps = megatron.run_on_ranks(4, megatron.run_hybrid_training_step, packed)
    for _, gradients in steps:
        assert compute_distance(gradients, expected) < 1e-6
    assert compute_log([reports for reports, _ in steps]) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(
    "mistake", ["share of this rank, as an integer", "all turns on every rank"]
)
def test_wrong_counts_give_wrong_gradients_under_context_parallelism(packed, reference, mistake):
    step = partial(megatron.run_mistaken_step, mistake)
    for _, gradients in megatron.run_on_ranks(2, megatron.run_training_step, packed, 2, step):
        assert compute_distance(gradients, reference[1]) > 0.05


def test_every_rank_reports_a_mean_over_turns_even_if_no_turn_starts_on_it(steps_on):
    """Under --sft, evaluation divides on each rank, for single micro-batches."""
    ranks = [reports for reports, _ in steps_on(4, 4)]
    assert ranks[0] == ranks[1] == ranks[2] == ranks[3]
    assert sum(count for _, count in ranks[0]) == TURNS


def test_tokens_per_turn_changes_neither_gradients_nor_log(packed, reference):
    loss, expected = reference
    step = partial(megatron.forward_step, tokens_per_turn=50)
    ((reports, gradients),) = megatron.run_on_ranks(1, megatron.run_training_step, packed, 1, step)
    assert compute_distance(gradients, expected) < 1e-6
    assert compute_log([reports]) == pytest.approx(loss, rel=1e-6)


def test_all_tensor_parallel_ranks_get_the_batch_that_the_first_reads(packed):
    first, second = megatron.run_on_ranks(2, megatron.read_batch_on_tensor_rank, packed)
    for name, column in first.items():
        assert np.array_equal(second[name], column), name
    rows = open_shards(packed)[:2]
    assert np.array_equal(first["tokens"][0], np.concatenate([row["input_ids"] for row in rows]))
    assert first["turn_num"] == sum(row["turn_num"] for row in rows)
    lengths = np.concatenate([row["seq_lengths"] for row in rows])
    assert np.array_equal(np.diff(first["cu_seqlens"]), lengths)


def test_a_schedule_plan_gets_the_documents_too(packed):
    """With overlapped expert communication, Megatron requests a plan, not token losses."""
    row = open_shards(packed)[0]
    (planned,) = megatron.run_on_ranks(1, megatron.run_planned_step, packed)
    bounds = [0, *np.cumsum(row["seq_lengths"]).tolist()]
    assert planned == (["labels", "loss_mask", "packed_seq_params"], bounds, row["turn_num"])


def test_several_sequences_in_a_micro_batch_are_refused_with_pipeline_stages(packed):
    assert (
        megatron.run_on_ranks(2, megatron.read_refused_batch, packed)
        == ["several pipeline stages need --micro-batch-size 1"] * 2
    )


@pytest.mark.skipif(not HAS_CUDA, reason="needs CUDA and transformer_engine")
def test_a_step_on_a_gpu_has_the_gradients_of_one_sample_per_turn(packed):
    ((reports, found, expected),) = megatron.run_on_ranks(
        1, megatron.run_on_cuda, packed, DOCUMENTS, backend="nccl"
    )
    assert compute_distance(found, expected) < 2e-2
    assert sum(count for _, count in reports) == TURNS


# Weights of turns


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("weighted"), sequences=WEIGHTED)


@pytest.fixture(scope="module")
def weighted_reference():
    """Return the weighted loss and its gradients of one sample per turn."""
    documents = [document for sequence in WEIGHTED for document in sequence]
    (rank,) = megatron.run_on_ranks(1, megatron.run_one_sample_per_turn, documents)
    return rank


@pytest.mark.parametrize(("ranks", "context_parallel_size"), [(1, 1), (2, 2), (4, 2)])
def test_a_step_of_weighted_turns_has_the_gradients_of_their_weighted_mean(
    weighted, weighted_reference, reference, ranks, context_parallel_size
):
    loss, expected = weighted_reference
    steps = megatron.run_on_ranks(
        ranks, megatron.run_training_step, weighted, context_parallel_size
    )
    for _, gradients in steps:
        assert compute_distance(gradients, expected) < 1e-6
        assert compute_distance(gradients, reference[1]) > 0.05
    assert compute_log([reports for reports, _ in steps]) == pytest.approx(loss, rel=1e-6)


def test_a_hybrid_step_takes_weights(weighted, weighted_reference):
    steps = megatron.run_on_ranks(4, megatron.run_hybrid_training_step, weighted)
    for _, gradients in steps:
        assert compute_distance(gradients, weighted_reference[1]) < 1e-6


def test_an_item_has_the_units_of_its_turn_at_each_loss_token(weighted):
    item, row = megatron.build_dataset(weighted)[0], open_shards(weighted)[0]
    assert item["turn_units"].dtype == torch.int32
    heads = item["turn_units"][item["turn_heads"] == 1]
    assert heads.tolist() == (row["turn_weights"] * 1024).tolist()
    assert torch.equal(item["turn_units"] > 0, item["loss_mask"] > 0)


def test_all_tensor_parallel_ranks_get_the_weights(weighted):
    first, second = megatron.run_on_ranks(2, megatron.read_batch_on_tensor_rank, weighted)
    assert np.array_equal(first["turn_units"], second["turn_units"])
    rows = open_shards(weighted)[:2]
    units = sum(row["turn_weights"].sum() * 1024 for row in rows)
    assert first["turn_num"] == second["turn_num"] == units


def test_weights_are_counted_as_integers_in_units():
    loss, count, report = loss_func(
        torch.tensor([1.0, 3.0, 5.0]),
        torch.tensor([1, 1, 1]),
        torch.tensor([2, 2, 1]),
        torch.tensor(512 + 2048),
        turn_units=torch.tensor([512, 512, 2048]),
    )
    assert (loss, count, count.dtype) == (512 * 2 + 2048 * 5, 2560, torch.int)
    assert report["lm loss"].tolist() == [512 * 2 + 2048 * 5, 2560]


def test_tokens_per_turn_has_no_meaning_with_weights():
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="tokens_per_turn: loss and count have the factor 1024"):
        loss_func(ones, ones, ones, 1, turn_units=ones, tokens_per_turn=2)


@contextmanager
def global_batch_size(size: int, rampup: list[int] | None = None):
    num_microbatches_calculator.init_num_microbatches_calculator(0, rampup, size, 1, 1)
    try:
        yield
    finally:
        num_microbatches_calculator.destroy_num_microbatches_calculator()


HEAVY = weigh_turns(SEQUENCES, 2**24)  # 16384 each; three, four, two, and two turns in a sequence


@pytest.mark.parametrize(
    ("size", "rampup", "fits"),
    [
        (8, None, True),
        # The heaviest 40 sequences are all of them, ten times: 110 turns.
        (40, None, True),
        (48, None, False),
        (48, [8, 8, 100], False),
    ],
)
def test_a_global_batch_whose_weights_overflow_megatrons_count_is_refused(
    tmp_path, size, rampup, fits
):
    folder = pack(tmp_path, sequences=HEAVY)
    with global_batch_size(size, rampup):
        if fits:
            assert len(megatron.build_dataset(folder)) == len(SEQUENCES)
            return
        with pytest.raises(SetupError, match="counts up to 2,097,151"):
            megatron.build_dataset(folder)


def test_a_blend_of_sets_with_and_without_weights_is_refused(packed, weighted):
    blend = ([packed, weighted], [0.5, 0.5])
    with pytest.raises(SetupError, match="pack all data of a blend with --turn-weights"):
        build_datasets([4, 0, 0], megatron.build_config(packed, blend=blend))


# The dataset


def test_an_item_has_the_columns_of_megatrons_sft_dataset_and_two_more(packed):
    dataset = megatron.build_dataset(packed)
    assert len(dataset) == len(SEQUENCES)
    seq_len = megatron.SEQ_LEN
    for item, row in zip(
        (dataset[i] for i in range(len(dataset))), open_shards(packed), strict=True
    ):
        assert {name: (column.dtype, tuple(column.shape)) for name, column in item.items()} == {
            "tokens": (torch.int64, (seq_len,)),
            "labels": (torch.int64, (seq_len,)),
            "position_ids": (torch.int64, (seq_len,)),
            "loss_mask": (torch.float32, (seq_len,)),
            "loss_token_num": (torch.int32, (seq_len,)),
            "turn_heads": (torch.uint8, (seq_len,)),
            "cu_seqlens": (torch.int32, (seq_len + 1,)),
            "max_seqlen": (torch.int32, ()),
        }
        assert np.array_equal(item["tokens"], row["input_ids"])
        assert np.array_equal(item["labels"], row["labels"])
        assert np.array_equal(item["loss_token_num"], row["loss_token_num"])
        assert np.array_equal(item["turn_heads"].nonzero()[:, 0], row["turn_starts"])
        ends = np.cumsum(row["seq_lengths"])
        assert item["cu_seqlens"].tolist() == [0, *ends, *[seq_len] * (seq_len - len(ends))]
        assert item["max_seqlen"] == row["seq_lengths"].max()


def test_shards_of_both_alignments_give_the_same_items(packed, tmp_path):
    shifted, aligned = (
        megatron.build_dataset(each) for each in (packed, pack(tmp_path, "aligned"))
    )
    for row in range(len(SEQUENCES)):
        for name, column in shifted[row].items():
            assert torch.equal(aligned[row][name], column), name


def test_items_can_be_stacked_and_repeat_after_an_epoch(packed):
    dataset = megatron.build_dataset(packed, num_samples=10)
    assert len(dataset) == 10
    batch = default_collate([dataset[1], dataset[1 + len(SEQUENCES)]])
    assert torch.equal(batch["tokens"][0], batch["tokens"][1])


def test_a_split_gets_its_share_of_the_sequences(packed):
    train, validation, _ = build_datasets([None] * 3, megatron.build_config(packed, split="3,1,0"))
    assert (len(train), len(validation)) == (3, 1)
    assert torch.equal(validation[0]["tokens"], megatron.build_dataset(packed)[3]["tokens"])


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"sequence_length": 64}, "--seq-len 32"),
        ({"context_parallel_size": 8}, "--pad-documents-to 16"),
        (
            {"context_parallel_size": 2, "data_parallel_size": 4, "hybrid_context_parallel": True},
            "--pad-documents-to 16",
        ),
        (
            {
                "context_parallel_size": 2,
                "data_parallel_size": 2,
                "sequence_parallel_size": 4,
                "hybrid_context_parallel": True,
            },
            "--pad-documents-to 32",
        ),
    ],
)
def test_shards_that_do_not_match_the_run_are_refused(packed, settings, remedy):
    with pytest.raises(SetupError, match=remedy):
        megatron.build_dataset(packed, **settings)


# The loss


def test_the_count_can_be_added_to_megatrons_integer_and_the_loss_stays_a_sum():
    losses = torch.tensor([[1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    loss_mask, loss_token_num = torch.tensor([[1, 1, 0, 1]]), torch.tensor([[2, 2, 1, 1]])
    func = partial(
        loss_func, loss_mask=loss_mask, loss_token_num=loss_token_num, turn_num=torch.tensor([2])
    )
    (total,) = megatron.run_on_ranks(1, calculate, losses.detach(), func)
    loss, count, report, megatrons_total = total
    assert (loss, count, report) == (1.5 + 4.0, 2, [5.5, 2.0])
    assert megatrons_total == 4


def calculate(losses, func):
    with megatron.model_parallel():
        model, reports = megatron.build_model(), []
        total_num_tokens = torch.zeros([], dtype=torch.int)  # as in schedules.py
        for _ in range(2):
            loss, count = megatron.calculate_loss(model, losses.clone(), func, reports)
            total_num_tokens += count
    return loss.item(), count.item(), reports[0]["lm loss"].tolist(), total_num_tokens.item()


def test_the_loss_needs_no_parallel_state():
    loss, count, report = loss_func(
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        torch.tensor([1, 1]),
        torch.tensor([2, 2]),
        1,
    )
    assert (loss, count, count.dtype) == (1.5, 1, torch.int)
    assert report["lm loss"].tolist() == [1.5, 1.0]
    assert loss.dtype == torch.float32


def test_counts_that_are_not_integers_are_refused():
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="turn_num"):
        loss_func(ones, ones, ones, torch.tensor(0.5))
    with pytest.raises(ValueError, match="tokens_per_turn"):
        loss_func(ones, ones, ones, torch.tensor(1), tokens_per_turn=2.5)


# Slices of context-parallel ranks


def build_bounds(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


@given(st.sampled_from([1, 2, 3, 4, 8]), st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_slices_equal_those_of_transformer_engine(size, chunks):
    bounds = build_bounds([2 * size * count for count in chunks])
    for rank in range(size):
        positions = find_positions_on_rank(bounds, size, rank)
        assert positions.tolist() == megatron.find_zigzag_positions(bounds.tolist(), size, rank)


@pytest.mark.skipif(not HAS_CUDA, reason="needs CUDA and transformer_engine")
def test_slices_equal_those_of_the_kernel_of_transformer_engine():
    kernels = pytest.importorskip("transformer_engine_torch")
    bounds = build_bounds([8, 24, 16, 32]).cuda()
    for rank in range(4):
        expected = kernels.thd_get_partitioned_indices(bounds, 80, 4, rank)
        assert torch.equal(find_positions_on_rank(bounds, 4, rank), expected.long())


@given(st.data())
def test_ranks_together_have_each_position_and_each_turn_once(data):
    size = data.draw(st.sampled_from([2, 4]))
    bounds = build_bounds(
        [2 * size * count for count in data.draw(st.lists(st.integers(1, 4), min_size=1))]
    )
    heads = torch.tensor([data.draw(st.booleans()) for _ in range(int(bounds[-1]))])
    slices = [find_positions_on_rank(bounds, size, rank) for rank in range(size)]
    assert sorted(torch.cat(slices).tolist()) == list(range(int(bounds[-1])))
    assert len({len(positions) for positions in slices}) == 1
    assert sum(heads[positions].sum() for positions in slices) == heads.sum()


@pytest.mark.parametrize("size", [2, 4])
def test_a_turn_on_several_ranks_is_counted_on_the_one_where_it_starts(packed, size):
    split = 0
    for row in open_shards(packed):
        bounds = build_bounds(row["seq_lengths"].tolist())
        shares = np.divide(row["loss_mask"], row["loss_token_num"])
        heads = np.zeros(len(shares), int)
        heads[row["turn_starts"]] = 1
        slices = [find_positions_on_rank(bounds, size, rank).numpy() for rank in range(size)]
        assert sum(heads[own].sum() for own in slices) == row["turn_num"]
        assert sum(shares[own].sum() for own in slices) == pytest.approx(row["turn_num"])
        split += sum(shares[own].sum() % 1 > 0.01 for own in slices)
    assert split > 0, "no turn is on several ranks, so the test shows nothing"


def test_rounded_shares_lose_a_turn_that_is_half_on_each_of_two_ranks():
    shares = torch.tensor([0, 0.5, 0.5, 0, 0, 0, 0, 0])
    slices = [shares[find_positions_on_rank(build_bounds([8]), 2, rank)].sum() for rank in range(2)]
    assert slices == [0.5, 0.5]
    assert sum(share.round() for share in slices) == 0


def test_a_document_that_cannot_be_divided_is_refused():
    with pytest.raises(InputError, match="--pad-documents-to 4"):
        find_positions_on_rank(build_bounds([4, 2]), 2, 0)


def test_documents_start_at_position_0():
    positions = torch.tensor([[0, 1, 2, 0], [0, 1, 0, 1]])
    assert find_document_bounds(positions).tolist() == [0, 3, 4, 6, 8]


def test_a_single_rank_needs_no_group():
    assert ContextParallel.static() == ContextParallel(size=1, rank=0, group=None)


def test_every_name_in_the_recipe_exists():
    recipe = (ROOT / "docs" / "training.md").read_text()
    named = set(re.findall(r"\bturns\.(?!md)(\w+)", recipe))
    assert {"build_datasets", "forward_step", "loss_func"} <= named
    assert all(hasattr(integration, name) for name in named)
