"""Each loss equals its definition, from token losses and from hidden states."""

import itertools
import logging
import os
import subprocess
import sys
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from mtpack import linear_loss  # noqa: E402
from mtpack.loss import (  # noqa: E402
    available_kernels,
    dialogue_mean_loss,
    linear_turn_mean_loss,
    square_root_loss,
    token_mean_loss,
    turn_mean_loss,
)
from tests.conftest import ROOT  # noqa: E402

NORMALIZATIONS = ("turn_mean", "token_mean", "dialogue_mean", "square_root")
ALIGNMENTS = ("aligned", "shifted")
VOCABULARY = 61
HIDDEN = 12


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# A sequence is a list of documents, a document a list of turns, a turn a pair (prompt tokens before
# it, loss tokens). Each document starts with one more prompt token: a first token has no predictor.
turn = st.tuples(st.integers(0, 4), st.integers(1, 6))
document = st.lists(turn, max_size=3)
sequences = st.lists(st.lists(document, min_size=1, max_size=3), min_size=1, max_size=4)
SOME = [[[(0, 1), (2, 6)], [(3, 2)]], [[]], [[(1, 3)], [], [(0, 4), (0, 4), (1, 1)]]]
NOTHING = [[[]], [[], []]]


def find_positions(sequence):
    """Return the turns' positions for every document, the documents' starts, and the last end."""
    documents, starts, position = [], [], 0
    for turns in sequence:
        starts.append(position)
        position += 1
        documents.append([])
        for prompt_tokens, length in turns:
            position += prompt_tokens
            documents[-1].append(list(range(position, position + length)))
            position += length
    return documents, starts, position


def build_batch(sequences, label_alignment="aligned", seed=0):
    """Build the columns of sequences, one position after another."""
    seq_len = 2 + max(find_positions(sequence)[2] for sequence in sequences)
    shape = (len(sequences), seq_len)
    ids = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
    batch = {
        "labels": torch.full(shape, -100),
        "loss_mask": torch.zeros(shape, dtype=torch.uint8),
        "loss_token_num": torch.ones(shape, dtype=torch.int32),
        "position_ids": torch.zeros(shape, dtype=torch.int64),
        "turn_num": torch.zeros(len(sequences), dtype=torch.int64),
    }
    shift = 1 if label_alignment == "shifted" else 0
    for row, sequence in enumerate(sequences):
        documents, starts, end = find_positions(sequence)
        for start, stop in zip([*starts, end], [*starts[1:], end, seq_len], strict=True):
            batch["position_ids"][row, start:stop] = torch.arange(stop - start)
        batch["turn_num"][row] = sum(map(len, documents))
        for positions in (positions for turns in documents for positions in turns):
            for position in positions:
                batch["labels"][row, position - shift] = ids[row, position]
                batch["loss_mask"][row, position - shift] = 1
                batch["loss_token_num"][row, position - shift] = len(positions)
    return batch


def add_weights(batch, sequences, label_alignment="aligned"):
    """Return the batch with other weights of its turns, and these in the order of the turns."""
    shift = 1 if label_alignment == "shifted" else 0
    weights, next_weights = [], itertools.cycle([0.25, 3, 1, 1 / 1024, 100])
    turn_weight = torch.zeros(batch["labels"].shape)
    for row, sequence in enumerate(sequences):
        for positions in (turn for turns in find_positions(sequence)[0] for turn in turns):
            weights.append(next(next_weights))
            for position in positions:
                turn_weight[row, position - shift] = weights[-1]
    return {**batch, "turn_weight": turn_weight}, weights


def compute_weighted_by_definition(losses, sequences, normalization, weights, alignment="aligned"):
    """Return the sum and the count of weighted turns: each part of a turn times its weight."""
    shift = 1 if alignment == "shifted" else 0
    total, count, weights = losses.new_zeros(()), 0.0, iter(weights)
    for row, sequence in enumerate(sequences):
        for turns in find_positions(sequence)[0]:
            in_document = sum(map(len, turns))
            for turn in turns:
                mean = torch.stack([losses[row, at - shift] for at in turn]).mean()
                part = {
                    "turn_mean": 1.0,
                    "token_mean": float(len(turn)),
                    "dialogue_mean": len(turn) / in_document,
                    "square_root": len(turn) ** 0.5,
                }[normalization]
                weight = part * next(weights)
                total, count = total + weight * mean, count + weight
    return total, count


def compute_by_definition(losses, sequences, normalization, label_alignment="aligned"):
    """Return the sum and the count, turn by turn; losses are aligned with the labels."""
    shift = 1 if label_alignment == "shifted" else 0
    total, count = losses.new_zeros(()), 0
    for row, sequence in enumerate(sequences):
        for turns in find_positions(sequence)[0]:
            own = [torch.stack([losses[row, at - shift] for at in turn]) for turn in turns]
            if normalization == "turn_mean":
                total, count = total + sum(turn.mean() for turn in own), count + len(own)
            elif normalization == "token_mean":
                total, count = total + sum(turn.sum() for turn in own), count + sum(map(len, own))
            elif normalization == "square_root":
                roots = [len(turn) ** 0.5 for turn in own]
                total += sum(turn.mean() * root for turn, root in zip(own, roots, strict=True))
                count += sum(roots)
            elif own:
                total, count = total + torch.cat(own).mean(), count + 1
    return total, count


def call_loss(normalization, losses, batch):
    """Call the loss function of a normalization."""
    mask, numbers, weights = (
        batch.get(name) for name in ("loss_mask", "loss_token_num", "turn_weight")
    )
    return {
        "turn_mean": lambda: turn_mean_loss(losses, mask, numbers, batch["turn_num"], weights),
        "token_mean": lambda: token_mean_loss(losses, mask, weights),
        "dialogue_mean": lambda: dialogue_mean_loss(losses, mask, batch["position_ids"], weights),
        "square_root": lambda: square_root_loss(losses, mask, numbers, weights),
    }[normalization]()


@pytest.mark.parametrize("label_alignment", ALIGNMENTS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@given(sequences=sequences)
@settings(max_examples=12)
def test_each_normalization_equals_its_definition(normalization, label_alignment, sequences):
    batch = build_batch(sequences, label_alignment)
    losses = torch.rand(batch["labels"].shape, dtype=torch.float64)
    found, count = call_loss(normalization, losses, batch)
    expected, expected_count = compute_by_definition(
        losses, sequences, normalization, label_alignment
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert count.item() == pytest.approx(expected_count, rel=1e-12)
    if normalization != "square_root":
        assert count.dtype == torch.int64


@pytest.mark.parametrize("label_alignment", ALIGNMENTS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@given(sequences=sequences)
@settings(max_examples=12)
def test_a_weight_multiplies_the_part_of_its_turn(normalization, label_alignment, sequences):
    batch, weights = add_weights(
        build_batch(sequences, label_alignment), sequences, label_alignment
    )
    losses = torch.rand(batch["labels"].shape, dtype=torch.float64)
    found, count = call_loss(normalization, losses, batch)
    expected, expected_count = compute_weighted_by_definition(
        losses, sequences, normalization, weights, label_alignment
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert count.item() == pytest.approx(expected_count, rel=1e-12)
    assert count.dtype == torch.float64


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_weight_that_all_turns_have_changes_nothing(normalization):
    batch = build_batch(SOME)
    losses = torch.rand(batch["labels"].shape, dtype=torch.float64)
    loss_sum, count = call_loss(normalization, losses, batch)
    weighted = {**batch, "turn_weight": batch["loss_mask"] * 0.75}
    weighted_sum, weighted_count = call_loss(normalization, losses, weighted)
    assert (weighted_sum / weighted_count).item() == pytest.approx((loss_sum / count).item())
    assert weighted_count.item() == pytest.approx(0.75 * count.item())


def test_slices_of_weighted_sequences_add_up_to_the_whole():
    batch, _ = add_weights(build_batch(SOME), SOME)
    losses = torch.rand(batch["labels"].shape, dtype=torch.float64)
    columns = [losses, batch["loss_mask"], batch["loss_token_num"]]
    turns, weights = batch["turn_num"], batch["turn_weight"]
    whole = turn_mean_loss(*columns, turns, weights)
    slices = [slice(0, 5), slice(5, None)]
    parts = [
        turn_mean_loss(*(column[:, own] for column in columns), turns, weights[:, own])
        for own in slices
    ]
    for expected, found in zip(whole, zip(*parts, strict=True), strict=True):
        assert sum(found).item() == pytest.approx(expected.item(), rel=1e-14)


def test_the_count_of_weights_is_exact_even_for_losses_in_float32():
    lengths = [3, 7, 49, 333]
    batch, weights = add_weights(
        build_batch([[[(0, n) for n in lengths]]]), [[[(0, n) for n in lengths]]]
    )
    losses = torch.rand(batch["labels"].shape)
    loss_sum, count = call_loss("turn_mean", losses, batch)
    assert loss_sum.dtype == torch.float32
    assert count.item() == pytest.approx(sum(weights), rel=1e-15)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_sums_of_micro_batches_add_up_to_those_of_the_whole_batch(normalization):
    batch = build_batch(SOME)
    losses = torch.rand(batch["labels"].shape, dtype=torch.float64)
    whole = torch.stack(call_loss(normalization, losses, batch))
    parts = [
        torch.stack(
            call_loss(normalization, losses[[row]], {key: batch[key][[row]] for key in batch})
        )
        for row in range(len(SOME))
    ]
    assert torch.allclose(sum(parts), whole, rtol=1e-14)


def test_every_row_starts_a_document_even_if_its_first_position_was_cut_off():
    batch = build_batch([[[(1, 4)]], [[(2, 2)], [(0, 1)]]])
    losses = torch.rand(batch["labels"].shape, dtype=torch.float64)
    cut = [values[:, 1:] for values in (losses, batch["loss_mask"], batch["position_ids"])]
    whole = dialogue_mean_loss(losses, batch["loss_mask"], batch["position_ids"])
    assert torch.allclose(torch.stack(dialogue_mean_loss(*cut)), torch.stack(whole))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_losses_that_are_not_trained_are_ignored_even_nan(normalization):
    batch = build_batch(SOME)
    losses = torch.rand(batch["labels"].shape)
    expected, _ = call_loss(normalization, losses, batch)
    losses[batch["loss_mask"] == 0] = torch.nan
    losses.requires_grad_()
    found, _ = call_loss(normalization, losses, batch)
    found.backward()
    assert found == expected
    assert losses.grad[batch["loss_mask"] == 0].abs().sum() == 0


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_without_loss_tokens_the_loss_and_the_count_are_zero(normalization):
    batch = build_batch(NOTHING)
    losses = torch.rand(batch["labels"].shape, requires_grad=True)
    found, count = call_loss(normalization, losses, batch)
    found.backward()
    assert (found.item(), count.item(), losses.grad.abs().sum().item()) == (0, 0, 0)


def test_losses_in_half_precision_are_weighted_and_summed_in_float32():
    losses = torch.full((1, 3000), 1.0, dtype=torch.bfloat16)
    mask = torch.ones(1, 3000, dtype=torch.uint8)
    found, _ = turn_mean_loss(losses, mask, torch.full((1, 3000), 3000), torch.tensor([1]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1, rel=1e-5)


# From hidden states.


def draw_states(batch, dtype=torch.float64, seed=0, vocabulary=VOCABULARY):
    """Draw hidden states and an output matrix, with the same values in every dtype."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*batch["labels"].shape, HIDDEN, dtype=torch.float64, generator=random)
    weight = torch.randn(vocabulary, HIDDEN, dtype=torch.float64, generator=random) / 2
    return (
        hidden.bfloat16().to(dtype).requires_grad_(),
        weight.bfloat16().to(dtype).requires_grad_(),
    )


def compute_token_losses(hidden, weight, batch, label_alignment, softcap=None):
    """Return the loss of every label, from full logits."""
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if label_alignment == "aligned":  # the state before it predicts a label
        logits = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1)
    return functional.cross_entropy(logits.mT, batch["labels"], reduction="none")


def append_gradients(loss_and_count, *inputs):
    loss, count = loss_and_count
    counted = torch.as_tensor(count, dtype=torch.float64)
    return [loss.detach(), counted, *torch.autograd.grad(loss, inputs)]


def compute_relative_difference(found, expected):
    """Return the largest relative difference of all tensors."""
    return max(
        float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-300))
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("label_alignment", ALIGNMENTS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@given(sequences=sequences, chunk_rows=st.sampled_from([None, 1, 3]))
@settings(max_examples=8)
def test_loss_and_gradients_from_hidden_states_equal_those_of_full_logits(
    normalization, label_alignment, sequences, chunk_rows
):
    batch = build_batch(sequences, label_alignment)
    inputs = draw_states(batch)
    found = append_gradients(
        linear_turn_mean_loss(
            *inputs,
            batch,
            label_alignment=label_alignment,
            normalization=normalization,
            chunk_rows=chunk_rows,
        ),
        *inputs,
    )
    losses = compute_token_losses(*inputs, batch, label_alignment)
    loss, count = compute_by_definition(losses, sequences, normalization, label_alignment)
    expected = append_gradients((loss + 0 * losses.sum(), count), *inputs)
    assert compute_relative_difference(found, expected) <= 1e-10


@pytest.mark.parametrize("label_alignment", ALIGNMENTS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_weighted_loss_and_gradients_from_hidden_states_equal_those_of_full_logits(
    normalization, label_alignment
):
    batch, weights = add_weights(build_batch(SOME, label_alignment), SOME, label_alignment)
    inputs = draw_states(batch)
    options = {"label_alignment": label_alignment, "normalization": normalization}
    found = append_gradients(
        linear_turn_mean_loss(*inputs, batch, chunk_rows=3, **options), *inputs
    )
    losses = compute_token_losses(*inputs, batch, label_alignment)
    loss, count = compute_weighted_by_definition(
        losses, SOME, normalization, weights, label_alignment
    )
    expected = append_gradients((loss, count), *inputs)
    assert compute_relative_difference(found, expected) <= 1e-10


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_gradient_passes_gradcheck(softcap):
    batch = build_batch([[[(0, 2), (1, 3)]]])

    def mean(hidden, weight):
        loss, count = linear_turn_mean_loss(hidden, weight, batch, softcap=softcap, chunk_rows=2)
        return loss / count

    torch.autograd.gradcheck(mean, draw_states(batch))


@pytest.mark.parametrize("label_alignment", ALIGNMENTS)
def test_softcapped_logits_equal_their_formula(label_alignment):
    batch = build_batch(SOME, label_alignment)
    inputs = draw_states(batch)
    options = {"label_alignment": label_alignment, "softcap": 1.5}
    found = append_gradients(linear_turn_mean_loss(*inputs, batch, **options), *inputs)
    losses = compute_token_losses(*inputs, batch, **options)
    expected = append_gradients(call_loss("turn_mean", losses, batch), *inputs)
    assert compute_relative_difference(found, expected) <= 1e-10


LONG = [[[(5, 40), (3, 9)], [(7, 60)]], [[(4, 400)]], [[(2, 1), (2, 1), (2, 1)]]]


@pytest.mark.parametrize("chunk_rows", [None, 1, 7, 64])
@pytest.mark.parametrize("one_direction", [False, True])
def test_the_bfloat16_gradient_is_close_to_the_exact_one_in_all_chunk_sizes(
    chunk_rows, one_direction
):
    batch = build_batch(LONG)
    exact, half = draw_states(batch), draw_states(batch, torch.bfloat16)
    if one_direction:  # a sum that grows with every row, so that a bfloat16 sum would stagnate
        for hidden, _ in (exact, half):
            hidden.data.abs_()
    expected = append_gradients(linear_turn_mean_loss(*exact, batch), *exact)
    found = append_gradients(linear_turn_mean_loss(*half, batch, chunk_rows=chunk_rows), *half)
    assert [value.dtype for value in found[2:]] == [torch.bfloat16] * 2
    assert found[0].dtype == torch.float32
    # Gradients rounded once differ by about 3e-3; a sum over rows in bfloat16 by more than 1e-2.
    assert compute_relative_difference(found, expected) <= 8e-3


def test_the_gradient_of_an_almost_certain_token_is_not_lost_in_bfloat16():
    batch = build_batch([[[(0, 1)]]])
    hidden = torch.ones(*batch["labels"].shape, 1, dtype=torch.float64)
    weight = torch.zeros(VOCABULARY, 1, dtype=torch.float64)
    weight[batch["labels"][batch["loss_mask"] == 1]] = 16.0  # probability 1 - 7e-6
    exact = [value.clone().requires_grad_() for value in (hidden, weight)]
    half = [value.bfloat16().requires_grad_() for value in (hidden, weight)]
    expected = append_gradients(linear_turn_mean_loss(*exact, batch), *exact)
    found = append_gradients(linear_turn_mean_loss(*half, batch), *half)
    assert compute_relative_difference(found[2:], expected[2:]) <= 1e-2


def test_huge_logits_give_finite_losses_and_gradients():
    batch = build_batch(SOME)
    hidden, weight = (value.detach() * 1e4 for value in draw_states(batch, torch.float32))
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    found = append_gradients(linear_turn_mean_loss(*inputs, batch), *inputs)
    assert all(value.isfinite().all() for value in found)


def test_states_that_predict_no_loss_token_are_ignored_even_nan():
    batch = build_batch(SOME, "shifted")
    inputs = draw_states(batch)
    expected = append_gradients(
        linear_turn_mean_loss(*inputs, batch, label_alignment="shifted"), *inputs
    )
    with torch.no_grad():
        inputs[0][batch["loss_mask"] == 0] = torch.nan
    found = append_gradients(
        linear_turn_mean_loss(*inputs, batch, label_alignment="shifted"), *inputs
    )
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_label_of_minus_100_has_no_loss_even_if_its_mask_is_1():
    batch = build_batch(SOME)
    inputs = draw_states(batch)
    (position, *_) = batch["loss_mask"].nonzero()
    batch["labels"][tuple(position)] = -100
    found = append_gradients(linear_turn_mean_loss(*inputs, batch), *inputs)
    losses = compute_token_losses(*inputs, batch, "aligned")  # cross_entropy ignores it too
    expected = append_gradients(call_loss("turn_mean", losses, batch), *inputs)
    assert compute_relative_difference(found, expected) <= 1e-10


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_without_loss_tokens_hidden_states_and_matrix_get_zero_gradients(normalization):
    batch = build_batch(NOTHING)
    inputs = draw_states(batch)
    loss, count, *gradients = append_gradients(
        linear_turn_mean_loss(*inputs, batch, normalization=normalization), *inputs
    )
    assert (loss.item(), count.item()) == (0, 0)
    assert [value.shape for value in gradients] == [value.shape for value in inputs]
    assert all(value.abs().sum() == 0 for value in gradients)


class Allocations(TorchDispatchMode):
    """Records new tensors, without views: the size of the largest, and the peak of bytes."""

    largest = 0
    bytes = 0
    peak_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = {find_address(value) for value in find_tensors((args, kwargs))}
        for value in find_tensors(result):
            if find_address(value) not in known:
                self.largest = max(self.largest, value.numel())
                self.bytes += value.nbytes
                self.peak_bytes = max(self.peak_bytes, self.bytes)
                weakref.finalize(value, self.release, value.nbytes)
        return result

    def release(self, number):
        self.bytes -= number


def find_tensors(values):
    leaves = torch.utils._pytree.tree_leaves(values)
    return [value for value in leaves if isinstance(value, torch.Tensor)]


def find_address(tensor):
    return tensor.untyped_storage().data_ptr()


def record_allocations(
    rows,
    trained,
    vocabulary,
    chunk_rows,
    hidden_size=HIDDEN,
    dtype=torch.float32,
    hidden_needs_grad=True,
    weight_needs_grad=True,
):
    """Compute the loss of rows, every `trained`-th with loss; return allocations and results."""
    hidden = torch.randn(rows, hidden_size).to(dtype)
    weight = torch.randn(vocabulary, hidden_size).to(dtype)
    labels = torch.randint(vocabulary, (rows,))
    token_weights = (torch.arange(rows) % trained == 0).float()
    with Allocations() as recorded:
        results = linear_loss._loss_and_gradients(
            *(hidden, weight, labels, token_weights, None, "torch", chunk_rows, dtype),
            *(hidden_needs_grad, weight_needs_grad),
        )
    return recorded, results


def find_largest_tensor(*arguments, **options):
    return record_allocations(*arguments, **options)[0].largest


def test_no_tensor_is_larger_than_some_rows_of_logits_or_the_matrix():
    vocabulary = 500
    assert find_largest_tensor(640, 1, vocabulary, chunk_rows=32) == 32 * vocabulary
    assert find_largest_tensor(640, 40, vocabulary, chunk_rows=640) == 16 * vocabulary
    matrix = vocabulary * HIDDEN
    assert find_largest_tensor(640, 1, vocabulary, chunk_rows=4) == max(matrix, 640 * HIDDEN)


def test_no_memory_is_used_for_gradients_that_are_not_needed():
    few = {"rows": 64, "trained": 1, "vocabulary": 500, "chunk_rows": 8}
    quarter = 2 * 500  # the logits of a slice, which are enough for evaluation
    assert find_largest_tensor(**few, hidden_needs_grad=False, weight_needs_grad=False) == quarter
    assert find_largest_tensor(**few, weight_needs_grad=False) == 8 * 500
    assert find_largest_tensor(**few) == 500 * HIDDEN


@pytest.mark.parametrize("trained", [1, 3, 8])
def test_memory_depends_on_the_matrix_and_not_on_the_number_of_tokens(trained, monkeypatch):
    monkeypatch.setattr(linear_loss, "_MIN_ROWS", 1)  # the sizes here are a tenth of real ones
    vocabulary, hidden_size = 6000, 128
    recorded, (_, *gradients) = record_allocations(
        1000, trained, vocabulary, None, hidden_size, dtype=torch.bfloat16
    )
    without_gradients = recorded.peak_bytes - sum(value.nbytes for value in gradients)
    assert without_gradients <= 1.25 * vocabulary * hidden_size * 4


def test_without_grad_the_loss_is_the_same_and_has_no_graph():
    batch = build_batch(SOME)
    inputs = draw_states(batch)
    expected, _ = linear_turn_mean_loss(*inputs, batch)
    with torch.no_grad():
        found, _ = linear_turn_mean_loss(*inputs, batch)
    assert found == expected
    assert expected.requires_grad
    assert not found.requires_grad


@pytest.mark.parametrize("frozen", [0, 1])
def test_freezing_the_matrix_or_the_states_does_not_change_the_other_gradient(frozen):
    batch = build_batch(SOME)
    inputs = draw_states(batch)
    _, _, *gradients = append_gradients(linear_turn_mean_loss(*inputs, batch), *inputs)
    inputs[frozen].requires_grad_(False)
    linear_turn_mean_loss(*inputs, batch)[0].backward()
    assert inputs[frozen].grad is None
    assert torch.equal(inputs[1 - frozen].grad, gradients[1 - frozen])


def test_backward_scales_and_can_be_repeated():
    batch = build_batch(SOME)
    hidden, weight = draw_states(batch)
    loss, _ = linear_turn_mean_loss(hidden, weight, batch)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(loss / 8, (hidden, weight))
    assert all(torch.equal(a, 8 * b) for a, b in zip(first, again, strict=True))


def test_a_second_derivative_is_refused_with_a_clear_message():
    batch = build_batch(SOME)
    hidden, weight = draw_states(batch)
    loss, _ = linear_turn_mean_loss(hidden, weight, batch)
    with pytest.raises(RuntimeError, match="no second derivative: call backward without create"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_compiled_step_is_one_graph_with_the_same_results(normalization):
    def step(hidden, weight, batch):
        return linear_turn_mean_loss(2 * hidden, weight, batch, normalization=normalization)

    torch.compiler.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for sequences in (SOME, NOTHING):  # with some trained rows, and with none
        batch = build_batch(sequences)
        inputs = draw_states(batch)
        expected = append_gradients(step(*inputs, batch), *inputs)
        found = append_gradients(compiled(*inputs, batch), *inputs)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("compiled", [False, True])
def test_under_autocast_products_are_bfloat16_and_gradients_keep_the_dtype_of_inputs(compiled):
    batch = build_batch(LONG)
    exact, inputs = draw_states(batch), draw_states(batch, torch.float32)
    expected = append_gradients(linear_turn_mean_loss(*exact, batch), *exact)
    torch.compiler.reset()
    step = linear_turn_mean_loss
    if compiled:
        step = torch.compile(step, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss_and_count = step(*inputs, batch)
    found = append_gradients(loss_and_count, *inputs)
    assert {value.dtype for value in (found[0], *found[2:])} == {torch.float32}
    assert 1e-4 < compute_relative_difference(found[2:], expected[2:]) <= 8e-3  # bfloat16


def test_the_operator_passes_opcheck_of_torch():
    batch = build_batch(SOME)
    hidden, weight = draw_states(batch, torch.float32)
    rows = hidden.detach().flatten(0, 1).requires_grad_()
    labels, weights = batch["labels"].flatten(), batch["loss_mask"].flatten().float()
    torch.library.opcheck(
        torch.ops.mtpack.weighted_linear_loss.default,
        (rows, weight, labels, weights, None, "torch", 5, torch.float32, True, True),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label_alignment": "left"},
            "label_alignment: 'left' is unknown; use one of aligned, ",
        ),
        (
            {"normalization": "mean"},
            "normalization: 'mean' is unknown; use one of turn_mean",
        ),
        ({"kernel": "fast"}, "kernel: 'fast' is unknown; use one of auto, torch, liger"),
        ({"chunk_rows": 0}, "chunk_rows: 0; use at least 1, or None"),
        ({"weight": torch.empty(0)}, "gather a matrix that is sharded"),
        ({"weight": torch.empty(5, HIDDEN + 1)}, f"hidden states of size {HIDDEN}"),
        ({"weight": torch.empty(5, HIDDEN).half()}, "cast one, or use torch.autocast"),
        ({"hidden": torch.empty(2, 3, HIDDEN)}, "one label for each state"),
    ],
)
def test_wrong_arguments_are_refused_with_a_message_of_one_line(changes, message):
    batch = build_batch(SOME)
    hidden, weight = draw_states(batch)
    arguments = {"hidden": hidden, "weight": weight, "batch": batch, **changes}
    with pytest.raises(ValueError, match=message) as caught:
        linear_turn_mean_loss(**arguments)
    assert "\n" not in str(caught.value)


def test_the_kernel_in_use_is_logged_once(caplog):
    linear_loss._log_kernel.cache_clear()
    batch = build_batch(SOME)
    with caplog.at_level(logging.INFO, logger="mtpack"):
        for _ in range(2):
            linear_turn_mean_loss(*draw_states(batch), batch)
    assert [record.getMessage() for record in caplog.records] == [
        "losses from hidden states are computed by the kernel 'torch'"
    ]


def test_a_kernel_that_needs_cuda_is_refused_on_the_cpu():
    assert available_kernels()[0] == "torch"
    batch = build_batch(SOME)
    with pytest.raises(RuntimeError, match="'liger' is not available here; available: torch"):
        linear_turn_mean_loss(*draw_states(batch), batch, kernel="liger")


LIGER = """
import torch
from mtpack import linear_loss
inputs, matrix, labels = torch.randn(9, 12), torch.randn(61, 12), torch.randint(61, (9,))
results = []
for kernel in linear_loss._KERNELS.values():
    grad_logits = torch.empty(9, 61)
    results.append((kernel(inputs, matrix, labels, None, grad_logits), grad_logits))
    results[-1] += (kernel(inputs, matrix, labels, None, None),)
for a, b in zip(*results):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
"""


def test_liger_computes_the_same_losses_and_gradients_of_logits():
    """Runs in Triton's interpreter, which needs no GPU."""
    pytest.importorskip("liger_kernel", reason="needs liger-kernel and triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", LIGER], env=environment, check=True)
