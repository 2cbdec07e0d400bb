"""`verify`, isolation: other documents and padding change no loss; a model that leaks fails."""

from __future__ import annotations

import numpy as np
import pytest

from mtpack.shards.dataset import Row
from tests.support.builders import hand_made_sequences, open_sequences

torch = pytest.importorskip("torch")

from mtpack.verify import causal_model  # noqa: E402
from mtpack.verify.causal_model import CausalModel, fold_ids, make_built_in_model  # noqa: E402
from mtpack.verify.isolation import (  # noqa: E402
    check_isolation,
    find_document_tokens,
    find_predicting_positions,
    replace_tokens,
)

KINDS = ["documents", "padding_tokens", "padding_added"]


pytestmark = pytest.mark.usefixtures("one_thread")


def rows_of(tmp_path, alignment: str = "aligned", multiple: int = 1) -> list[Row]:
    shards = open_sequences(tmp_path, hand_made_sequences(), alignment, multiple)
    return fold_ids(list(shards))


def model_of() -> CausalModel:
    return make_built_in_model("cpu", torch.float64)


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_other_documents_and_padding_change_no_loss(tmp_path, alignment, multiple):
    check, counts = check_isolation(model_of(), rows_of(tmp_path, alignment, multiple))
    parts = check.parts
    assert sorted(parts) == sorted(KINDS)
    assert parts["documents"].value == parts["padding_tokens"].value == 0  # bit by bit
    assert parts["padding_added"].value <= parts["padding_added"].tolerance <= 1e-10
    # Two of the three sequences have two documents, each of which is changed.
    assert (counts["documents"], counts["sequences"]) == (4, 3)


def test_attention_across_documents_fails(tmp_path, monkeypatch):
    rows = rows_of(tmp_path)
    monkeypatch.setattr(
        causal_model,
        "read_document_ids",
        lambda batch: torch.zeros(batch["input_ids"].numel(), dtype=torch.int64),
    )
    check, _ = check_isolation(model_of(), rows)
    assert not check.ok
    assert check.parts["documents"].value > 1e-3
    assert not check.parts["padding_tokens"].ok  # padding of a document, read by the next document
    assert not check.parts["padding_added"].ok


def test_a_leak_from_one_token_to_the_next_fails(tmp_path):
    """As with a short convolution that does not know where documents start."""
    model = model_of()

    def leaking(input_ids, position_ids, document_ids):
        logits = model.forward(input_ids, position_ids, document_ids)
        return logits + 1e-6 * logits.roll(1, dims=0)

    leaky = CausalModel(model.module, leaking, model.vocabulary, 2, "leaky", "nothing")
    check, _ = check_isolation(leaky, rows_of(tmp_path))
    assert not check.parts["documents"].ok


def test_a_model_that_reads_later_padding_fails(tmp_path):
    model = model_of()

    def looking_ahead(input_ids, position_ids, document_ids):
        logits = model.forward(input_ids, position_ids, document_ids)
        padding = document_ids == document_ids.max()
        return logits + 1e-3 * logits[padding].sum(dim=0)

    ahead = CausalModel(model.module, looking_ahead, model.vocabulary, 2, "ahead", "nothing")
    check, _ = check_isolation(ahead, rows_of(tmp_path)[2:])
    assert not check.parts["padding_tokens"].ok
    assert not check.parts["padding_added"].ok
    assert check.parts["documents"].ok is None  # the sequence has one document


def test_a_loss_of_nan_fails(tmp_path):
    model = model_of()
    with torch.no_grad():
        model.module.output.weight[:] = np.nan
    check, _ = check_isolation(model, rows_of(tmp_path))
    assert (check.ok, check.value) == (False, None)
    assert check.detail == "a loss or gradient is not a finite number"


def test_without_two_documents_in_a_sequence_the_check_is_not_done(tmp_path):
    check, counts = check_isolation(model_of(), rows_of(tmp_path)[2:])
    assert (check.ok, check.value, counts["documents"]) == (None, None, 0)
    assert check.detail == "no sequence of the sample has two documents"
    assert check.parts["padding_added"].ok


def test_a_model_that_ignores_the_tokens_shows_nothing(tmp_path):
    model = model_of()
    with torch.no_grad():
        model.module.output.weight[:] = 0
    check, _ = check_isolation(model, rows_of(tmp_path))
    assert check.ok is None
    assert check.detail == "the model's losses do not depend on the tokens"


def test_positions_of_tokens_and_of_predictions_are_found(tmp_path):
    row = rows_of(tmp_path, multiple=8)[0]  # documents of 10 and 4 tokens, in 16 and 8 positions
    tokens = [*range(10), *range(16, 20)]
    assert np.flatnonzero(find_document_tokens(row)).tolist() == tokens
    assert np.flatnonzero(find_predicting_positions(row)).tolist() == [*range(9), *range(16, 19)]
    is_token = find_document_tokens(row)
    changed = replace_tokens(row, is_token, vocabulary=64)
    assert ((changed["input_ids"] != row["input_ids"]) == is_token).all()
