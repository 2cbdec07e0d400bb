"""The experiment of docs/experiments.md runs, and its arithmetic is right."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import mtpack
from mtpack.verify.model import Transformer
from tests.conftest import SAMPLE_DATA

torch = pytest.importorskip("torch")

from benchmarks.weighting import main  # noqa: E402
from benchmarks.weighting_runs import (  # noqa: E402
    Curve,
    Run,
    compute_bin_masks,
    compute_group_means,
    compute_last_states,
    compute_length_bins,
    compute_turn_means,
    find_dialogues_of_turns,
    read_sequences,
    read_turn_lengths,
    split_sequences,
    take_step,
    train,
)

torch.set_num_threads(1)
some_lengths = st.lists(st.integers(1, 50), min_size=4, max_size=60).map(np.array)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> str:
    """Return shards with enough short sequences to hold out turns of every length."""
    folder = tmp_path_factory.mktemp("weighting")
    rows = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(rows[:60]))
    output = str(folder / "packed")
    mtpack.pack(folder / "rows.jsonl", output=output, seq_len=256, workers=1)
    return output


@given(some_lengths)
def test_short_and_long_have_at_least_a_quarter_of_the_turns_and_bins_are_disjoint(lengths):
    short, middle, long = compute_bin_masks(lengths, compute_length_bins(lengths)).values()
    assert (short.astype(int) + middle + long == 1).all()
    assert short.sum() >= len(lengths) // 4
    if compute_length_bins(lengths)[0] < compute_length_bins(lengths)[1]:
        assert long.sum() >= len(lengths) // 4
        assert lengths[short].max() < lengths[long].min()


@given(some_lengths)
def test_the_mean_of_a_turn_is_over_its_own_tokens(lengths):
    losses = np.random.default_rng(0).random(lengths.sum())
    expected = [part.mean() for part in np.split(losses, np.cumsum(lengths)[:-1])]
    assert compute_turn_means(losses, lengths) == pytest.approx(expected)


def test_a_bin_is_a_mean_over_turns_and_all_tokens_is_a_mean_over_tokens():
    means, lengths = np.array([1.0, 2.0, 4.0, 5.0, 9.0]), np.array([1, 2, 5, 10, 30])
    assert compute_group_means(means, lengths, (2, 10)) == {
        "short": 1.5,
        "middle": 4.0,
        "long": 7.0,
        "all_turns": 21 / 5,
        "all_tokens": (1 + 4 + 20 + 50 + 270) / 48,
    }


def test_a_turn_belongs_to_the_dialogue_of_the_document_where_it_starts():
    row = {
        "seq_lengths": np.array([4, 6, 2]),
        "turn_starts": np.array([1, 3, 4, 9]),
        "dialogue_ids": np.array([7, 5, -1]),
    }
    assert find_dialogues_of_turns(row).tolist() == [7, 7, 5, 5]


def test_whole_sequences_are_held_out_and_turns_of_trained_dialogues_are_not_evaluated():
    # Ten sequences of two documents with a turn each; every second sequence has dialogue 100.
    rows = [
        {
            "seq_lengths": np.array([4, 4]),
            "turn_starts": np.array([1, 5]),
            "dialogue_ids": np.array([number, 100 if number % 2 else 10 + number]),
        }
        for number in range(10)
    ]
    split = split_sequences(rows, seed=0)
    assert sorted([*split.trained, *split.held_out]) == list(range(10))
    assert len(split.held_out) == 2
    for row, evaluated in zip(split.held_out, split.evaluated, strict=True):
        assert evaluated.tolist() == [True, row % 2 == 0]
    held_out = {tuple(split_sequences(rows, seed).held_out) for seed in range(10)}
    assert len(held_out) > 1


def test_tokens_get_new_ids_without_gaps(packed):
    sequences = read_sequences(packed)
    batches = sequences.batches
    ids = torch.cat([batch["input_ids"].flatten() for batch in batches])
    assert torch.unique(ids).tolist() == list(range(sequences.vocabulary))
    stored = np.concatenate([row["input_ids"] for row in sequences.rows])
    assert len(set(zip(ids.tolist(), stored.tolist(), strict=True))) == sequences.vocabulary
    for row, batch in zip(sequences.rows, batches, strict=True):
        trained = batch["loss_mask"] == 1
        assert torch.equal(batch["labels"][trained], batch["input_ids"][trained])
        assert (batch["labels"][0].numpy() == -100).tolist() == (row["labels"] == -100).tolist()


@pytest.mark.parametrize("normalization", ["token_mean", "turn_mean"])
def test_a_step_has_the_gradient_of_the_mean_over_all_its_micro_batches(packed, normalization):
    sequences = read_sequences(packed)
    model = Transformer(sequences.vocabulary, seed=0)
    output = model.output.weight
    take_step(model, sequences.batches[:3], Run(normalization, 0.1, 0))
    found = output.grad.clone()

    output.grad = None
    means, lengths = [], []
    for row, batch in zip(sequences.rows[:3], sequences.batches, strict=False):
        states = compute_last_states(model, batch)[0]
        positions = batch["loss_mask"][0].nonzero()[:, 0]
        logs = torch.log_softmax(states[positions - 1] @ output.T, -1)
        losses = -logs[range(len(positions)), batch["input_ids"][0, positions]]
        means += [turn.mean() for turn in losses.split(read_turn_lengths(row).tolist())]
        lengths += read_turn_lengths(row).tolist()
    weights = torch.tensor(lengths if normalization == "token_mean" else [1] * len(lengths))
    ((torch.stack(means) * weights).sum() / weights.sum()).backward()
    assert torch.allclose(found, output.grad, rtol=1e-4, atol=1e-6)


def test_runs_of_a_seed_start_with_the_same_weights_and_then_differ(packed):
    sequences = read_sequences(packed)
    token_mean, turn_mean, again, another = (
        train(sequences, Run(normalization, 0.01, seed), steps=1).losses["all_turns"]
        for normalization, seed in (
            *(("token_mean", 0), ("turn_mean", 0)),
            *(("turn_mean", 0), ("turn_mean", 1)),
        )
    )
    assert token_mean[0] == turn_mean[0] != another[0]
    assert token_mean[1] != turn_mean[1] == again[1]


def test_the_best_step_has_the_lowest_loss_of_the_trained_kind():
    losses = {"all_tokens": [3.0, 1.0, 2.0], "all_turns": [3.0, 2.0, 1.0]}
    steps = [0, 5, 10]
    assert Curve(Run("token_mean", 0.1, 0), steps, losses).find_best_step() == 1
    assert Curve(Run("turn_mean", 0.1, 0), steps, losses).find_best_step() == 2


def run_weighting(packed: str, *options: str):
    arguments = [packed, "--steps", "2", "--seeds", "1", "--workers", "1", *options]
    return CliRunner().invoke(main, arguments)


def test_one_command_trains_both_means_and_shows_short_and_long_turns(packed, tmp_path):
    pytest.importorskip("matplotlib")
    result = run_weighting(
        packed, "--plot", str(tmp_path / "curves.svg"), "--json", str(tmp_path / "curves.json")
    )
    assert result.exit_code == 0, result.output
    rows = [line.split("|")[1:-1] for line in result.output.splitlines() if line.startswith("|")]
    header, _, *lines = [[cell.strip() for cell in row] for row in rows]
    assert header[3:6] == ["token mean", "turn mean", "difference"]
    groups = ["short", "middle", "long", "all turns", "all tokens"]
    assert [line[1:3] for line in lines] == [
        [step, group] for step in ("the end", "its best step") for group in groups
    ]
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert [curve["run"]["normalization"] for curve in curves] == ["token_mean", "turn_mean"]
    for line in lines[:5]:
        losses = [curve["losses"][line[2].replace(" ", "_")][-1] for curve in curves]
        assert line[3:6] == [
            f"{losses[0]:.3f}",
            f"{losses[1]:.3f}",
            f"{losses[1] - losses[0]:+.3f}",
        ]
    assert (tmp_path / "curves.svg").read_text().count("<svg") == 1


def test_unusable_options_and_data_are_refused_before_training(packed, tmp_path):
    result = run_weighting(packed, "--plot", str(tmp_path / "curves.txt"))
    assert (result.exit_code, ".svg" in result.output) == (2, True)
    rows = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "row.jsonl").write_text(rows[0])
    mtpack.pack(tmp_path / "row.jsonl", output=str(tmp_path / "packed"), seq_len=1024, workers=1)
    result = run_weighting(str(tmp_path / "packed"))
    assert (result.exit_code, "too few sequences" in " ".join(result.output.split())) == (2, True)
