"""Rows of plain text: a document without a template, of which all tokens but the first are trained.

The reference encodes the text of a row with the tokenizer itself.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import mtpack
from mtpack.documents.plain_text import cut_texts, find_end_of_text
from mtpack.errors import InputError, SetupError
from mtpack.input.dialogue import Dialogue, Origin, Reject
from mtpack.input.plain_text import read_plain_text
from mtpack.options import PackOptions
from mtpack.token_batch import TokenBatch, offsets_from_lengths
from mtpack.tokenizer.loading import EMBEDDED_FOLDER, load_tokenizer
from mtpack.verify.structure import check_structure
from tests.support.packed_texts import iterate_documents

TEXTS = [
    "A page about the sea.",
    "  It begins with white space, and ends with it.\n\n",
    "\u4e00\u4e9b\u4e2d\u6587\u3002",
    "No assistant, user: or {{ template }} here. " * 20,
    "x",
    "\U0001f600" * 9,
]
SEQ_LEN = 32
TOKENIZER = tokenizers.Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))
END = find_end_of_text(load_tokenizer(None))


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text + END, add_special_tokens=False).ids


def pack(folder: Path, texts: list[Any], **options: Any) -> mtpack.PackReport:
    rows = [each if isinstance(each, dict) else {"text": each} for each in texts]
    path = folder / "texts.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    settings = {"format": "text", "seq_len": 1024, "workers": 1, **options}
    report = mtpack.pack(path, output=folder / "packed", **settings)
    assert check_structure(mtpack.open_shards(folder / "packed")).violation is None
    return report


def documents_in(folder: Path) -> dict[int, list[tuple[list[int], list[int]]]]:
    """Return the ids and the loss mask of the documents of each row, in order."""
    found: dict[int, list[tuple[list[int], list[int]]]] = {}
    for row in mtpack.open_shards(folder / "packed"):
        for dialogue, start, end in iterate_documents(row):
            document = [row[name][start:end].tolist() for name in ("input_ids", "loss_mask")]
            found.setdefault(dialogue, []).append((document[0], document[1]))
    return found


def test_a_text_is_its_tokens_and_one_that_ends_it_and_all_but_the_first_are_trained(tmp_path):
    report = pack(tmp_path, TEXTS)
    found = documents_in(tmp_path)
    for number, text in enumerate(TEXTS):
        ids = encode(text)
        assert TOKENIZER.id_to_token(ids[-1]) == END
        assert found[number] == [(ids, [0] + [1] * (len(ids) - 1))]
    assert report.tally.turns_packed == report.tally.documents == len(TEXTS)
    assert report.tally.loss_tokens == report.tally.tokens - len(TEXTS)
    assert (report.about.rendered, report.about.replayed) == (0, 0)


def test_a_blank_text_is_dropped_and_counted(tmp_path):
    report = pack(tmp_path, ["", " \n", "Here."])
    assert report.tally.rows_dropped == {"no_turn": 2}
    assert report.tally.rows_packed == 1


def test_a_run_on_blank_texts_says_so(tmp_path):
    with pytest.raises(InputError, match="nothing to pack: all texts are blank\ngive files"):
        pack(tmp_path, [" "])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"txt": "a"},
            'the row has no "text", and the file is read as plain text; its keys are "txt"',
        ),
        ({}, 'the row has no "text", and the file is read as plain text; it has no keys'),
        (
            {"text": None},
            'the row has no "text", and the file is read as plain text; it has no keys',
        ),
        ({"text": 3}, '"text" must be a string, found a number'),
        (["a"], "the row must be an object, found a list"),
    ],
)
def test_a_row_without_a_text_is_rejected(row, reason):
    found = read_plain_text(0, Origin("a", 1), json.dumps(row).encode(), 100)
    assert isinstance(found, Reject)
    assert (found.reason, found.detail) == ("invalid_row", reason)


def test_json_is_as_strict_as_elsewhere():
    for text, reason in ((b'{"text": 1, "text": 2}', "duplicate_key"), (b"{", "invalid_json")):
        found = read_plain_text(0, Origin("a", 1), text, 100)
        assert isinstance(found, Reject)
        assert found.reason == reason
    assert str(read_plain_text(0, Origin("a", 1), None, 100)).startswith("a line 1: line_too_long")


def test_other_keys_of_a_row_are_counted_as_never_read(tmp_path):
    row = {"text": "Here.", "url": "x", "meta": None}
    found = read_plain_text(0, Origin("a", 1), json.dumps(row).encode(), 100)
    assert isinstance(found, Dialogue)
    assert found.unread == ("url",)
    assert pack(tmp_path, [row, {"text": "b", "url": "c"}]).tally.never_read == {"url": 2}


LONG = "one two three four five six seven eight nine ten " * 12


@pytest.mark.parametrize("workers", [1, 2])
def test_split_cuts_a_long_text_and_trains_each_token_once(tmp_path, workers):
    report = pack(tmp_path, ["Short.", LONG], overlong="split", seq_len=SEQ_LEN, workers=workers)
    ids, parts = encode(LONG), sorted(documents_in(tmp_path)[1], key=lambda part: -len(part[0]))
    assert all(mask == [0] + [1] * (len(part) - 1) for part, mask in parts)
    cuts = [ids[start : start + SEQ_LEN] for start in range(0, len(ids) - 1, SEQ_LEN - 1)]
    assert sorted(part for part, _ in parts) == sorted(cuts)
    assert sum(len(part) - 1 for part, _ in parts) == len(ids) - 1
    assert report.tally.turns_read == report.tally.turns_packed == 1 + len(parts)
    report.tally.check()


@pytest.mark.parametrize("policy", ["turns", "drop"])
def test_a_long_text_is_one_turn_that_is_dropped(tmp_path, policy):
    report = pack(tmp_path, ["Short.", LONG], overlong=policy, seq_len=SEQ_LEN)
    assert report.tally.turns_dropped == {"overlong": 1}
    assert set(documents_in(tmp_path)) == {0}


def test_truncate_keeps_the_start_of_a_long_text(tmp_path):
    pack(tmp_path, ["Short.", LONG], overlong="truncate", seq_len=SEQ_LEN)
    ((ids, mask),) = documents_in(tmp_path)[1]
    assert ids == encode(LONG)[:SEQ_LEN]
    assert mask == [0] + [1] * (SEQ_LEN - 1)


def test_error_rejects_a_long_text(tmp_path):
    report = pack(tmp_path, ["Short.", LONG], overlong="error", on_error="skip", seq_len=SEQ_LEN)
    assert report.tally.rows_rejected == {"overlong": 1}


SPELLED = "Say <|im_end|> and go on."


def test_a_control_token_that_a_text_spells_is_kept_and_counted(tmp_path):
    report = pack(tmp_path, [SPELLED])
    assert documents_in(tmp_path)[0][0][0] == encode(SPELLED)
    assert report.tally.control_tokens == 1


def test_a_control_token_that_a_text_spells_is_ordinary_text_under_literal(tmp_path):
    report = pack(tmp_path, [SPELLED, "Other."], control_tokens="literal")
    ((ids, _),) = documents_in(tmp_path)[0]
    control = TOKENIZER.token_to_id("<|im_end|>")
    assert control not in ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == SPELLED + END
    assert ids[-1] == encode("")[0]
    assert report.tally.control_tokens_literal == 1


def test_a_control_token_that_a_text_spells_is_a_bad_row_under_error(tmp_path):
    with pytest.raises(InputError, match=r"texts\.jsonl line 1: control_token: the text spells"):
        pack(tmp_path, [SPELLED], control_tokens="error")


def batch_of_texts(lengths: list[int]) -> TokenBatch:
    one_each = np.arange(len(lengths) + 1, dtype=np.int64)
    return TokenBatch(
        ids=np.arange(sum(lengths), dtype=np.int32),
        document_offsets=offsets_from_lengths(np.array(lengths, np.int64)),
        document_rows=one_each[:-1],
        turn_offsets=one_each,
        turn_messages=np.zeros(len(lengths), np.int32),
        turn_flags=np.zeros(len(lengths), np.uint8),
        span_offsets=one_each,
        span_starts=np.ones(len(lengths), np.int32),
        span_ends=np.array(lengths, np.int32),
    )


@given(st.lists(st.integers(2, 40), max_size=6), st.integers(2, 20))
def test_the_parts_of_texts_fit_and_cover_them(lengths, seq_len):
    batch = batch_of_texts(lengths)
    parts = cut_texts(batch, seq_len)
    if max(lengths, default=0) <= seq_len:
        assert parts is batch
    trained: list[int] = []
    for number in range(parts.num_documents):
        start, end = parts.document_offsets[number : number + 2]
        assert 2 <= end - start <= seq_len
        assert parts.turn_ends[number] == end - start
        trained += parts.ids[start + 1 : end].tolist()
    firsts = batch.document_offsets[:-1].tolist()
    keys = zip(parts.document_rows.tolist(), parts.turn_messages.tolist(), strict=True)
    assert len(set(keys)) == parts.num_documents
    assert trained == [number for number in batch.ids.tolist() if number not in firsts]


@pytest.mark.parametrize(
    ("control", "eos", "end"),
    [
        (["<|im_end|>", "<|endoftext|>"], "<|im_end|>", "<|endoftext|>"),  # Qwen
        (["<|end_of_text|>", "<|eot_id|>"], "<|eot_id|>", "<|end_of_text|>"),  # Llama 3
        (["</s>", "[INST]"], "</s>", "</s>"),  # Mistral
        (["<eos>", "<end_of_turn>"], "<eos>", "<eos>"),  # Gemma
        (["<done>"], "<done>", "<done>"),
    ],
)
def test_the_end_of_a_text_is_that_of_base_models(tmp_path, control, eos, end):
    write_tokenizer(tmp_path, control, eos)
    assert find_end_of_text(load_tokenizer(str(tmp_path))) == end


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path):
    write_tokenizer(tmp_path, [], None)
    with pytest.raises(SetupError, match="the tokenizer has no end-of-text token"):
        find_end_of_text(load_tokenizer(str(tmp_path)))


def write_tokenizer(folder: Path, control: list[str], eos: str | None) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.add_special_tokens(control)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {} if eos is None else {"eos_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_plain_text_is_never_detected(tmp_path):
    assert PackOptions().format == "auto"
    with pytest.raises(InputError, match="invalid_row"):
        pack(tmp_path, ["Here."], format="auto")
