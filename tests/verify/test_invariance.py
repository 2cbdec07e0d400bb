"""`verify`, invariance: no division of the global batch changes the step; wrong ones fail."""

from __future__ import annotations

import errno
import re
import subprocess
import sys

import numpy as np
import pytest

from mtpack.shards.dataset import Row
from tests.support.builders import hand_made_sequences, open_sequences, weigh_turns
from tests.support.strategies import Document, Turn

torch = pytest.importorskip("torch")

from mtpack.context_parallel import find_positions_on_rank  # noqa: E402
from mtpack.loss import turn_mean_loss  # noqa: E402
from mtpack.torch_data import collate  # noqa: E402
from mtpack.verify import invariance, ranks, steps  # noqa: E402
from mtpack.verify.causal_model import CausalModel, fold_ids, make_built_in_model  # noqa: E402
from mtpack.verify.check import Check  # noqa: E402
from mtpack.verify.invariance import (  # noqa: E402
    compare_context_parallel,
    compare_micro_batches,
    reference_step,
)
from mtpack.verify.padding import pad_documents, pad_sequence  # noqa: E402

ALIGNMENTS = ("aligned", "shifted")


pytestmark = pytest.mark.usefixtures("one_thread")


def rows_of(tmp_path, alignment: str = "aligned") -> list[Row]:
    """Five sequences with 2, 1, 4, 1 and 2 turns, of 1 to 7 tokens."""
    single = [[Document(9, [*range(20, 25)], [Turn(1, 0, [(1, 5)])])]]
    sequences = [*hand_made_sequences(), *single]
    sequences.append([Document(11, [5, 6, 7], [Turn(1, 0, [(1, 3)])])])
    shards = open_sequences(tmp_path, sequences, alignment)
    return fold_ids(list(shards))


def model_of() -> CausalModel:
    return make_built_in_model("cpu", torch.float64)


def check_of(compare, rows: list[Row], alignment: str = "aligned") -> Check:
    model = model_of()
    return compare(model, rows, alignment, reference_step(model, rows, alignment))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("compare", [compare_micro_batches, compare_context_parallel])
def test_every_division_within_a_process_gives_the_same_step(tmp_path, alignment, compare):
    check = check_of(compare, rows_of(tmp_path, alignment), alignment)
    assert check.value <= check.tolerance <= 1e-10


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("compare", [compare_micro_batches, compare_context_parallel])
def test_every_division_of_weighted_turns_gives_the_same_step(tmp_path, alignment, compare):
    weighted = weigh_turns(hand_made_sequences(), 512, 3072, 100)
    rows = fold_ids(list(open_sequences(tmp_path, weighted, alignment)))
    check = check_of(compare, rows, alignment)
    assert check.value <= check.tolerance <= 1e-10


def test_slices_that_lose_the_weights_fail(tmp_path, monkeypatch):
    def without_weights(losses, mask, token_num, heads, weights):
        return turn_mean_loss(losses, mask, token_num, heads)

    weighted = weigh_turns(hand_made_sequences(), 512, 3072)
    rows = fold_ids(list(open_sequences(tmp_path, weighted)))
    monkeypatch.setattr(invariance, "turn_mean_loss", without_weights)
    assert check_of(compare_context_parallel, rows).value > 1e-2


def test_dividing_each_micro_batch_by_its_own_turns_fails(tmp_path, monkeypatch):
    rows = rows_of(tmp_path)
    model = model_of()
    expected = reference_step(model, rows, "aligned")
    one = torch.ones((), dtype=torch.int64)
    right = steps.sum_micro_batch

    def mean_of_the_micro_batch(model, batch, alignment):
        loss_sum, turns = right(model, batch, alignment)
        return loss_sum / turns, one

    monkeypatch.setattr(steps, "sum_micro_batch", mean_of_the_micro_batch)
    check = compare_micro_batches(model, rows, "aligned", expected)
    assert not check.ok
    assert check.value > 1e-3


def test_counting_a_turn_on_every_rank_that_has_a_part_of_it_fails(tmp_path, monkeypatch):
    def turns_seen(losses, mask, token_num, heads):
        loss_sum, _ = turn_mean_loss(losses, mask, token_num, heads)
        starts_here = mask.diff(prepend=mask.new_zeros(1)) == 1
        return loss_sum, starts_here.sum()

    monkeypatch.setattr(invariance, "turn_mean_loss", turns_seen)
    assert check_of(compare_context_parallel, rows_of(tmp_path)).value > 1e-2


def test_rounding_the_shares_of_turns_fails(tmp_path, monkeypatch):
    def rounded(losses, mask, token_num, heads):
        loss_sum, _ = turn_mean_loss(losses, mask, token_num, heads)
        return loss_sum, (mask / token_num).sum().long()

    monkeypatch.setattr(invariance, "turn_mean_loss", rounded)
    assert check_of(compare_context_parallel, rows_of(tmp_path)).value > 1e-2


def test_losing_the_slice_of_a_rank_fails(tmp_path, monkeypatch):
    def positions_except_first_rank(cu_seqlens, size, rank):
        return find_positions_on_rank(cu_seqlens, size, rank)[: None if rank else 0]

    monkeypatch.setattr(invariance, "find_positions_on_rank", positions_except_first_rank)
    assert check_of(compare_context_parallel, rows_of(tmp_path)).value > 1e-2


@pytest.mark.parametrize("ranks_num", [1, 2, 3])
def test_zigzag_slices_have_every_position_once_and_equal_parts_of_each_document(ranks_num):
    multiple = 2 * ranks_num
    lengths = np.array([1, 3, 2]) * multiple
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
    bounds = torch.from_numpy(cu_seqlens)
    slices = [find_positions_on_rank(bounds, ranks_num, rank).numpy() for rank in range(ranks_num)]
    assert sorted(np.concatenate(slices)) == list(range(cu_seqlens[-1]))
    for rank, positions in enumerate(slices):
        for start, length in zip(cu_seqlens, lengths, strict=False):
            own = positions[(positions >= start) & (positions < start + length)] - start
            chunks = np.arange(length).reshape(multiple, -1)
            assert own.tolist() == [*chunks[rank], *chunks[multiple - 1 - rank]]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_padding_documents_moves_tokens_together_with_their_columns(tmp_path, alignment):
    for row in rows_of(tmp_path, alignment):
        padded = pad_sequence(pad_documents(row, 8), 64)
        assert (np.array(padded["seq_lengths"][:-1]) % 8 == 0).all()
        assert padded["seq_lengths"].sum() == len(padded["labels"]) == 64
        for name in ("labels", "loss_token_num"):
            trained = padded["loss_mask"] == 1
            assert padded[name][trained].tolist() == row[name][row["loss_mask"] == 1].tolist()
        before, after = collate([row]), collate([padded])
        heads = [batch["position_ids"][batch["turn_heads"] == 1] for batch in (before, after)]
        assert heads[0].tolist() == heads[1].tolist()


def compare(rows: list[Row]) -> Check:
    return ranks.compare_ranks(rows, "aligned", "cpu", torch.float64)


def test_ranks_that_all_reduce_have_the_same_gradients_as_one_process(tmp_path):
    check = compare(rows_of(tmp_path))
    assert check.ok
    assert check.value <= check.tolerance <= 1e-10


def mean_of_the_rank(rank: int, task: ranks.RankTask) -> steps.StepResult:
    """Divide before the sums of the ranks are added up, as data-parallel training usually does."""
    all_reduced = ranks._all_reduce

    def averaged(sums, device):
        mean = steps.normalize(sums)
        ones = torch.ones((), dtype=torch.int64)
        return all_reduced(steps.StepSums(mean.loss, ones, mean.gradients), device)

    ranks._all_reduce = averaged
    return ranks.take_rank_step(rank, task)


def test_ranks_that_divide_by_their_own_turns_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "take_rank_step", mean_of_the_rank)
    check = compare(rows_of(tmp_path))
    assert check.ok is False
    assert check.value > 1e-3


def raise_an_error(rank: int, task: ranks.RankTask) -> steps.StepResult:
    raise RuntimeError(f"rank {rank} has failed")


def test_an_error_in_a_rank_is_the_reason_why_the_check_was_not_done(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "take_rank_step", raise_an_error)
    check = compare(rows_of(tmp_path))
    assert (check.ok, check.value) == (None, None)
    assert re.fullmatch(
        "its processes can't be run: RuntimeError: rank [01] has failed", check.detail
    )


def test_ranks_run_from_a_script_without_a_guard_for_its_main_module(tmp_path):
    """A spawned process imports the script of its parent, if it is not kept from that."""
    rows_of(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from mtpack.shards.dataset import open_shards\n"
        "from mtpack.verify.ranks import compare_ranks\n"
        f"rows = list(open_shards({str(tmp_path / 'out')!r}))\n"
        "print(compare_ranks(rows, 'aligned', 'cpu', torch.float64).ok)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_rows_are_divided_unevenly_and_completely(tmp_path):
    rows = [{"number": number} for number in range(5)]
    for number in (2, 3, 8):
        shares = ranks.divide_rows(rows, number)
        assert len(shares) == number
        assert sorted(row["number"] for share in shares for row in share) == [0, 1, 2, 3, 4]
        assert len(shares[0]) == 3


def test_a_machine_that_starts_no_processes_is_reported_in_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(ranks, "spawn", refuse)
    check = compare(rows_of(tmp_path))
    assert check.ok is None
    assert re.fullmatch(r"its processes can't be run: [^\n]*temporarily unavailable", check.detail)
