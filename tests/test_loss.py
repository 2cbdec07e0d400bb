"""The losses do what their names say, from token losses and from hidden states."""

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


# A sequence is a list of documents, a document a list of turns, a turn (given tokens before it,
# loss tokens); one given token more opens each document, since a first token has no predictor.
turn = st.tuples(st.integers(0, 4), st.integers(1, 6))
document = st.lists(turn, max_size=3)
sequences = st.lists(st.lists(document, min_size=1, max_size=3), min_size=1, max_size=4)
SOME = [[[(0, 1), (2, 6)], [(3, 2)]], [[]], [[(1, 3)], [], [(0, 4), (0, 4), (1, 1)]]]
NOTHING = [[[]], [[], []]]


def places_of(sequence):
    """For every document, its turns' places; where documents start; where the last one ends."""
    documents, starts, place = [], [], 0
    for turns in sequence:
        starts.append(place)
        place += 1
        documents.append([])
        for given_tokens, length in turns:
            place += given_tokens
            documents[-1].append(list(range(place, place + length)))
            place += length
    return documents, starts, place


def batch_of(sequences, label_alignment="aligned", seed=0):
    """The columns of sequences, written down one place after the other."""
    seq_len = 2 + max(places_of(sequence)[2] for sequence in sequences)
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
        documents, starts, end = places_of(sequence)
        for start, stop in zip([*starts, end], [*starts[1:], end, seq_len], strict=True):
            batch["position_ids"][row, start:stop] = torch.arange(stop - start)
        batch["turn_num"][row] = sum(map(len, documents))
        for places in (places for turns in documents for places in turns):
            for place in places:
                batch["labels"][row, place - shift] = ids[row, place]
                batch["loss_mask"][row, place - shift] = 1
                batch["loss_token_num"][row, place - shift] = len(places)
    return batch


def by_definition(losses, sequences, normalization, label_alignment="aligned"):
    """Sum and count, turn by turn; losses[row, place] where the label of place is."""
    shift = 1 if label_alignment == "shifted" else 0
    total, count = losses.new_zeros(()), 0
    for row, sequence in enumerate(sequences):
        for turns in places_of(sequence)[0]:
            own = [torch.stack([losses[row, place - shift] for place in turn]) for turn in turns]
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


def token_loss(normalization, losses, batch):
    """Call the function of that name."""
    mask, numbers = batch["loss_mask"], batch["loss_token_num"]
    return {
        "turn_mean": lambda: turn_mean_loss(losses, mask, numbers, batch["turn_num"]),
        "token_mean": lambda: token_mean_loss(losses, mask),
        "dialogue_mean": lambda: dialogue_mean_loss(losses, mask, batch["position_ids"]),
        "square_root": lambda: square_root_loss(losses, mask, numbers),
    }[normalization]()


@pytest.mark.parametrize("label_alignment", ALIGNMENTS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@given(sequences=sequences)
@settings(max_examples=12)
def test_each_normalization_is_what_its_definition_says(normalization, label_alignment, sequences):
    batch = batch_of(sequences, label_alignment)
    losses = torch.rand(batch["labels"].shape, dtype=torch.float64)
    found, count = token_loss(normalization, losses, batch)
    expected, expected_count = by_definition(losses, sequences, normalization, label_alignment)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert count.item() == pytest.approx(expected_count, rel=1e-12)
    if normalization != "square_root":
        assert count.dtype == torch.int64


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_micro_batches_add_up_to_the_whole_batch(normalization):
    batch = batch_of(SOME)
    losses = torch.rand(batch["labels"].shape, dtype=torch.float64)
    whole = torch.stack(token_loss(normalization, losses, batch))
    parts = [
        torch.stack(
            token_loss(normalization, losses[[row]], {key: batch[key][[row]] for key in batch})
        )
        for row in range(len(SOME))
    ]
    assert torch.allclose(sum(parts), whole, rtol=1e-14)


def test_every_row_starts_a_document_even_where_its_first_place_was_cut_off():
    batch = batch_of([[[(1, 4)]], [[(2, 2)], [(0, 1)]]])
    losses = torch.rand(batch["labels"].shape, dtype=torch.float64)
    cut = [values[:, 1:] for values in (losses, batch["loss_mask"], batch["position_ids"])]
    whole = dialogue_mean_loss(losses, batch["loss_mask"], batch["position_ids"])
    assert torch.allclose(torch.stack(dialogue_mean_loss(*cut)), torch.stack(whole))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_what_is_not_trained_may_be_anything(normalization):
    batch = batch_of(SOME)
    losses = torch.rand(batch["labels"].shape)
    expected, _ = token_loss(normalization, losses, batch)
    losses[batch["loss_mask"] == 0] = torch.nan
    losses.requires_grad_()
    found, _ = token_loss(normalization, losses, batch)
    found.backward()
    assert found == expected
    assert losses.grad[batch["loss_mask"] == 0].abs().sum() == 0


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_nothing_trained_is_a_loss_of_zero_and_a_count_of_zero(normalization):
    batch = batch_of(NOTHING)
    losses = torch.rand(batch["labels"].shape, requires_grad=True)
    found, count = token_loss(normalization, losses, batch)
    found.backward()
    assert (found.item(), count.item(), losses.grad.abs().sum().item()) == (0, 0, 0)


def test_losses_in_half_precision_are_weighed_and_summed_in_float32():
    losses = torch.full((1, 3000), 1.0, dtype=torch.bfloat16)
    mask = torch.ones(1, 3000, dtype=torch.uint8)
    found, _ = turn_mean_loss(losses, mask, torch.full((1, 3000), 3000), torch.tensor([1]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1, rel=1e-5)


# From hidden states.


def states(batch, dtype=torch.float64, seed=0, vocabulary=VOCABULARY):
    """Random hidden states and an output matrix, the same values in every dtype."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*batch["labels"].shape, HIDDEN, dtype=torch.float64, generator=random)
    weight = torch.randn(vocabulary, HIDDEN, dtype=torch.float64, generator=random) / 2
    return (
        hidden.bfloat16().to(dtype).requires_grad_(),
        weight.bfloat16().to(dtype).requires_grad_(),
    )


def token_losses(hidden, weight, batch, label_alignment, softcap=None):
    """What stands in the place of every label, from full logits."""
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if label_alignment == "aligned":  # the state before it predicts a label
        logits = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1)
    return functional.cross_entropy(logits.mT, batch["labels"], reduction="none")


def with_gradients(loss_and_count, *inputs):
    loss, count = loss_and_count
    counted = torch.as_tensor(count, dtype=torch.float64)
    return [loss.detach(), counted, *torch.autograd.grad(loss, inputs)]


def relative_difference(found, expected):
    """The largest over all tensors."""
    return max(
        float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-300))
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("label_alignment", ALIGNMENTS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@given(sequences=sequences, chunk_rows=st.sampled_from([None, 1, 3]))
@settings(max_examples=8)
def test_loss_and_gradients_are_those_of_full_logits_and_the_definition(
    normalization, label_alignment, sequences, chunk_rows
):
    batch = batch_of(sequences, label_alignment)
    inputs = states(batch)
    found = with_gradients(
        linear_turn_mean_loss(
            *inputs,
            batch,
            label_alignment=label_alignment,
            normalization=normalization,
            chunk_rows=chunk_rows,
        ),
        *inputs,
    )
    losses = token_losses(*inputs, batch, label_alignment)
    loss, count = by_definition(losses, sequences, normalization, label_alignment)
    expected = with_gradients((loss + 0 * losses.sum(), count), *inputs)
    assert relative_difference(found, expected) <= 1e-10


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_gradient_is_that_of_the_loss(softcap):
    batch = batch_of([[[(0, 2), (1, 3)]]])

    def mean(hidden, weight):
        loss, count = linear_turn_mean_loss(hidden, weight, batch, softcap=softcap, chunk_rows=2)
        return loss / count

    torch.autograd.gradcheck(mean, states(batch))


@pytest.mark.parametrize("label_alignment", ALIGNMENTS)
def test_capped_logits_are_those_of_the_formula(label_alignment):
    batch = batch_of(SOME, label_alignment)
    inputs = states(batch)
    options = {"label_alignment": label_alignment, "softcap": 1.5}
    found = with_gradients(linear_turn_mean_loss(*inputs, batch, **options), *inputs)
    losses = token_losses(*inputs, batch, **options)
    expected = with_gradients(token_loss("turn_mean", losses, batch), *inputs)
    assert relative_difference(found, expected) <= 1e-10


LONG = [[[(5, 40), (3, 9)], [(7, 60)]], [[(4, 400)]], [[(2, 1), (2, 1), (2, 1)]]]


@pytest.mark.parametrize("chunk_rows", [None, 1, 7, 64])
@pytest.mark.parametrize("one_direction", [False, True])
def test_bfloat16_is_near_the_exact_gradient_however_rows_are_grouped(chunk_rows, one_direction):
    batch = batch_of(LONG)
    exact, half = states(batch), states(batch, torch.bfloat16)
    if one_direction:  # gradients that grow with every row, so that a coarse sum gets stuck
        for hidden, _ in (exact, half):
            hidden.data.abs_()
    expected = with_gradients(linear_turn_mean_loss(*exact, batch), *exact)
    found = with_gradients(linear_turn_mean_loss(*half, batch, chunk_rows=chunk_rows), *half)
    assert [value.dtype for value in found[2:]] == [torch.bfloat16] * 2
    assert found[0].dtype == torch.float32
    # Rounding gradients once gives about 3e-3; a sum over rows in bfloat16 more than 1e-2.
    assert relative_difference(found, expected) <= 8e-3


def test_the_gradient_of_a_token_that_is_almost_certain_survives_bfloat16():
    batch = batch_of([[[(0, 1)]]])
    hidden = torch.ones(*batch["labels"].shape, 1, dtype=torch.float64)
    weight = torch.zeros(VOCABULARY, 1, dtype=torch.float64)
    weight[batch["labels"][batch["loss_mask"] == 1]] = 16.0  # probability 1 - 7e-6
    exact = [value.clone().requires_grad_() for value in (hidden, weight)]
    half = [value.bfloat16().requires_grad_() for value in (hidden, weight)]
    expected = with_gradients(linear_turn_mean_loss(*exact, batch), *exact)
    found = with_gradients(linear_turn_mean_loss(*half, batch), *half)
    assert relative_difference(found[2:], expected[2:]) <= 1e-2


def test_huge_logits_give_finite_losses_and_gradients():
    batch = batch_of(SOME)
    hidden, weight = (value.detach() * 1e4 for value in states(batch, torch.float32))
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    found = with_gradients(linear_turn_mean_loss(*inputs, batch), *inputs)
    assert all(value.isfinite().all() for value in found)


def test_states_that_predict_nothing_trained_may_be_anything():
    batch = batch_of(SOME, "shifted")
    inputs = states(batch)
    expected = with_gradients(
        linear_turn_mean_loss(*inputs, batch, label_alignment="shifted"), *inputs
    )
    with torch.no_grad():
        inputs[0][batch["loss_mask"] == 0] = torch.nan
    found = with_gradients(
        linear_turn_mean_loss(*inputs, batch, label_alignment="shifted"), *inputs
    )
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_label_of_minus_100_has_no_loss_whatever_its_mask_says():
    batch = batch_of(SOME)
    inputs = states(batch)
    (place, *_) = batch["loss_mask"].nonzero()
    batch["labels"][tuple(place)] = -100
    found = with_gradients(linear_turn_mean_loss(*inputs, batch), *inputs)
    losses = token_losses(*inputs, batch, "aligned")  # cross_entropy ignores it too
    expected = with_gradients(token_loss("turn_mean", losses, batch), *inputs)
    assert relative_difference(found, expected) <= 1e-10


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_nothing_trained_still_reaches_hidden_states_and_matrix(normalization):
    batch = batch_of(NOTHING)
    inputs = states(batch)
    loss, count, *gradients = with_gradients(
        linear_turn_mean_loss(*inputs, batch, normalization=normalization), *inputs
    )
    assert (loss.item(), count.item()) == (0, 0)
    assert [value.shape for value in gradients] == [value.shape for value in inputs]
    assert all(value.abs().sum() == 0 for value in gradients)


class Allocations(TorchDispatchMode):
    """Notes what operations make, views left out: the largest tensor, the most bytes at a time."""

    largest = 0
    bytes = 0
    peak_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        known = {place_in_memory(value) for value in tensors_of((args, kwargs))}
        for value in tensors_of(given):
            if place_in_memory(value) not in known:
                self.largest = max(self.largest, value.numel())
                self.bytes += value.nbytes
                self.peak_bytes = max(self.peak_bytes, self.bytes)
                weakref.finalize(value, self.release, value.nbytes)
        return given

    def release(self, number):
        self.bytes -= number


def tensors_of(values):
    leaves = torch.utils._pytree.tree_leaves(values)
    return [value for value in leaves if isinstance(value, torch.Tensor)]


def place_in_memory(tensor):
    return tensor.untyped_storage().data_ptr()


def allocations(
    rows,
    trained,
    vocabulary,
    chunk_rows,
    hidden_size=HIDDEN,
    dtype=torch.float32,
    hidden_needs_grad=True,
    weight_needs_grad=True,
):
    """Of what is computed for so many rows, every n-th of them trained; and what it gives."""
    hidden = torch.randn(rows, hidden_size).to(dtype)
    weight = torch.randn(vocabulary, hidden_size).to(dtype)
    labels = torch.randint(vocabulary, (rows,))
    token_weights = (torch.arange(rows) % trained == 0).float()
    with Allocations() as made:
        given = linear_loss._loss_and_gradients(
            *(hidden, weight, labels, token_weights, None, "torch", chunk_rows, dtype),
            *(hidden_needs_grad, weight_needs_grad),
        )
    return made, given


def largest_tensor(*arguments, **options):
    return allocations(*arguments, **options)[0].largest


def test_no_tensor_is_larger_than_some_rows_of_logits_or_the_matrix():
    vocabulary = 500
    assert largest_tensor(640, 1, vocabulary, chunk_rows=32) == 32 * vocabulary
    assert largest_tensor(640, 40, vocabulary, chunk_rows=640) == 16 * vocabulary
    matrix = vocabulary * HIDDEN
    assert largest_tensor(640, 1, vocabulary, chunk_rows=4) == max(matrix, 640 * HIDDEN)


def test_what_needs_no_gradient_gets_none():
    few = {"rows": 64, "trained": 1, "vocabulary": 500, "chunk_rows": 8}
    quarter = 2 * 500  # the logits of a slice: all that evaluation takes
    assert largest_tensor(**few, hidden_needs_grad=False, weight_needs_grad=False) == quarter
    assert largest_tensor(**few, weight_needs_grad=False) == 8 * 500
    assert largest_tensor(**few) == 500 * HIDDEN


@pytest.mark.parametrize("trained", [1, 3, 8])
def test_memory_is_bounded_by_the_matrix_and_not_by_the_tokens(trained, monkeypatch):
    monkeypatch.setattr(linear_loss, "_MIN_ROWS", 1)  # the sizes here are a tenth of real ones
    vocabulary, hidden_size = 6000, 128
    made, (_, *gradients) = allocations(
        1000, trained, vocabulary, None, hidden_size, dtype=torch.bfloat16
    )
    beside = made.peak_bytes - sum(value.nbytes for value in gradients)
    assert beside <= 1.25 * vocabulary * hidden_size * 4


def test_evaluation_gives_the_same_loss_and_no_graph():
    batch = batch_of(SOME)
    inputs = states(batch)
    expected, _ = linear_turn_mean_loss(*inputs, batch)
    with torch.no_grad():
        found, _ = linear_turn_mean_loss(*inputs, batch)
    assert found == expected
    assert expected.requires_grad
    assert not found.requires_grad


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_matrix_or_frozen_states_leave_the_other_gradient_as_it_is(frozen):
    batch = batch_of(SOME)
    inputs = states(batch)
    _, _, *gradients = with_gradients(linear_turn_mean_loss(*inputs, batch), *inputs)
    inputs[frozen].requires_grad_(False)
    linear_turn_mean_loss(*inputs, batch)[0].backward()
    assert inputs[frozen].grad is None
    assert torch.equal(inputs[1 - frozen].grad, gradients[1 - frozen])


def test_backward_scales_and_can_be_repeated():
    batch = batch_of(SOME)
    hidden, weight = states(batch)
    loss, _ = linear_turn_mean_loss(hidden, weight, batch)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(loss / 8, (hidden, weight))
    assert all(torch.equal(a, 8 * b) for a, b in zip(first, again, strict=True))


def test_a_second_derivative_is_refused_in_a_sentence():
    batch = batch_of(SOME)
    hidden, weight = states(batch)
    loss, _ = linear_turn_mean_loss(hidden, weight, batch)
    with pytest.raises(RuntimeError, match="no second derivative: backward without create_graph"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_compiled_step_is_one_graph_and_gives_the_same(normalization):
    def step(hidden, weight, batch):
        return linear_turn_mean_loss(2 * hidden, weight, batch, normalization=normalization)

    torch.compiler.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for sequences in (SOME, NOTHING):  # however many rows are trained
        batch = batch_of(sequences)
        inputs = states(batch)
        expected = with_gradients(step(*inputs, batch), *inputs)
        found = with_gradients(compiled(*inputs, batch), *inputs)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_computes_in_its_dtype_and_gives_gradients_in_their_own(compiled):
    batch = batch_of(LONG)
    exact, inputs = states(batch), states(batch, torch.float32)
    expected = with_gradients(linear_turn_mean_loss(*exact, batch), *exact)
    torch.compiler.reset()
    step = linear_turn_mean_loss
    if compiled:
        step = torch.compile(step, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss_and_count = step(*inputs, batch)
    found = with_gradients(loss_and_count, *inputs)
    assert {value.dtype for value in (found[0], *found[2:])} == {torch.float32}
    assert 1e-4 < relative_difference(found[2:], expected[2:]) <= 8e-3  # it was bfloat16


def test_the_operator_keeps_the_rules_of_torch():
    batch = batch_of(SOME)
    hidden, weight = states(batch, torch.float32)
    rows = hidden.detach().flatten(0, 1).requires_grad_()
    labels, weights = batch["labels"].flatten(), batch["loss_mask"].flatten().float()
    torch.library.opcheck(
        torch.ops.mtpack.weighted_linear_loss.default,
        (rows, weight, labels, weights, None, "torch", 5, torch.float32, True, True),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_alignment": "left"}, "label_alignment: 'left'; it is one of aligned, shifted"),
        ({"normalization": "mean"}, "normalization: 'mean'; it is one of turn_mean, token_mean"),
        ({"kernel": "fast"}, "kernel: 'fast'; it is one of auto, torch, liger"),
        ({"chunk_rows": 0}, "chunk_rows: 0; at least one row, or None"),
        ({"weight": torch.empty(0)}, "gathered where it is sharded"),
        ({"weight": torch.empty(5, HIDDEN + 1)}, f"hidden states of {HIDDEN}"),
        ({"weight": torch.empty(5, HIDDEN).half()}, "cast one, or use torch.autocast"),
        ({"hidden": torch.empty(2, 3, HIDDEN)}, "each state has one label"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(changes, message):
    batch = batch_of(SOME)
    hidden, weight = states(batch)
    arguments = {"hidden": hidden, "weight": weight, "batch": batch, **changes}
    with pytest.raises(ValueError, match=message) as caught:
        linear_turn_mean_loss(**arguments)
    assert "\n" not in str(caught.value)


def test_the_kernel_in_use_is_named_once_in_the_log(caplog):
    linear_loss._tell.cache_clear()
    batch = batch_of(SOME)
    with caplog.at_level(logging.INFO, logger="mtpack"):
        for _ in range(2):
            linear_turn_mean_loss(*states(batch), batch)
    assert [record.getMessage() for record in caplog.records] == [
        "losses from hidden states are made by the kernel 'torch'"
    ]


def test_a_kernel_that_needs_cuda_is_refused_on_the_cpu():
    assert available_kernels()[0] == "torch"
    batch = batch_of(SOME)
    with pytest.raises(RuntimeError, match="'liger' is not available here; torch is"):
        linear_turn_mean_loss(*states(batch), batch, kernel="liger")


LIGER = """
import torch
from mtpack import linear_loss
inputs, matrix, labels = torch.randn(9, 12), torch.randn(61, 12), torch.randint(61, (9,))
made = []
for kernel in linear_loss._KERNELS.values():
    slopes = torch.empty(9, 61)
    made.append((kernel(inputs, matrix, labels, None, slopes), slopes))
    made[-1] += (kernel(inputs, matrix, labels, None, None),)
for a, b in zip(*made):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
"""


def test_liger_makes_the_same_losses_and_slopes():
    """In Triton's interpreter, which needs no GPU."""
    pytest.importorskip("liger_kernel", reason="needs liger-kernel and triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", LIGER], env=environment, check=True)
