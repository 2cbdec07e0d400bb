"""A worked example: one document with three turns; the expected columns are written out in full."""

import numpy as np
import pytest

from mtpack.packing.columns import Layout, assemble
from tests.support.strategies import Document, Turn, as_batch

SEQ_LEN = 15
A, B, C = [11, 12, 13], [21, 22], [31, 32, 33]
WEIGHTS = [0.5, 2.0, 1.0]
LABELS = [-100, -100, *A, -100, *B, -100, -100, *C, -100, -100]
LOSS_MASK = [0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0]
LOSS_TOKEN_NUM = [1, 1, 3, 3, 3, 1, 2, 2, 1, 1, 3, 3, 3, 1, 1]
# A document ends with its last turn, so the last two positions are padding.
DOCUMENT = Document(
    row=0,
    ids=[1, 2, *A, 3, *B, 4, 5, *C],
    turns=[
        Turn(1, 0, [(2, 5)], units=512),
        Turn(3, 0, [(6, 8)], units=2048),
        Turn(5, 0, [(10, 13)], units=1024),
    ],
)


def assemble_example(label_alignment="aligned", extra_columns=()):
    layout = Layout(SEQ_LEN, label_alignment, 1, 0, extra_columns=extra_columns)
    return assemble(as_batch([DOCUMENT]), np.array([0, 1]), layout)


def test_the_columns_are_those_of_the_example():
    found = assemble_example()
    assert found.input_ids[0].tolist() == [*DOCUMENT.ids, 0, 0]
    assert found.labels[0].tolist() == LABELS
    assert found.loss_mask[0].tolist() == LOSS_MASK
    assert found.loss_token_num[0].tolist() == LOSS_TOKEN_NUM
    assert found.turn_num.tolist() == [3]
    assert found.turn_starts.tolist() == [2, 6, 10]
    assert found.turn_messages.tolist() == [1, 3, 5]
    assert found.seq_lengths.tolist() == [13, 2]
    assert found.document_lengths.tolist() == [13, 0]
    assert found.dialogue_ids.tolist() == [0, -1]


def test_shifted_columns_are_the_same_one_position_earlier():
    found = assemble_example("shifted")
    assert found.input_ids[0].tolist() == [*DOCUMENT.ids, 0, 0]
    assert found.labels[0].tolist() == [*LABELS[1:], -100]
    assert found.loss_mask[0].tolist() == [*LOSS_MASK[1:], 0]
    assert found.loss_token_num[0].tolist() == [*LOSS_TOKEN_NUM[1:], 1]
    assert found.turn_starts.tolist() == [1, 5, 9]


@pytest.mark.parametrize("label_alignment", ["aligned", "shifted"])
def test_the_loss_is_the_mean_over_turns_of_the_mean_over_their_tokens(label_alignment):
    torch = pytest.importorskip("torch")
    from mtpack.loss import turn_mean_loss

    losses = np.random.default_rng(0).random(SEQ_LEN)
    a, b, c = losses[2:5], losses[6:8], losses[10:13]
    if label_alignment == "shifted":
        losses = np.append(losses[1:], 7.0)  # the loss at padding does not count
    found = assemble_example(label_alignment)
    loss_sum, turns = turn_mean_loss(
        torch.from_numpy(losses)[None],
        torch.from_numpy(found.loss_mask),
        torch.from_numpy(found.loss_token_num),
        torch.from_numpy(found.turn_num),
    )
    expected = a.sum() / 3 + b.sum() / 2 + c.sum() / 3
    assert loss_sum.item() == pytest.approx(expected, rel=1e-14)
    assert turns.item() == 3
    assert (loss_sum / turns).item() == pytest.approx(expected / 3, rel=1e-14)


@pytest.mark.parametrize("label_alignment", ["aligned", "shifted"])
def test_with_weights_the_loss_is_the_weighted_mean_of_the_means_of_turns(label_alignment):
    torch = pytest.importorskip("torch")
    from mtpack.loss import turn_mean_loss
    from mtpack.shards.dataset import row_of
    from mtpack.torch_data import collate

    row = row_of(assemble_example(label_alignment, ("turn_weights",)), 0)
    assert row["turn_weights"].tolist() == WEIGHTS
    batch = collate([row])
    losses = np.arange(1.0, SEQ_LEN + 1)
    a, b, c = losses[2:5].mean(), losses[6:8].mean(), losses[10:13].mean()
    if label_alignment == "shifted":
        losses = np.append(losses[1:], 7.0)
    loss_sum, count = turn_mean_loss(
        torch.from_numpy(losses)[None],
        batch["loss_mask"],
        batch["loss_token_num"],
        batch["turn_num"],
        batch["turn_weight"],
    )
    assert (a, b, c) == (4.0, 7.5, 12.0)
    assert loss_sum.item() == pytest.approx(0.5 * 4 + 2 * 7.5 + 12)
    assert count.item() == batch["weight_sum"].item() == 3.5
    assert (loss_sum / count).item() == pytest.approx(29 / 3.5)
