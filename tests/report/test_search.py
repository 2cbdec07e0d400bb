"""`inspect --dialogue`, `--find` and `--turns` find what a naive search finds."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from mtpack.cli import main
from mtpack.errors import InputError, SetupError
from mtpack.report.decoding import find_decoder
from mtpack.report.extreme_turns import find_extreme_turns
from mtpack.report.search import find_dialogue, find_text
from mtpack.report.search_view import show_extreme_turns, show_occurrences
from mtpack.report.token_bytes import build_token_bytes
from mtpack.shards.dataset import open_shards
from mtpack.tokenizer.loading import load_tokenizer
from tests.support.inspected import (
    ALIGNMENTS,
    CHARACTERS,
    Document,
    pack,
    plain_console,
    random_documents,
    text_document,
    text_of,
)

GOLDEN_FOUND = """\
2 documents with this text

── sequence 0, document 1: dialogue 0, trained in message 1, 2 times ───────────
  Q: a?⏎A: ⟪b c⟫⏎b c

── sequence 0, document 2: dialogue 0, not trained ─────────────────────────────
  a ⟪b c⟫ d

--dialogue or --row shows a whole one
"""
GOLDEN_TURNS = """\
Of 5 turns, those with the most and the least weight

Most weight for each token: the shortest
  sequence  dialogue  message   token  token  dialogue
                               weight   mean      mean  text
         0         0        1     1/1   0.25     0.208
         0         2        2     1/3   0.75      1.25

Least weight for each token: the longest
  sequence  dialogue  message   token  token  dialogue
                               weight   mean      mean  text
         2         5        1     1/7   1.75      1.25
         0         0        3     1/5   1.25      1.04

token weight: of each loss token, under turn mean, where every turn has 1.
token mean, dialogue mean: the weight of the whole turn, if 1 is the average.
"""


def places_of_dialogues(documents: list[Document], sequences: list[int]) -> dict[int, Any]:
    """Return the sequence and the index in it of each document, by dialogue."""
    places: dict[int, list[tuple[int, int]]] = {}
    numbers = iter(documents)
    for sequence, count in enumerate(sequences):
        for index in range(count):
            places.setdefault(next(numbers).dialogue, []).append((sequence, index))
    return places


# --- dialogues


@pytest.mark.parametrize("pad_documents_to", [1, 4])
def test_a_dialogue_is_found_with_all_its_documents(tmp_path: Path, pad_documents_to: int) -> None:
    documents, sequences = random_documents()
    shards = pack(tmp_path, documents, sequences, seq_len=64, pad_documents_to=pad_documents_to)
    for dialogue, places in places_of_dialogues(documents, sequences).items():
        found = find_dialogue(shards, dialogue)
        assert [(view.number, number) for view, number in found] == places
        assert {view.documents[number].dialogue for view, number in found} == {dialogue}


@pytest.mark.parametrize("dialogue", [1, -1, 10**30])
def test_a_dialogue_that_is_in_no_sequence_is_refused(tmp_path: Path, dialogue: int) -> None:
    with pytest.raises(SetupError, match=rf"--dialogue {dialogue}: in no sequence"):
        find_dialogue(pack(tmp_path), dialogue)


# --- texts


def found_text(shards: Any, text: str) -> str:
    console = plain_console()
    found = find_text(shards, text, CHARACTERS, 8)
    show_occurrences(found, has_more=False, console=console)
    return text_of(console)


def test_found_documents_show_the_text_and_whether_it_is_trained(tmp_path: Path) -> None:
    documents = [text_document("Q: a?\nA: b c\nb c", 9, 16), text_document("a b c d", 6, 7)]
    shards = pack(tmp_path, documents, [2], seq_len=40)
    assert found_text(shards, "b c") == GOLDEN_FOUND


def test_a_search_finds_what_a_naive_search_finds(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    texts = ["".join(generator.choice(list("abc "), 20)) for _ in range(40)]
    documents = [text_document(text, 10, 20)._replace(dialogue=n) for n, text in enumerate(texts)]
    shards = pack(tmp_path, documents, [2] * 20, seq_len=40)
    for text in ("a", "ab", "abc", "b c", "caab"):
        found = find_text(shards, text, CHARACTERS, 100)
        expected = [
            (number // 2, number % 2, whole.count(text), 1 if whole.index(text) >= 10 else None)
            for number, whole in enumerate(texts)
            if text in whole
        ]
        assert [(one.sequence, one.document, one.times, one.message) for one in found] == expected
        assert all(one.before + one.text + one.after == texts[one.dialogue] for one in found)
        assert find_text(shards, text, CHARACTERS, 3) == found[:3]


def test_bytes_find_what_decoding_finds(tmp_path: Path) -> None:
    texts = ("春风又绿江南岸", "où? 👩‍👩‍👧 ❤️", "the fox\n\n", "<|im_end|> x", "数", "é")
    rows = [
        {"messages": [{"role": "user", "content": a + b}, {"role": "assistant", "content": b + a}]}
        for a in texts
        for b in texts
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = ["pack", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "packed"), "--quiet"]
    options = ["--seq-len", "256", "--pad-documents-to", "8"]
    done = CliRunner().invoke(main, arguments + options)
    assert done.exit_code == 0, done.output
    shards = open_shards(tmp_path / "packed")
    decoder, _ = find_decoder(shards, None)
    assert decoder is not None
    assert decoder.load_token_bytes() is not None
    slow = replace(decoder, load_token_bytes=lambda: None)
    times = 0
    for text in (
        *texts,
        "<|im_start|>user",
        "\u200d",
        "<|im_end|>",
        "<|endoftext|>",
        "�",
        "zz",
        "x",
        "\n",
    ):
        found = find_text(shards, text, decoder, 1000)
        assert found == find_text(shards, text, slow, 1000)
        times += len(found)
    assert times > 100


def test_ids_that_the_vocabulary_does_not_have_are_no_text() -> None:
    tokenizer = load_tokenizer(None)
    token_bytes = build_token_bytes(tokenizer)
    assert token_bytes is not None
    ids = [10**6, *tokenizer.backend.encode("où 数据<|im_end|>").ids, 2**31 - 1]
    content, positions = token_bytes.join(np.array(ids, np.int32))
    assert content.decode() == tokenizer.backend.decode(ids, skip_special_tokens=False)
    assert positions.tolist()[-2:] == [len(content)] * 2


def test_nothing_found_is_said(tmp_path: Path) -> None:
    assert found_text(pack(tmp_path), "zzz") == (
        "No document holds this text; upper and lower case are different.\n"
    )


@pytest.mark.parametrize("text", ["", "a\udcff"])
def test_what_is_no_text_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SetupError, match="--find: name a text of at least one character"):
        find_text(pack(tmp_path), text, CHARACTERS, 8)


def test_a_found_line_is_safe_and_fits(tmp_path: Path) -> None:
    for text in (
        "数据" * 40 + "x⟫\x1b[2J\u202e" + "👩‍👩‍👧" * 40,
        "❤️" * 60 + "x" * 100,
        "e\u0301" * 60 + "x" + "\n\t" * 60,
    ):
        shards = pack(tmp_path, [text_document(text, 1, len(text))], [1], seq_len=512)
        shown = found_text(shards, "x")
        assert "⟪x⟫" in shown
        assert re.search(r"^  …?.*⟪x⟫.*…$", shown, re.MULTILINE)
        assert not any(one in shown for one in "\x1b\u202e")
        assert max(map(cell_len, shown.splitlines())) <= 80


@pytest.mark.parametrize("search", ["dialogue", "text", "turns"])
def test_a_damaged_shard_is_refused_by_every_search(tmp_path: Path, search: str) -> None:
    lengths = np.array([10, 4, 3, 9, 7, 8, 8], np.int32)
    shards = pack(tmp_path, seq_lengths=lengths)
    searches: dict[str, Any] = {
        "dialogue": lambda: find_dialogue(shards, 0),
        "text": lambda: find_text(shards, "a", CHARACTERS, 8),
        "turns": lambda: find_extreme_turns(shards, 8),
    }
    with pytest.raises(InputError, match=r"aligned\.arrow: damaged: .*; pack the data again"):
        searches[search]()


def test_negative_ids_are_damage(tmp_path: Path) -> None:
    shards = pack(tmp_path, input_ids=np.full((3, 16), -1, np.int32))
    with pytest.raises(InputError, match="damaged: a token id is negative"):
        find_text(shards, "a", CHARACTERS, 8)


# --- turns


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("pad_documents_to", [1, 4])
def test_extreme_turns_are_those_of_a_naive_count(
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
    numbers = iter(documents)
    turns = []
    for sequence, count in enumerate(sequences):
        inside = [next(numbers) for _ in range(count)]
        own = [(document, *turn) for document in inside for turn in document.turns]
        for index, (document, message, spans) in enumerate(own):
            length = sum(end - start for start, end in spans)
            whole = sum(end - start for _, each in document.turns for start, end in each)
            turns.append((sequence, index, document.dialogue, message, length, whole))
    found = find_extreme_turns(shards, 6)

    def values(entries: Any) -> list[tuple[int, ...]]:
        return [
            (one.sequence, one.turn, one.dialogue, one.message, one.loss_tokens, one.in_document)
            for one in entries
        ]

    assert values(found.shortest) == sorted(turns, key=lambda turn: turn[4])[:6]
    assert values(found.longest) == sorted(turns, key=lambda turn: -turn[4])[:6]
    total = sum(turn[4] for turn in turns)
    assert (found.turns, found.weights["token_mean"]) == (len(turns), total)
    for entry in (*found.shortest, *found.longest):
        assert found.weigh(entry) == {
            "turn_mean": 1,
            "token_mean": pytest.approx(entry.loss_tokens / (total / len(turns))),
            "dialogue_mean": pytest.approx(
                entry.loss_tokens / entry.in_document / (len(documents) / len(turns))
            ),
        }


def test_the_output_for_turns(tmp_path: Path) -> None:
    shards = pack(tmp_path)
    console = plain_console()
    show_extreme_turns(find_extreme_turns(shards, 2), shards, None, console)
    assert text_of(console) == GOLDEN_TURNS


def test_turns_with_text_fit_in_80_columns(tmp_path: Path) -> None:
    text = "数据👩‍👩‍👧❤️\n\x1b" * 40
    document = text_document(text, 1, len(text))._replace(dialogue=10**7)
    shards = pack(tmp_path, [document], [1], seq_len=1024)
    console = plain_console()
    show_extreme_turns(find_extreme_turns(shards, 2), shards, CHARACTERS, console)
    assert "\x1b" not in text_of(console)
    assert max(map(cell_len, text_of(console).splitlines())) <= 80


# --- the command


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("search")
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (("tea?", "yes, tea"), ("cake?", "no"))
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = ["pack", str(folder / "rows.jsonl"), "-o", str(folder / "packed"), "--quiet"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return str(folder / "packed")


def inspect(output: str, *arguments: str) -> str:
    done = CliRunner().invoke(main, ["inspect", output, *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_finds_dialogues_texts_and_turns(output: str) -> None:
    assert inspect(output, "--dialogue", "1").startswith("Dialogue 1: 1 document, 1 turn")
    assert "⟦no<|im_end|>⟧ [message 1: ×1/2]" in inspect(output, "--dialogue", "1")
    assert "¦" in inspect(output, "--dialogue", "0", "--tokens")
    assert "¦" in inspect(output, "--row", "0", "--tokens")
    assert "trained in message 1" in inspect(output, "--find", "yes")
    assert "there are more" not in inspect(output, "--find", "yes", "--limit", "1")
    assert inspect(output, "--find", "a", "--limit", "1").startswith(
        "1 document with this text; there are more\n"
    )
    assert "1/2" in inspect(output, "--turns")


def test_json_has_what_the_terminal_shows(output: str) -> None:
    (document,) = json.loads(inspect(output, "--dialogue", "1", "--json"))["documents"]
    assert (document["dialogue"], len(document["turns"])) == (1, 1)
    assert document["length"] == len(document["input_ids"])
    found = json.loads(inspect(output, "--find", "cake", "--json"))
    assert found["has_more"] is False
    (found,) = found["found"]
    assert (found["dialogue"], found["message"], found["times"]) == (1, None, 1)
    turns = json.loads(inspect(output, "--turns", "--limit", "1", "--json"))
    assert turns["shortest"][0]["token_weight"] == 1 / 2
    assert turns["turns"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", "0", "--turns"], "--row and --turns: name one of them"),
        (["--full", "--find", "a"], "--full and --find: name one of them"),
        (["--tokens"], "--tokens: only with --row or --dialogue"),
        (["--dialogue", "7"], "--dialogue 7: in no sequence"),
        (["--find", ""], "--find: name a text of at least one"),
    ],
)
def test_what_can_not_be_shown_is_refused(output: str, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["inspect", output, *arguments])
    assert done.exit_code == 2
    assert message in done.stderr
