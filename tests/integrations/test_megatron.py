"""Megatron-LM: each turn weighs the same whatever ranks and micro-batches it is divided over.

Against the real megatron-core: its dataset builders, model, schedule, loss contract, process groups
and finalization of gradients, on CPU ranks over gloo (tests/support/megatron_ranks.py).
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("megatron.core", reason="needs megatron-core, which has wheels for Linux")

import torch
from torch.utils.data import default_collate

from mtpack.context_parallel import places_on_rank
from mtpack.errors import InputError, SetupError
from mtpack.integrations import megatron as integration
from mtpack.integrations.megatron import (
    ContextParallel,
    build_datasets,
    document_bounds,
    loss_func,
)
from mtpack.shards.dataset import open_shards
from tests.conftest import ROOT
from tests.support import megatron_ranks as megatron
from tests.support.builders import (
    columns_of_sequences,
    hand_made_sequences,
    metadata_of,
    write_output,
)
from tests.support.strategies import Document, Turn

SEQUENCES = [
    *hand_made_sequences(),
    [Document(9, [*range(50, 82)], [Turn(1, 0, [(5, 17)]), Turn(3, 0, [(20, 21)])])],
]
DOCUMENTS = [document for sequence in SEQUENCES for document in sequence]
TURNS = sum(len(document.turns) for document in DOCUMENTS)
HAS_CUDA = torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def pack(folder, alignment: str = "shifted", multiple: int = 8) -> str:
    metadata = metadata_of(alignment, multiple)
    columns = columns_of_sequences(SEQUENCES, metadata.layout)
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
def by_definition():
    """Return the loss and the gradients of one sample per turn."""
    (rank,) = megatron.on_ranks(1, megatron.one_sample_per_turn, DOCUMENTS)
    return rank


@pytest.fixture(scope="module")
def steps_on(packed):
    """Run a step on so many ranks, once."""
    return cache(lambda ranks, size: megatron.on_ranks(ranks, megatron.training_step, packed, size))


def distance(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def log_of(reports) -> float:
    """Compute what train_step and evaluate (without --sft) of megatron/training log."""
    loss, count = np.sum([np.sum(of_rank, axis=0) for of_rank in reports], axis=0)
    return loss / count


# The whole: a step of Megatron's schedule, over all kinds of ranks


@pytest.mark.parametrize(
    ("ranks", "context_parallel_size"), [(1, 1), (2, 1), (2, 2), (4, 2), (4, 4)]
)
def test_a_step_has_the_gradients_of_one_sample_per_turn(
    steps_on, by_definition, ranks, context_parallel_size
):
    loss, expected = by_definition
    steps = steps_on(ranks, context_parallel_size)
    for _, gradients in steps:
        assert distance(gradients, expected) < 1e-6
    assert log_of([reports for reports, _ in steps]) == pytest.approx(loss, rel=1e-6)


def test_so_has_a_step_in_which_each_document_has_its_own_number_of_ranks(packed, by_definition):
    loss, expected = by_definition
    steps = megatron.on_ranks(4, megatron.hybrid_training_step, packed)
    for _, gradients in steps:
        assert distance(gradients, expected) < 1e-6
    assert log_of([reports for reports, _ in steps]) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(
    "mistake", ["share of this rank, as an integer", "all turns on every rank"]
)
def test_other_counts_give_other_gradients_under_context_parallelism(
    packed, by_definition, mistake
):
    step = partial(megatron.mistaken_step, mistake)
    for _, gradients in megatron.on_ranks(2, megatron.training_step, packed, 2, step):
        assert distance(gradients, by_definition[1]) > 0.05


def test_every_rank_reports_a_mean_over_turns_even_one_on_which_no_turn_starts(steps_on):
    """Under --sft, evaluation divides on each rank: ratios of single micro-batches."""
    ranks = [reports for reports, _ in steps_on(4, 4)]
    assert ranks[0] == ranks[1] == ranks[2] == ranks[3]
    assert sum(count for _, count in ranks[0]) == TURNS


def test_tokens_per_turn_changes_neither_gradients_nor_log(packed, by_definition):
    loss, expected = by_definition
    step = partial(megatron.forward_step, tokens_per_turn=50)
    ((reports, gradients),) = megatron.on_ranks(1, megatron.training_step, packed, 1, step)
    assert distance(gradients, expected) < 1e-6
    assert log_of([reports]) == pytest.approx(loss, rel=1e-6)


def test_all_tensor_parallel_ranks_have_what_the_first_reads(packed):
    first, second = megatron.on_ranks(2, megatron.batch_on_tensor_rank, packed)
    for name, column in first.items():
        assert np.array_equal(second[name], column), name
    rows = open_shards(packed)[:2]
    assert np.array_equal(first["tokens"][0], np.concatenate([row["input_ids"] for row in rows]))
    assert first["turn_num"] == sum(row["turn_num"] for row in rows)
    lengths = np.concatenate([row["seq_lengths"] for row in rows])
    assert np.array_equal(np.diff(first["cu_seqlens"]), lengths)


def test_a_schedule_plan_is_given_the_documents_too(packed):
    """With overlapped expert communication, Megatron asks for a plan, not for token losses."""
    row = open_shards(packed)[0]
    (planned,) = megatron.on_ranks(1, megatron.planned_step, packed)
    bounds = [0, *np.cumsum(row["seq_lengths"]).tolist()]
    assert planned == (["labels", "loss_mask", "packed_seq_params"], bounds, row["turn_num"])


def test_rows_that_pipeline_stages_can_not_hand_on_are_refused(packed):
    assert (
        megatron.on_ranks(2, megatron.refused_batch, packed)
        == ["several pipeline stages need --micro-batch-size 1"] * 2
    )


@pytest.mark.skipif(not HAS_CUDA, reason="needs CUDA and transformer_engine")
def test_a_step_on_a_gpu_has_the_gradients_of_one_sample_per_turn(packed):
    ((reports, found, expected),) = megatron.on_ranks(
        1, megatron.on_cuda, packed, DOCUMENTS, backend="nccl"
    )
    assert distance(found, expected) < 2e-2
    assert sum(count for _, count in reports) == TURNS


# The data set


def test_an_item_is_what_megatrons_own_sft_dataset_gives_and_two_columns_more(packed):
    dataset = megatron.dataset_of(packed)
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


def test_shards_of_either_alignment_give_the_same_items(packed, tmp_path):
    shifted, aligned = (megatron.dataset_of(each) for each in (packed, pack(tmp_path, "aligned")))
    for row in range(len(SEQUENCES)):
        for name, column in shifted[row].items():
            assert torch.equal(aligned[row][name], column), name


def test_items_can_be_stacked_and_begin_again_after_an_epoch(packed):
    dataset = megatron.dataset_of(packed, num_samples=10)
    assert len(dataset) == 10
    batch = default_collate([dataset[1], dataset[1 + len(SEQUENCES)]])
    assert torch.equal(batch["tokens"][0], batch["tokens"][1])


def test_a_split_takes_its_share_of_the_sequences(packed):
    train, validation, _ = build_datasets([None] * 3, megatron.config_of(packed, split="3,1,0"))
    assert (len(train), len(validation)) == (3, 1)
    assert torch.equal(validation[0]["tokens"], megatron.dataset_of(packed)[3]["tokens"])


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
def test_shards_that_do_not_fit_the_run_are_refused(packed, settings, remedy):
    with pytest.raises(SetupError, match=remedy):
        megatron.dataset_of(packed, **settings)


# The loss


def test_the_count_can_be_added_to_megatrons_integer_and_the_loss_is_left_a_sum():
    losses = torch.tensor([[1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    loss_mask, loss_token_num = torch.tensor([[1, 1, 0, 1]]), torch.tensor([[2, 2, 1, 1]])
    func = partial(
        loss_func, loss_mask=loss_mask, loss_token_num=loss_token_num, turn_num=torch.tensor([2])
    )
    (total,) = megatron.on_ranks(1, calculated, losses.detach(), func)
    loss, count, report, megatrons_total = total
    assert (loss, count, report) == (1.5 + 4.0, 2, [5.5, 2.0])
    assert megatrons_total == 4


def calculated(losses, func):
    with megatron.parallel():
        model, reports = megatron.build_model(), []
        total_num_tokens = torch.zeros([], dtype=torch.int)  # as schedules.py makes it
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


def test_what_megatron_can_not_count_is_refused():
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="turn_num"):
        loss_func(ones, ones, ones, torch.tensor(0.5))
    with pytest.raises(ValueError, match="tokens_per_turn"):
        loss_func(ones, ones, ones, torch.tensor(1), tokens_per_turn=2.5)


# Slices of context-parallel ranks


def bounds_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


@given(st.sampled_from([1, 2, 3, 4, 8]), st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_slices_are_those_of_transformer_engine(size, chunks):
    bounds = bounds_of([2 * size * count for count in chunks])
    for rank in range(size):
        places = places_on_rank(bounds, size, rank)
        assert places.tolist() == megatron.zigzag(bounds.tolist(), size, rank)


@pytest.mark.skipif(not HAS_CUDA, reason="needs CUDA and transformer_engine")
def test_slices_are_those_of_transformer_engine_itself():
    kernels = pytest.importorskip("transformer_engine_torch")
    bounds = bounds_of([8, 24, 16, 32]).cuda()
    for rank in range(4):
        expected = kernels.thd_get_partitioned_indices(bounds, 80, 4, rank)
        assert torch.equal(places_on_rank(bounds, 4, rank), expected.long())


@given(st.data())
def test_ranks_together_have_each_place_and_each_turn_once(data):
    size = data.draw(st.sampled_from([2, 4]))
    bounds = bounds_of(
        [2 * size * count for count in data.draw(st.lists(st.integers(1, 4), min_size=1))]
    )
    heads = torch.tensor([data.draw(st.booleans()) for _ in range(int(bounds[-1]))])
    slices = [places_on_rank(bounds, size, rank) for rank in range(size)]
    assert sorted(torch.cat(slices).tolist()) == list(range(int(bounds[-1])))
    assert len({len(places) for places in slices}) == 1
    assert sum(heads[places].sum() for places in slices) == heads.sum()


@pytest.mark.parametrize("size", [2, 4])
def test_a_turn_on_several_ranks_is_counted_on_the_one_where_it_starts(packed, size):
    split = 0
    for row in open_shards(packed):
        bounds = bounds_of(row["seq_lengths"].tolist())
        shares = np.divide(row["loss_mask"], row["loss_token_num"])
        heads = np.zeros(len(shares), int)
        heads[row["turn_starts"]] = 1
        slices = [places_on_rank(bounds, size, rank).numpy() for rank in range(size)]
        assert sum(heads[places].sum() for places in slices) == row["turn_num"]
        assert sum(shares[places].sum() for places in slices) == pytest.approx(row["turn_num"])
        split += sum(shares[places].sum() % 1 > 0.01 for places in slices)
    assert split > 0, "no turn lies on several ranks, so nothing was shown"


def test_rounded_shares_lose_a_turn_that_two_ranks_have_half_of():
    shares = torch.tensor([0, 0.5, 0.5, 0, 0, 0, 0, 0])
    slices = [shares[places_on_rank(bounds_of([8]), 2, rank)].sum() for rank in range(2)]
    assert slices == [0.5, 0.5]
    assert sum(share.round() for share in slices) == 0


def test_a_document_that_can_not_be_divided_is_refused():
    with pytest.raises(InputError, match="--pad-documents-to 4"):
        places_on_rank(bounds_of([4, 2]), 2, 0)


def test_documents_begin_where_positions_do():
    positions = torch.tensor([[0, 1, 2, 0], [0, 1, 0, 1]])
    assert document_bounds(positions).tolist() == [0, 3, 4, 6, 8]


def test_one_rank_alone_needs_no_group():
    assert ContextParallel.static() == ContextParallel(size=1, rank=0, group=None)


def test_the_recipe_names_what_there_is():
    recipe = (ROOT / "docs" / "training.md").read_text()
    named = set(re.findall(r"turns\.(\w+)", recipe))
    assert {"build_datasets", "forward_step", "loss_func"} <= named
    assert all(hasattr(integration, name) for name in named)
