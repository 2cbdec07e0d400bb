"""`verify`, isolation: neighbours and padding change nothing, and a model that mixes fails."""

from __future__ import annotations

import numpy as np
import pytest

from mtpack.shards.dataset import Row
from tests.support.builders import hand_made_sequences, open_sequences, random_sequences

torch = pytest.importorskip("torch")

from mtpack.torch_data import PackedDataset  # noqa: E402
from mtpack.verify import causal_model, steps  # noqa: E402
from mtpack.verify.causal_model import CausalModel, built_in_model  # noqa: E402
from mtpack.verify.computing import compacted  # noqa: E402
from mtpack.verify.isolation import (  # noqa: E402
    check_isolation,
    predicted_places,
    token_places,
    with_other_tokens,
)
from mtpack.verify.sampling import draw_neighbours, leading_parts  # noqa: E402

KINDS = ["documents", "padding_tokens", "padding_added"]


@pytest.fixture(autouse=True)
def one_thread():
    with steps.exact_and_repeatable(threads=1):
        yield


def rows_of(tmp_path, alignment: str = "aligned", multiple: int = 1) -> list[Row]:
    shards = open_sequences(tmp_path, hand_made_sequences(), alignment, multiple)
    return compacted({"rows": list(shards)})[0]["rows"]


def model_of() -> CausalModel:
    return built_in_model(64, "cpu", torch.float64)


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_neighbours_and_padding_change_nothing(tmp_path, alignment, multiple):
    report = check_isolation(model_of(), rows_of(tmp_path, alignment, multiple))
    parts = report.check.parts
    assert sorted(parts) == sorted(KINDS)
    assert parts["documents"].value == parts["padding_tokens"].value == 0  # to the bit
    assert parts["padding_added"].value <= parts["padding_added"].tolerance <= 1e-10
    # Two sequences of two documents, and every token but the first of each kept one.
    assert report.counts["documents"] == 4
    assert report.counts["sequences"] == 3


def test_attention_across_documents_does_not_pass(tmp_path, monkeypatch):
    rows = rows_of(tmp_path)
    monkeypatch.setattr(
        causal_model,
        "document_ids_of",
        lambda batch: torch.zeros(batch["input_ids"].numel(), dtype=torch.int64),
    )
    check = check_isolation(model_of(), rows).check
    assert not check.ok
    assert check.parts["documents"].value > 1e-3
    assert not check.parts["padding_tokens"].ok  # of a document, read by the next one
    assert not check.parts["padding_added"].ok


def test_a_leak_from_one_token_to_the_next_does_not_pass(tmp_path):
    """As of a short convolution that is not told where documents start."""
    model = model_of()

    def leaking(input_ids, position_ids, document_ids):
        logits = model.forward(input_ids, position_ids, document_ids)
        return logits + 1e-6 * logits.roll(1, dims=0)

    leaky = CausalModel(model.module, leaking, model.vocabulary, "leaky", "nothing")
    check = check_isolation(leaky, rows_of(tmp_path)).check
    assert not check.parts["documents"].ok


def test_a_model_that_looks_ahead_into_padding_does_not_pass(tmp_path):
    model = model_of()

    def looking_ahead(input_ids, position_ids, document_ids):
        logits = model.forward(input_ids, position_ids, document_ids)
        padding = document_ids == document_ids.max()
        return logits + 1e-3 * logits[padding].sum(dim=0)

    bent = CausalModel(model.module, looking_ahead, model.vocabulary, "bent", "nothing")
    check = check_isolation(bent, rows_of(tmp_path)[2:]).check
    assert not check.parts["padding_tokens"].ok
    assert not check.parts["padding_added"].ok
    assert "documents" not in check.parts  # a document without a neighbour


def test_a_loss_that_is_no_number_does_not_pass(tmp_path):
    model = model_of()
    with torch.no_grad():
        model.module.output.weight[:] = np.nan
    assert not check_isolation(model, rows_of(tmp_path)).check.ok


def test_places_are_told_apart(tmp_path):
    row = rows_of(tmp_path, multiple=8)[0]  # documents of 10 and 4 tokens, in 16 and 8 places
    tokens = [*range(10), *range(16, 20)]
    assert np.flatnonzero(token_places(row)).tolist() == tokens
    assert np.flatnonzero(predicted_places(row)).tolist() == [*range(9), *range(16, 19)]
    places = token_places(row)
    changed = with_other_tokens(row, places, vocabulary=64)
    assert ((changed["input_ids"] != row["input_ids"]) == places).all()


def test_long_documents_are_cut_so_that_neighbours_can_be_tried(tmp_path):
    open_sequences(tmp_path, random_sequences(0, 900, [[400, 480]] * 2), seq_len=900)
    rows = draw_neighbours(
        PackedDataset(tmp_path / "out"), 2, 300.0, lambda places: float(len(places))
    )
    assert [row["seq_lengths"].tolist() for row in rows] == [[120, 120, 20]] * 2
    samples, vocabulary = compacted({"rows": rows})
    model = built_in_model(vocabulary, "cpu", torch.float64)
    report = check_isolation(model, samples["rows"])
    assert report.check.ok
    assert report.counts["documents"] == 4


def test_cut_documents_keep_the_turns_that_start_in_them(tmp_path):
    for row in rows_of(tmp_path):
        cut = leading_parts(row, 6)
        assert cut["seq_lengths"].sum() == len(cut["input_ids"])
        assert (cut["loss_mask"][cut["turn_starts"]] == 1).all()
        assert cut["turn_num"] == len(cut["turn_starts"])
