"""`verify`, equivalence: packed equals one sample per turn, and what is wrong does not pass."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from mtpack.errors import SetupError
from mtpack.shards import Shards, open_shards
from tests.builders import (
    columns_of_sequences,
    hand_made_sequences,
    metadata_of,
    random_sequences,
    tally_of,
    write_columns,
    write_output,
)
from tests.strategies import Document, Turn

torch = pytest.importorskip("torch")

from mtpack.verifying import equivalence, verify  # noqa: E402
from mtpack.verifying.equivalence import compare  # noqa: E402
from mtpack.verifying.model import Transformer  # noqa: E402
from mtpack.verifying.sampling import Sample, draw_sample, leading_turns, row_cost  # noqa: E402
from mtpack.verifying.structure import check_structure  # noqa: E402
from mtpack.verifying.terminal import show  # noqa: E402

ALIGNMENTS = ("aligned", "shifted")


def shards_of(
    tmp_path,
    sequences: list[list[Document]],
    alignment: str = "aligned",
    multiple: int = 1,
    seq_len: int = 32,
) -> Shards:
    metadata = metadata_of(alignment, multiple, seq_len)
    columns = columns_of_sequences(sequences, metadata.layout)
    return open_shards(write_output(tmp_path / "out", [columns], metadata))


def sample_of(shards: Shards) -> Sample:
    return Sample([dict(row) for row in shards], {})


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("multiple", [1, 8])
def test_packed_equals_one_sample_per_turn(tmp_path, alignment, multiple):
    shards = shards_of(tmp_path, hand_made_sequences(), alignment, multiple)
    report = compare(sample_of(shards), alignment, "cpu")
    assert report.ok
    assert report.value <= report.tolerance <= 1e-10


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_it_holds_over_blocks_of_attention_and_many_ids(tmp_path, alignment):
    sequences = random_sequences(0, 700, [[150, 300, 249], [600, 90]])
    shards = shards_of(tmp_path, sequences, alignment, seq_len=700)
    assert check_structure(shards).violation is None
    report = compare(sample_of(shards), alignment, "cpu")
    assert report.value <= report.tolerance


def test_both_alignments_and_any_padding_have_the_same_loss(tmp_path):
    losses = []
    for alignment in ALIGNMENTS:
        for multiple in (1, 8):
            folder = tmp_path / f"{alignment}-{multiple}"
            folder.mkdir()
            shards = shards_of(folder, hand_made_sequences(), alignment, multiple)
            losses.append(compare(sample_of(shards), alignment, "cpu").losses.turn_mean)
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-13)


def assert_fails(report) -> None:
    assert not report.ok
    assert report.value > 1e-3


def test_the_token_mean_does_not_pass(tmp_path):
    documents = [Document(0, [*range(9)], [Turn(1, 0, [(1, 2)]), Turn(3, 0, [(4, 9)])])]
    sample = sample_of(shards_of(tmp_path, [documents]))
    row = sample.rows[0]
    # Turns of 1 and 5 tokens: with 3 everywhere the weights still sum to the number of turns.
    row["loss_token_num"] = np.where(row["loss_mask"] == 1, 3, 1)
    assert (row["loss_mask"] / row["loss_token_num"]).sum() == pytest.approx(row["turn_num"])
    assert_fails(compare(sample, "aligned", "cpu"))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_one_wrong_count_does_not_pass(tmp_path, alignment):
    sample = sample_of(shards_of(tmp_path, hand_made_sequences(), alignment))
    numbers = sample.rows[1]["loss_token_num"].copy()
    numbers[sample.rows[1]["turn_starts"][1]] += 1
    sample.rows[1]["loss_token_num"] = numbers
    assert_fails(compare(sample, alignment, "cpu"))


def test_a_wrong_number_of_turns_does_not_pass(tmp_path):
    sample = sample_of(shards_of(tmp_path, hand_made_sequences()))
    sample.rows[0]["turn_num"] += 1
    assert_fails(compare(sample, "aligned", "cpu"))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_attention_across_documents_does_not_pass(tmp_path, alignment, monkeypatch):
    sample = sample_of(shards_of(tmp_path, hand_made_sequences(), alignment))
    monkeypatch.setattr(
        equivalence, "packed_documents", lambda row: np.zeros(len(row["input_ids"]), np.int64)
    )
    assert_fails(compare(sample, alignment, "cpu"))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_labels_one_place_off_do_not_pass(tmp_path, alignment):
    sample = sample_of(shards_of(tmp_path, hand_made_sequences(), alignment))
    for row in sample.rows:
        trained = row["loss_mask"] == 1
        labels = row["labels"].copy()
        labels[trained] = np.roll(row["input_ids"], 0 if alignment == "shifted" else -1)[trained]
        row["labels"] = labels
    assert_fails(compare(sample, alignment, "cpu"))


def test_a_second_shift_does_not_pass(tmp_path):
    sample = sample_of(shards_of(tmp_path, hand_made_sequences(), "shifted"))
    assert_fails(compare(sample, "aligned", "cpu"))


def test_the_three_losses_are_those_computed_by_hand(tmp_path, monkeypatch):
    documents = [
        Document(0, [1, 2, 3, 4, 5], [Turn(1, 0, [(1, 2)]), Turn(3, 0, [(3, 5)])]),
        Document(1, [6, 7], [Turn(1, 0, [(1, 2)])]),
        Document(0, [8, 9, 10], [Turn(5, 0, [(1, 3)])]),
    ]
    sample = sample_of(shards_of(tmp_path, [documents]))
    token_losses = torch.zeros(1, 32, dtype=torch.float64)
    token_losses[0, [1, 3, 4, 6, 8, 9]] = torch.tensor([1, 2, 4, 8, 16, 32]).double()

    def losses_by_hand(model, row, label_alignment):
        return token_losses + 0 * model.output.weight.sum()

    monkeypatch.setattr(equivalence, "_packed_losses", losses_by_hand)
    losses = compare(sample, "aligned", "cpu").losses
    assert losses.turn_mean == pytest.approx((1 + 3 + 8 + 24) / 4)
    assert losses.token_mean == pytest.approx(63 / 6)
    assert losses.dialogue_mean == pytest.approx(((1 + 2 + 4 + 16 + 32) / 5 + 8) / 2)


def test_the_model_sees_neither_the_future_nor_other_documents():
    model = Transformer(50, seed=0).double()
    documents = torch.tensor([0] * 300 + [1] * 200)
    positions = torch.cat((torch.arange(300), torch.arange(200)))[None]
    ids = torch.randint(0, 50, (1, 500), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 280] = (ids[0, 280] + 1) % 50
    with torch.no_grad():
        before = model(ids, positions, documents)[0]
        after = model(changed, positions, documents)[0]
    differs = (before != after).any(dim=1)
    assert differs.nonzero().ravel().tolist() == list(range(280, 300))


def test_equal_seeds_give_equal_weights_and_leave_torch_alone():
    state = torch.random.get_rng_state()
    one, other = Transformer(9, 1).state_dict(), Transformer(9, 1).state_dict()
    third = Transformer(9, 2).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["output.weight"], third["output.weight"])
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("multiple", [1, 8])
def test_leading_turns_are_a_sound_sequence(tmp_path, alignment, multiple):
    shards = shards_of(tmp_path, hand_made_sequences(), alignment, multiple)
    for row in shards:
        for turns in range(1, row["turn_num"] + 1):
            cut = leading_turns(row, turns, alignment)
            assert cut["loss_mask"].sum() == sum(row["loss_token_num"][row["turn_starts"][:turns]])
            assert cut["seq_lengths"].sum() == len(cut["input_ids"]) == len(cut["labels"])
            assert (cut["document_lengths"] == cut["seq_lengths"])[-1]
            assert compare(Sample([cut], {}), alignment, "cpu").ok


def test_a_sample_keeps_to_its_budget_and_says_what_it_covers(tmp_path):
    sequences = random_sequences(0, 300, [[100, 90, 66]] * 40)
    shards = shards_of(tmp_path, sequences, seq_len=300)
    costs = [row_cost(row, row["turn_num"], "aligned") for row in shards]
    sample = draw_sample(shards, budget=sum(costs) / 4)
    assert 5 <= len(sample.rows) <= 15
    assert sum(row_cost(row, row["turn_num"], "aligned") for row in sample.rows) <= sum(costs) / 4
    coverage = sample.coverage
    assert (coverage["sequences"], coverage["sequences_of"]) == (len(sample.rows), 40)
    assert (coverage["tokens"], coverage["tokens_of"]) == (256 * len(sample.rows), 256 * 40)
    assert coverage["turns_of"] == sum(row["turn_num"] for row in shards)
    assert len(draw_sample(shards, budget=2 * sum(costs)).rows) == 40


def test_a_sequence_beyond_the_budget_gives_its_leading_turns(tmp_path):
    shards = shards_of(tmp_path, random_sequences(0, 700, [[700]]), seq_len=700)
    row = shards[0]
    budget = row_cost(row, 5, "aligned")
    assert draw_sample(shards, budget).coverage["turns"] == 5
    assert draw_sample(shards, budget=1e-9).coverage["turns"] == 1
    assert row["turn_num"] > 5


def test_verify_reports_all_checks(tmp_path):
    shards_of(tmp_path, hand_made_sequences())
    report = verify.verify(tmp_path / "out", "cpu")
    assert report.ok
    printed = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert list(printed) == ["ok", "rows", "checks", "loss", "device", "covered", "violation"]
    assert (printed["ok"], printed["rows"], printed["device"]) == (True, 3, "cpu")
    assert list(printed["checks"]) == ["structure", "equivalence"]
    assert all(list(check) == ["ok", "value", "tolerance"] for check in printed["checks"].values())
    assert list(printed["loss"]) == ["turn_mean", "token_mean", "dialogue_mean"]
    assert all(math.isfinite(loss) for loss in printed["loss"].values())


def test_verify_repeats_to_the_last_digit(tmp_path):
    shards_of(tmp_path, hand_made_sequences())
    assert verify.verify(tmp_path / "out", "cpu") == verify.verify(tmp_path / "out", "cpu")


def broken_shard(tmp_path):
    metadata = metadata_of()
    columns = columns_of_sequences(hand_made_sequences(), metadata.layout)
    columns.loss_token_num[1, columns.turn_starts[3]] += 1
    write_columns(tmp_path / "shard.arrow", columns, metadata)
    return tmp_path / "shard.arrow"


def shown(report) -> str:
    console = Console(file=io.StringIO(), width=80)
    show(report, console)
    return console.file.getvalue()


def test_a_violation_is_shown_with_its_place_and_nothing_is_computed(tmp_path):
    path = broken_shard(tmp_path)
    report = verify.verify([path], "cpu")
    assert not report.ok
    assert list(report.checks) == ["structure"]
    assert report.as_dict()["loss"] == dict.fromkeys(("turn_mean", "token_mean", "dialogue_mean"))
    assert report.as_dict()["violation"]["row"] == 1
    lines = shown(report)
    assert f"{path}, row 1, position 3:" in lines
    assert "loss_token_num" in lines
    assert "FAILED" in lines
    assert "hashes were not checked" in lines


def test_the_table_is_calm_and_names_what_is_not_proved(tmp_path):
    metadata = metadata_of()
    columns = columns_of_sequences(hand_made_sequences(), metadata.layout)
    tally = tally_of([columns], bent=3, no_eot=2)
    write_output(tmp_path / "out", [columns], metadata, tally)
    lines = shown(verify.verify(str(tmp_path / "out"), "cpu"))
    assert "FAILED" not in lines
    assert "hashes were not checked" not in lines
    assert "3 of 3 sequences, 9 of 9 turns" in lines
    assert "bent            3  turns: merged though" in lines
    assert "no end of turn  2  turns: no control token ends them" in lines
    assert "unproven" not in lines
    assert all(len(line) <= 80 for line in lines.splitlines())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_cuda_device_is_one_sentence(tmp_path):
    with pytest.raises(SetupError, match=r"^--device cuda: [^\n]*$"):
        verify.verify(tmp_path, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_holds_in_float32_on_cuda(tmp_path):
    shards_of(tmp_path, random_sequences(0, 700, [[150, 300, 249], [600, 90]]), seq_len=700)
    report = verify.verify(tmp_path / "out", "cuda")
    assert report.ok
    assert report.device == "cuda"
    assert report.checks["equivalence"].tolerance <= 1e-5


def test_without_torch_only_the_structure_is_checked(tmp_path, monkeypatch):
    shards_of(tmp_path, hand_made_sequences())
    monkeypatch.setattr(verify, "find_spec", lambda name: None)
    report = verify.verify(tmp_path / "out", "auto")
    assert report.ok
    assert list(report.checks) == ["structure"]
    assert report.missing_extra is not None
    assert "pip install 'mtpack[torch]'" in report.missing_extra
    assert "loss" not in shown(report).split("Covered")[1]
