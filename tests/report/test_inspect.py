"""`inspect`: its figures equal those of a slow count, and its output is readable and safe."""

from __future__ import annotations

import io
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from rich.console import Console

from mtpack.errors import InputError, SetupError
from mtpack.report.decoding import decode_part, find_decoder
from mtpack.report.escaping import escape
from mtpack.report.figures import count_figures
from mtpack.report.inspect_view import show_figures
from mtpack.report.overview import show_overview
from mtpack.report.row_view import view_row
from mtpack.report.sequence_view import show_row
from mtpack.shards.dataset import Shards, open_shards
from mtpack.token_batch import offsets_from_lengths
from mtpack.tokenizer.loading import load_tokenizer
from tests.support.inspected import (
    ALIGNMENTS,
    CHARACTERS,
    DOCUMENTS,
    SEQUENCES,
    Document,
    pack,
    plain_console,
    random_documents,
    tally_of,
    text_document,
    text_of,
    with_manifest,
)

GOLDEN_FIGURES = """\
Contents
  sequences                 3  tokens                 31
  sequence length          16  padding                17
  shards                    1  fill                64.6%
  documents                 4  loss tokens            20
  dialogues                 3  loss share          64.5%
  turns                     5  label alignment   aligned
  documents per sequence  1.3  document padding     none
  turns per document      1.2

Document lengths, in tokens
  min 4, median 8.5, mean 7.8, max 10
  tokens  documents  share
     4-7          1  25.0%  █████████████▍
    8-15          3  75.0%  ████████████████████████████████████████

Documents per sequence
  min 1, median 1, mean 1.3, max 2
  documents  sequences  share
          1          2  66.7%  ████████████████████████████████████████
        2-3          1  33.3%  ████████████████████

Turns per sequence
  min 1, median 1, mean 1.7, max 3
  turns  sequences  share
      1          2  66.7%  ████████████████████████████████████████
    2-3          1  33.3%  ████████████████████

Fill of the sequences
      filled  sequences  share
  45% to 50%          1  33.3%  ████████████████████████████████████████
  55% to 60%          1  33.3%  ████████████████████████████████████████
  85% to 90%          1  33.3%  ████████████████████████████████████████

Turn lengths, in loss tokens, and their share of the gradient
  min 1, median 4, mean 4.0, max 7
  loss tokens  turns   turn mean      token mean       dialogue mean
            1      1   20.0% ██        5.0% ▌           4.2% ▍
          2-3      1   20.0% ██       15.0% █▌         25.0% ██▌
          4-7      3   60.0% ██████   80.0% ████████   70.8% ███████▏
  equal weight for: every turn; every loss token; every document

The run that packed these shards
  rows read               6
  rows dropped            2  no_turns 2
  rows rejected           0
  turns dropped           0
  sequences, lower bound  3  packed: 3

What to know about the turns
  merging exact   4  turns: the merged document is proven to be, up to the end
                     of each, the same as the dialogue that ends with that turn
  own document    1  turns: each has a document of its own, because the chat
                     template rewrites history, so merging is not exact; a
                     template that keeps history avoids this, --merge always
                     merges anyway
  repeated       11  tokens: 31 in 3 sequences, 1.55 times as many as with one
                     document per dialogue: 20 in about 2
  never shown     2  assistant messages: their tool calls, or some of them
                     The chat template leaves this out, so the model never sees
                     it; possible remedies: another template
"""


def figures_text(shards: Shards) -> str:
    console = plain_console()
    show_figures(count_figures(shards), console)
    return text_of(console)


def row_text(shards: Shards, number: int, decoder: Any = None) -> str:
    console = plain_console()
    show_row(view_row(shards, number), decoder, console)
    return text_of(console)


# --- figures


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("pad_documents_to", [1, 4])
def test_figures_equal_those_of_a_slow_count(
    tmp_path: Path, alignment: str, pad_documents_to: int
) -> None:
    documents, sequences = random_documents()
    shards = pack(
        tmp_path,
        documents,
        sequences,
        alignment=alignment,
        seq_len=64,
        pad_documents_to=pad_documents_to,
    )
    figures = count_figures(shards)

    lengths = [
        int(length)
        for row in shards
        for length, dialogue in zip(row["document_lengths"], row["dialogue_ids"], strict=True)
        if dialogue >= 0
    ]
    turns = [int(row["loss_token_num"][start]) for row in shards for start in row["turn_starts"]]
    assert lengths == [len(document.ids) for document in documents]
    assert figures.rows == len(sequences)
    assert figures.documents == len(lengths)
    assert figures.dialogues == len({document.dialogue for document in documents})
    assert figures.turns == len(turns) == sum(int(row["turn_num"]) for row in shards)
    assert figures.tokens == sum(lengths)
    assert figures.padding == len(sequences) * 64 - sum(lengths)
    assert figures.loss_tokens == sum(int(row["loss_mask"].sum()) for row in shards)
    assert figures.fill == sum(lengths) / (len(sequences) * 64)
    assert figures.loss_share == sum(turns) / sum(lengths)
    assert figures.compute_share == sum(turns) / (len(sequences) * 64)
    documents_in = [int((row["dialogue_ids"] >= 0).sum()) for row in shards]
    for counted, histogram in (
        (lengths, figures.document_lengths),
        (turns, figures.turn_lengths),
        (documents_in, figures.documents_per_sequence),
        ([row["turn_num"] for row in shards], figures.turns_per_sequence),
    ):
        assert (histogram.min, histogram.max) == (min(counted), max(counted))
        assert histogram.median == statistics.median(counted)
        assert histogram.mean == pytest.approx(statistics.mean(counted))
        for bucket in histogram.buckets:
            members = [length for length in counted if bucket.low <= length <= bucket.high]
            assert (bucket.count, bucket.tokens) == (len(members), sum(members))
            assert bucket.count_share == pytest.approx(len(members) / len(counted))
            assert bucket.token_share == pytest.approx(sum(members) / sum(counted))
        assert sum(bucket.count for bucket in histogram.buckets) == len(counted)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_the_fill_of_every_sequence_is_in_one_of_20_bins(tmp_path: Path, alignment: str) -> None:
    documents, sequences = random_documents()
    shards = pack(tmp_path, documents, sequences, alignment=alignment, seq_len=64)
    fills = [int(row["document_lengths"].sum()) / 64 for row in shards]
    bins = count_figures(shards).fill_of_sequences
    assert len(bins) == 20
    for each in bins:
        inside = [fill for fill in fills if each.low < fill <= each.high]
        assert each.sequences == len(inside)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("pad_documents_to", [1, 4])
def test_the_weight_by_length_is_that_of_the_losses_of_the_loss_module(
    tmp_path: Path, alignment: str, pad_documents_to: int
) -> None:
    torch = pytest.importorskip("torch")
    loss = pytest.importorskip("mtpack.loss")
    documents, sequences = random_documents()
    shards = pack(
        tmp_path,
        documents,
        sequences,
        alignment=alignment,
        seq_len=64,
        pad_documents_to=pad_documents_to,
    )
    means = ("turn_mean", "token_mean", "dialogue_mean", "square_root")
    found: dict[str, dict[int, float]] = {mean: {} for mean in means}
    for row in shards:
        starts = offsets_from_lengths(row["seq_lengths"])[:-1]
        positions = np.arange(64) - starts[np.searchsorted(starts, np.arange(64), "right") - 1]
        mask, lengths = (torch.tensor(row[name]) for name in ("loss_mask", "loss_token_num"))
        arguments = {
            "turn_mean": (mask, lengths, torch.tensor(row["turn_num"])),
            "token_mean": (mask,),
            "dialogue_mean": (mask, torch.tensor(positions)),
            "square_root": (mask, lengths),
        }
        for mean, columns in arguments.items():
            losses = torch.ones(64, dtype=torch.float64, requires_grad=True)
            getattr(loss, f"{mean}_loss")(losses, *columns)[0].backward()
            for length, weight in zip(row["loss_token_num"], losses.grad.tolist(), strict=True):
                exponent = int(length).bit_length() - 1
                found[mean][exponent] = found[mean].get(exponent, 0.0) + weight
    buckets = count_figures(shards).weight_by_length
    for mean, weights in found.items():
        total = sum(weights.values())
        for bucket in buckets:
            share = weights.get(bucket.low.bit_length() - 1, 0.0) / total
            assert bucket.weights[mean] == pytest.approx(share)
    assert [each.low for each in buckets] == [
        each.low for each in count_figures(shards).turn_lengths.buckets
    ]


def test_both_alignments_have_the_same_figures(tmp_path: Path) -> None:
    aligned, shifted = (count_figures(pack(tmp_path, alignment=name)) for name in ALIGNMENTS)
    assert replace(shifted, label_alignment="aligned") == aligned


def test_buckets_of_turns_have_their_share_of_the_loss_under_both_means(tmp_path: Path) -> None:
    buckets = count_figures(pack(tmp_path)).as_dict()["turn_lengths"]["buckets"]
    assert buckets == [
        {"label": "1", "count": 1, "tokens": 1, "turn_mean": 0.2, "token_mean": 0.05},
        {"label": "2-3", "count": 1, "tokens": 3, "turn_mean": 0.2, "token_mean": 0.15},
        {"label": "4-7", "count": 3, "tokens": 16, "turn_mean": 0.6, "token_mean": 0.8},
    ]


def test_the_tally_is_null_without_a_manifest(tmp_path: Path) -> None:
    shards = pack(tmp_path)
    assert count_figures(shards).as_dict()["tally"] is None
    tally = tally_of(shards, rows_read=9, rows_dropped={"no_turns": 5})
    found = count_figures(with_manifest(shards, tally)).as_dict()["tally"]
    assert found == asdict(tally)
    assert found["rows_dropped"] == {"no_turns": 5}


def test_figures_count_several_shards_together(tmp_path: Path) -> None:
    pack(tmp_path)
    again = tmp_path / "again.arrow"
    again.write_bytes((tmp_path / "aligned.arrow").read_bytes())
    figures = count_figures(open_shards([tmp_path / "aligned.arrow", again]))
    assert (figures.shards, figures.rows, figures.documents, figures.dialogues) == (2, 6, 8, 3)


DAMAGE = {
    "turn_num": np.array([9, 9, 9], np.int32),
    "turn_starts": np.array([2, 5, 11, 3, 99], np.int32),
    "loss_token_num": np.full((3, 16), 1 << 30, np.int32),
    "document_lengths": np.array([10, -4, 0, 9, 0, 8, 0], np.int32),
    "loss_mask": np.ones((3, 16), np.uint8),
    "seq_lengths": np.array([10, 4, 3, 9, 7, 8, 8], np.int32),
}


@pytest.mark.parametrize("column", DAMAGE)
def test_a_damaged_shard_is_refused(tmp_path: Path, column: str) -> None:
    shards = pack(tmp_path, **{column: DAMAGE[column]})
    with pytest.raises(InputError, match=r"aligned\.arrow: damaged: .*; pack the data again"):
        count_figures(shards)


# --- one row


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("pad_documents_to", [1, 4])
def test_a_row_view_has_the_positions_of_the_trained_tokens(
    tmp_path: Path, alignment: str, pad_documents_to: int
) -> None:
    shards = pack(tmp_path, alignment=alignment, pad_documents_to=pad_documents_to)
    seen = 0
    for number, count in enumerate(SEQUENCES):
        view = view_row(shards, number)
        packed = DOCUMENTS[seen : seen + count]
        seen += count
        assert [document.dialogue for document in view.documents] == [d.dialogue for d in packed]
        for shown, document in zip(view.documents, packed, strict=True):
            ids = view.token_ids[shown.start : shown.start + shown.length].tolist()
            assert ids == document.ids
            assert shown.padded_length == -(-shown.length // pad_documents_to) * pad_documents_to
        expected = [
            (index, message, [document.ids[at] for span in spans for at in range(*span)])
            for index, document in enumerate(packed)
            for message, spans in document.turns
        ]
        found = [
            (turn.document, turn.message, view.token_ids[turn.positions].tolist())
            for turn in view.turns
        ]
        assert found == expected
        for turn in view.turns:
            assert turn.loss_token_num == len(turn.positions)
            assert turn.weight * len(turn.positions) == pytest.approx(1)
        assert view.padding == 16 - sum(len(document.ids) for document in packed)


@pytest.mark.parametrize("number", [-1, 3])
def test_a_row_out_of_range_is_refused_with_the_number_of_sequences(
    tmp_path: Path, number: int
) -> None:
    with pytest.raises(SetupError, match=f"--row {number}: out of range; there are 3 sequences"):
        view_row(pack(tmp_path), number)


ROW_DAMAGE = DAMAGE | {
    "input_ids": np.full((3, 16), -1, np.int32),
    "turn_starts": np.array([5, 2, 11, 3, 1], np.int32),
    "document_lengths": np.array([0, 4, 0, 9, 0, 8, 0], np.int32),
}


@pytest.mark.parametrize("column", ROW_DAMAGE)
def test_a_damaged_sequence_is_refused(tmp_path: Path, column: str) -> None:
    shards = pack(tmp_path, **{column: ROW_DAMAGE[column]})
    with pytest.raises(InputError, match=r"sequence 0: damaged: .*; pack the data again"):
        view_row(shards, 0)


# --- the terminal


def test_the_output_for_figures(tmp_path: Path) -> None:
    shards = pack(tmp_path)
    tally = tally_of(
        shards,
        rows_read=6,
        rows_dropped={"no_turns": 2},
        turns_own_document=1,
        tokens_if_merged=20,
        sequences=3,
        sequences_lower_bound=3,
        content_dropped={"assistant.tool_calls": 2},
    )
    assert figures_text(with_manifest(shards, tally)) == GOLDEN_FIGURES


def test_large_figures_fit_in_80_columns(tmp_path: Path) -> None:
    long = [Document(number, [1] * 262_144, [(1, [(1, 262_144)])]) for number in range(2)]
    shards = pack(tmp_path, long, [1, 1], seq_len=262_144)
    huge = 10**10
    tally = tally_of(shards, rows_read=huge, rows_dropped={"no_trained_turn": huge, "empty": huge})
    console = plain_console()
    figures = count_figures(with_manifest(shards, tally))
    buckets = tuple(replace(bucket, turns=10**7) for bucket in figures.weight_by_length)
    figures = replace(figures, weight_by_length=buckets, rows=10**7)
    show_figures(figures, console)
    show_overview(figures, console)
    lines = text_of(console).splitlines()
    assert max(map(len, lines)) <= 80
    share = "100.0% ████████"
    assert lines.count(f"  131,072-262,143  10,000,000  {share}  {share}  {share}") == 2


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_the_output_for_a_sequence(tmp_path: Path, alignment: str) -> None:
    first = text_document("Q: a?\nA: b\n\nQ: c?\nA:\td", 9, 12)
    first = first._replace(turns=[*first.turns, (3, [(20, 22)])])
    second = text_document("hi ho", 2, 3)
    shards = pack(
        tmp_path, [first, second], [2], seq_len=40, pad_documents_to=8, alignment=alignment
    )
    assert row_text(shards, 0, CHARACTERS) == (
        "Sequence 0 (of 1, counted from 0): 2 documents, 3 turns, 6 loss tokens\n"
        "⟦…⟧ is trained, ⏎ is a trained line break, ×1/n is the weight of each token\n"
        "\n"
        "── document 1 of 2: dialogue 0, 22 tokens, 2 turns ─────────────────────────────\n"
        "Q: a?\n"
        "A: ⟦b⏎\n"
        "⏎\n"
        "⟧ [message 1: ×1/3]Q: c?\n"
        "A:⟦⇥    d⟧ [message 3: ×1/2]\n"
        "\n"
        "── document 2 of 2: dialogue 0, 5 tokens, 1 turn ───────────────────────────────\n"
        "hi⟦␣⟧ [message 1: ×1/1]ho\n"
        "\n"
        "── padding: 13 positions, 5 of them after documents ────────────────────────────\n"
    )


def test_a_sequence_without_a_tokenizer_is_shown_as_ids(tmp_path: Path) -> None:
    assert row_text(pack(tmp_path), 1) == (
        "Sequence 1 (of 3, counted from 0): 1 document, 1 turn, 4 loss tokens\n"
        "⟦…⟧ is trained, ⏎ is a trained line break, ×1/n is the weight of each token\n"
        "\n"
        "── document 1 of 1: dialogue 2, 9 tokens, 1 turn ───────────────────────────────\n"
        "40 41 42 ⟦43 44⟧ 45 46 ⟦47 48⟧ [message 4: ×1/4]\n"
        "\n"
        "── padding: 7 positions ────────────────────────────────────────────────────────\n"
    )


def test_consecutive_turns_have_different_colours(tmp_path: Path) -> None:
    console = Console(
        width=80,
        force_terminal=True,
        color_system="standard",
        no_color=False,
        file=io.StringIO(),
    )
    show_row(view_row(pack(tmp_path), 0), None, console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "\x1b[32m⟦12⟧\x1b[0m" in shown
    assert "\x1b[35m⟦15 16 17 18 19⟧\x1b[0m" in shown


def test_escapes_and_markup_in_the_text_have_no_effect(tmp_path: Path) -> None:
    text = "[red]a[/red] :smile: \x1b[31m\x07\r\x9b\u202e\u2028⟧ [message 1: x]"
    shards = pack(tmp_path, [text_document(text, 1, len(text))], [1], seq_len=80)
    shown = row_text(shards, 0, CHARACTERS)
    assert (
        r"[⟦red]a[/red] :smile: \x1b[31m\x07\x0d\x9b\u202e\u2028\u27e7 [message 1: x]⟧"
        in shown.replace("\n", "")
    )
    assert not any(character in shown for character in "\x1b\x07\r\x9b\u202e\u2028")


def test_characters_of_scripts_and_emoji_are_not_escaped() -> None:
    text = "می‌خواهم 👩‍👩‍👧 数据 é\n\tπ"
    assert escape(text) == text


def test_escapes_in_the_reasons_of_a_manifest_have_no_effect(tmp_path: Path) -> None:
    shards = pack(tmp_path)
    shown = figures_text(with_manifest(shards, tally_of(shards, rows_dropped={"[b]\x1b[2J": 1})))
    assert r"[b]\x1b[2J 1" in shown


# --- decoding


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a byte-level tokenizer that knows ASCII words and cuts everything else to bytes."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(["the quick brown fox", "jumps over the lazy dog"], trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save(str(folder / "tokenizer.json"))
    return folder


def packed_text(folder: Path, tokenizer_folder: Path, prompt: str, answer: str) -> Shards:
    loaded = load_tokenizer(str(tokenizer_folder))
    ids, trained = (loaded.backend.encode(text).ids for text in (prompt, answer))
    document = Document(0, [*ids, *trained], [(1, [(len(ids), len(ids) + len(trained))])])
    return pack(folder, [document], [1], seq_len=128, tokenizer_sha256=loaded.sha256)


def test_characters_that_several_tokens_share_are_decoded(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    answer = "数据 😀 the fox é\n<|im_end|>"
    shards = packed_text(tmp_path, tokenizer_folder, "où?\n", answer)
    decode, remark = find_decoder(shards, str(tokenizer_folder))
    assert decode is not None
    assert remark is None
    tokens = len(view_row(shards, 0).turns[0].positions)
    assert tokens > len(answer) - len("<|im_end|>")
    assert (f"où?\n⟦数据 😀 the fox é⏎\n<|im_end|>⟧ [message 1: ×1/{tokens}]\n") in row_text(
        shards, 0, decode
    )


def test_the_tokenizer_named_by_the_manifest_is_used(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    shards = packed_text(tmp_path, tokenizer_folder, "a", "b")
    named = with_manifest(shards, tally_of(shards), str(tokenizer_folder / "tokenizer.json"))
    decode, remark = find_decoder(named, None)
    assert decode is not None
    assert decode(view_row(named, 0).token_ids[:2].tolist()) == "ab"
    assert remark is None


@pytest.mark.parametrize("tokenizer", ["somebody/some-model", "gone\0\x1b[2J", "a" * 5000])
def test_without_a_tokenizer_a_remark_names_the_option(tmp_path: Path, tokenizer: str) -> None:
    shards = pack(tmp_path)
    for found in (shards, with_manifest(shards, tally_of(shards), tokenizer)):
        decode, remark = find_decoder(found, None)
        assert decode is None
        assert remark is not None
        assert "--tokenizer" in remark
        assert remark.isprintable()


def test_a_changed_tokenizer_of_the_manifest_is_not_used(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    shards = pack(tmp_path)
    decode, _ = find_decoder(with_manifest(shards, tally_of(shards), str(tokenizer_folder)), None)
    assert decode is None


def test_a_different_tokenizer_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(SetupError, match="packed with another tokenizer"):
        find_decoder(pack(tmp_path), str(tokenizer_folder))


def test_a_tokenizer_is_never_loaded_from_the_network(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no such tokenizer on this machine"):
        find_decoder(pack(tmp_path), "somebody/some-model")


def test_a_space_at_the_start_of_a_decoded_part_is_kept() -> None:
    words = ["▁the", "▁fox", "<0xC3>", "<0xA9>"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({word: number for number, word in enumerate(words)}, [])
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    assert decode_part(backend.decode, [0, 1], []) == "the fox"
    assert decode_part(backend.decode, [1, 2, 3], [0]) == " foxé"
    assert decode_part(backend.decode, [3, 0], [2]) == "� the"
