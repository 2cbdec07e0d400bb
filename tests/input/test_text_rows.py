"""Rows of texts as columns: what is looked for in all texts at once is what each text has."""

import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mtpack.input.dialogue import Dialogue, Origin, make_dialogue
from mtpack.input.text_rows import TextRows, Texts

SPACES = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
OTHERS = ["a", "é", "あ", "、", "\u200b", "\u2800", "\ufeff", "\0", "</think>", "</thi", "nk>", "ﷰ"]
texts = st.lists(st.sampled_from([*SPACES, *OTHERS]), max_size=3).map("".join)


def make_rows(contents: list[list[str]]) -> tuple[TextRows, list[Dialogue]]:
    dialogues = [
        make_dialogue(
            3 * row, Origin("a", 1), [{"role": "user", "content": text} for text in row_texts]
        )
        for row, row_texts in enumerate(contents)
    ]
    return TextRows.of(dialogues), dialogues


@given(st.lists(st.lists(texts, min_size=1, max_size=4), min_size=1, max_size=8))
def test_rows_are_found_by_what_a_text_has(contents):
    rows, _ = make_rows(contents)
    found = rows.find_rows_with_blank().tolist()
    assert found == [any(not text.strip() for text in row) for row in contents]
    found = rows.find_rows_with("</think>").tolist()
    assert found == [any("</think>" in text for text in row) for row in contents]
    found = rows.find_rows_where(
        "あé".encode()[:1] + "é".encode()[:1], lambda t: "é" in t or "あ" in t
    )
    assert found.tolist() == [any("é" in t or "あ" in t for t in row) for row in contents]


def test_each_white_space_makes_a_blank_text_and_nothing_else_does():
    for character in [*SPACES, *OTHERS]:
        rows, _ = make_rows([[character], ["a", character], ["a"]])
        is_blank = character in SPACES
        assert rows.find_rows_with_blank().tolist() == [is_blank, is_blank, False]


@given(st.binary(max_size=9).map(lambda content: content.hex()))
def test_pairs_of_bytes_are_found_at_any_place(text):
    for pair in (b"00", b"ab", b"f0"):
        assert Texts.of([text]).have_pair(pair) == (pair.decode() in text)


@given(st.lists(st.lists(texts, min_size=1, max_size=4), max_size=8), st.data())
def test_columns_that_are_joined_and_taken_keep_what_each_row_says(contents, data):
    rows, dialogues = make_rows(contents)
    cut = data.draw(st.integers(0, len(contents)))
    joined = TextRows.join([TextRows.of(dialogues[cut:]), TextRows.of(dialogues[:cut])])
    assert joined.rows.tolist() == rows.rows.tolist()
    taken = joined.take(np.arange(len(contents))[::2])
    for index, dialogue in enumerate(dialogues[::2]):
        start = int(taken.starts[index])
        found = [taken.contents[start + number] for number in range(int(taken.lengths[index]))]
        assert found == [message["content"] for message in dialogue.messages]
        assert taken.list_roles(index) == dialogue.roles
