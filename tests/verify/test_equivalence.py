"""`verify`, equivalence: packed sequences equal one sample per turn, and wrong data fails."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mtpack.shards.dataset import Row
from tests.support.builders import (
    hand_made_sequences,
    open_sequences,
    random_sequences,
    weigh_turns,
)
from tests.support.strategies import Document, Turn

torch = pytest.importorskip("torch")

from mtpack.verify import causal_model, equivalence, steps  # noqa: E402
from mtpack.verify.causal_model import fold_ids, make_built_in_model  # noqa: E402
from mtpack.verify.check import Check  # noqa: E402
from mtpack.verify.equivalence import Losses  # noqa: E402
from mtpack.verify.model import Transformer  # noqa: E402
from mtpack.verify.structure import check_structure  # noqa: E402

ALIGNMENTS = ("aligned", "shifted")


pytestmark = pytest.mark.usefixtures("one_thread")


def rows_of(
    tmp_path,
    sequences: list[list[Document]],
    alignment: str = "aligned",
    multiple: int = 1,
    seq_len: int = 32,
) -> list[Row]:
    return list(open_sequences(tmp_path, sequences, alignment, multiple, seq_len))


def compare(rows: list[Row], alignment: str, dtype=torch.float64) -> tuple[Check, Losses]:
    model = make_built_in_model("cpu", dtype)
    return equivalence.check_equivalence(model, fold_ids(rows), alignment)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("multiple", [1, 8])
def test_packed_equals_one_sample_per_turn(tmp_path, alignment, multiple):
    check, _ = compare(rows_of(tmp_path, hand_made_sequences(), alignment, multiple), alignment)
    assert list(check.parts) == ["token_losses", "hidden_states"]
    assert check.value <= check.tolerance <= 1e-10


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_packed_equals_one_sample_per_turn_in_long_documents(tmp_path, alignment):
    sequences = random_sequences(0, 700, [[150, 300, 249], [600, 90]])
    shards = open_sequences(tmp_path, sequences, alignment, seq_len=700)
    assert check_structure(shards).violation is None
    assert compare(list(shards), alignment)[0].ok


@pytest.mark.parametrize(("dtype", "ceiling"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_packed_equals_one_sample_per_turn_in_lower_precision(tmp_path, dtype, ceiling):
    check, _ = compare(rows_of(tmp_path, hand_made_sequences()), "aligned", dtype)
    assert check.value <= check.tolerance <= ceiling
    assert check.value > 1e-9


def test_both_alignments_and_any_padding_have_the_same_loss(tmp_path):
    losses = []
    for alignment in ALIGNMENTS:
        for multiple in (1, 8):
            folder = tmp_path / f"{alignment}-{multiple}"
            folder.mkdir()
            rows = rows_of(folder, hand_made_sequences(), alignment, multiple)
            losses.append(compare(rows, alignment)[1]["turn_mean"])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-13)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_weighted_turns_equal_one_weighted_sample_for_each(tmp_path, alignment):
    weighted = weigh_turns(hand_made_sequences(), 512, 3072, 1)
    rows = rows_of(tmp_path, weighted, alignment)
    check, losses = compare(rows, alignment)
    assert check.ok
    assert check.value <= 1e-10
    plain = [{name: row[name] for name in row.keys() - {"turn_weights"}} for row in rows]
    assert losses["turn_mean"] != pytest.approx(compare(plain, alignment)[1]["turn_mean"], rel=1e-3)


def test_weights_of_the_wrong_turns_fail(tmp_path, monkeypatch):
    collate_rows = steps.collate_rows

    def misplaced(rows, model):
        batch = collate_rows(rows, model)
        return {**batch, "turn_weight": batch["turn_weight"].roll(3)}

    rows = rows_of(tmp_path, weigh_turns(hand_made_sequences(), 512, 3072))
    assert compare(rows, "aligned")[0].ok
    monkeypatch.setattr(equivalence, "collate_rows", misplaced)
    assert_fails(compare(rows, "aligned")[0])


def assert_fails(check: Check) -> None:
    for part in check.parts.values():
        assert not part.ok
        assert part.value > 1e-3


def test_the_token_mean_fails(tmp_path):
    documents = [Document(0, [*range(9)], [Turn(1, 0, [(1, 2)]), Turn(3, 0, [(4, 9)])])]
    (row,) = rows_of(tmp_path, [documents])
    # Turns of 1 and 5 tokens: if every count is 3, the weights still sum to the number of turns.
    row = {**row, "loss_token_num": np.where(row["loss_mask"] == 1, 3, 1)}
    assert (row["loss_mask"] / row["loss_token_num"]).sum() == pytest.approx(row["turn_num"])
    assert_fails(compare([row], "aligned")[0])


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_one_wrong_count_fails(tmp_path, alignment):
    rows = rows_of(tmp_path, hand_made_sequences(), alignment)
    numbers = rows[1]["loss_token_num"].copy()
    numbers[rows[1]["turn_starts"][1]] += 1
    rows[1] = {**rows[1], "loss_token_num": numbers}
    assert_fails(compare(rows, alignment)[0])


def test_a_wrong_number_of_turns_fails(tmp_path, monkeypatch):
    collate_rows = steps.collate_rows

    def miscounted(rows, model):
        batch = collate_rows(rows, model)
        return {**batch, "turn_num": batch["turn_num"] + 1}

    monkeypatch.setattr(equivalence, "collate_rows", miscounted)
    assert_fails(compare(rows_of(tmp_path, hand_made_sequences()), "aligned")[0])


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_attention_across_documents_fails(tmp_path, alignment, monkeypatch):
    monkeypatch.setattr(
        causal_model,
        "read_document_ids",
        lambda batch: torch.zeros(batch["input_ids"].numel(), dtype=torch.int64),
    )
    assert_fails(compare(rows_of(tmp_path, hand_made_sequences(), alignment), alignment)[0])


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_labels_shifted_by_one_position_fail(tmp_path, alignment):
    rows = rows_of(tmp_path, hand_made_sequences(), alignment)
    for number, row in enumerate(rows):
        trained = row["loss_mask"] == 1
        labels = row["labels"].copy()
        labels[trained] = np.roll(row["input_ids"], 0 if alignment == "shifted" else -1)[trained]
        rows[number] = {**row, "labels": labels}
    assert_fails(compare(rows, alignment)[0])


def test_shifting_labels_twice_fails(tmp_path):
    rows = rows_of(tmp_path, hand_made_sequences(), "shifted")
    assert_fails(compare(rows, "aligned")[0])


def test_a_wrong_loss_from_hidden_states_fails(tmp_path, monkeypatch):
    def token_mean(states, weight, batch, *, label_alignment):
        total, turns = equivalence_loss(
            states, weight, batch, label_alignment=label_alignment, normalization="token_mean"
        )
        return total / turns, batch["turn_num"].sum()

    equivalence_loss = equivalence.linear_turn_mean_loss
    monkeypatch.setattr(equivalence, "linear_turn_mean_loss", token_mean)
    check, _ = compare(rows_of(tmp_path, hand_made_sequences()), "aligned")
    assert check.parts["token_losses"].ok
    assert not check.parts["hidden_states"].ok
    assert not check.ok


def test_the_three_losses_equal_those_computed_by_hand(tmp_path, monkeypatch):
    documents = [
        Document(0, [1, 2, 3, 4, 5], [Turn(1, 0, [(1, 2)]), Turn(3, 0, [(3, 5)])]),
        Document(1, [6, 7], [Turn(1, 0, [(1, 2)])]),
        Document(0, [8, 9, 10], [Turn(5, 0, [(1, 3)])]),
    ]
    token_losses = torch.zeros(1, 32, dtype=torch.float64)
    token_losses[0, [1, 3, 4, 6, 8, 9]] = torch.tensor([1, 2, 4, 8, 16, 32]).double()
    monkeypatch.setattr(
        equivalence,
        "compute_token_losses",
        lambda model, batch, label_alignment: token_losses + 0 * model.module.output.weight.sum(),
    )
    _, losses = compare(rows_of(tmp_path, [documents]), "aligned")
    assert losses["turn_mean"] == pytest.approx((1 + 3 + 8 + 24) / 4)
    assert losses["token_mean"] == pytest.approx(63 / 6)
    assert losses["dialogue_mean"] == pytest.approx(((1 + 2 + 4) / 3 + 8 + (16 + 32) / 2) / 3)


def test_the_model_attends_neither_to_the_future_nor_to_other_documents():
    model = Transformer(50, seed=0).double()
    documents = torch.tensor([0] * 300 + [1] * 200)
    positions = torch.cat((torch.arange(300), torch.arange(200)))
    ids = torch.randint(0, 50, (500,), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[280] = (ids[280] + 1) % 50
    with torch.no_grad():
        before = model(ids, positions, documents)
        after = model(changed, positions, documents)
    differs = (before != after).any(dim=1)
    assert differs.nonzero().ravel().tolist() == list(range(280, 300))


def test_equal_seeds_give_equal_weights_and_keep_the_random_state_of_torch():
    state = torch.random.get_rng_state()
    one, other = Transformer(9, 1).state_dict(), Transformer(9, 1).state_dict()
    third = Transformer(9, 2).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["output.weight"], third["output.weight"])
    assert torch.equal(state, torch.random.get_rng_state())


def test_without_a_turn_or_a_gradient_the_check_is_not_done(tmp_path):
    model = make_built_in_model("cpu", torch.float64)
    rows = fold_ids(rows_of(tmp_path, hand_made_sequences()))
    with torch.no_grad():
        for parameter in model.parameters:
            parameter.zero_()
    check, losses = equivalence.check_equivalence(model, rows, "aligned")
    assert (check.ok, check.value) == (None, None)
    assert check.detail == "every gradient of the model is 0"
    assert losses["turn_mean"] == pytest.approx(math.log(model.vocabulary))
    empty = [{**row, "turn_num": 0} for row in rows]
    reference = steps.take_step(model, [])
    nothing = steps.compare_results([reference], reference, model, empty)
    assert (nothing.ok, nothing.detail) == (None, "the sample has no turn")


def test_a_model_of_nan_fails_and_says_so(tmp_path):
    model = make_built_in_model("cpu", torch.float64)
    rows = fold_ids(rows_of(tmp_path, hand_made_sequences()))
    with torch.no_grad():
        model.module.output.weight[:] = math.nan
    check, losses = equivalence.check_equivalence(model, rows, "aligned")
    assert (check.ok, check.value) == (False, None)
    assert check.detail == "a loss or gradient is not a finite number"
    assert losses["turn_mean"] is None
