"""Rows of texts, read in blocks and written by plans, give what rows give that are rendered.

The reference reads each row on its own, and renders it with Jinja.
"""

import json
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtpack.fast_path import REPLAY
from mtpack.input import text_blocks
from mtpack.input.files import describe_input
from mtpack.input.reading import read_splits
from mtpack.input.splits import LinesInMemory, Split
from mtpack.input.text_rows import TextRows
from mtpack.options import PackOptions
from mtpack.running import row_reader, row_renderer
from mtpack.running.pipeline import Pipeline, check_template, load_pipeline
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.tokenize_split import TokenizedSplit, tokenize
from tests.conftest import examples, shared

pytestmark = pytest.mark.usefixtures("learn_everything")

LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {
    "plain": LOOP + PROMPT,
    "not ASCII": (LOOP + PROMPT).replace("{{ m.content }}", "é{{ m.content }}日"),
    "a space before the answer": (LOOP + PROMPT)
    .replace("\n{{ m", " {{ m")
    .replace("assistant\n{%", "assistant {%"),
    "contents twice": (LOOP + PROMPT).replace("{{ m.content }}", "{{ m.content }}{{ m.content }}"),
    "earlier answers are left out": LOOP.replace(
        "{{ m.content }}", "{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}"
    )
    + PROMPT,
    "texts decide": (LOOP + PROMPT).replace("m.content", "m.content.split('</think>')[-1]"),
    "no tools": LOOP.replace("m in messages", "m in messages if m.role != 'tool'") + PROMPT,
}
OPTIONS = {
    "default": {},
    "never": {"merge": "never"},
    "always": {"merge": "always"},
    "error": {"control_tokens": "error"},
    "literal": {"control_tokens": "literal"},
    "last": {"train_turns": "last"},
}


@cache
def load(template: str, option: str, folder: Path) -> Pipeline:
    path = folder / f"{template}.jinja"
    path.write_text(TEMPLATES[template], encoding="utf-8")
    options = PackOptions(chat_template=str(path), date="2026-01-01", **OPTIONS[option])
    loaded = load_pipeline(options)
    check_template(loaded)
    return loaded


def tokenize_row_by_row(pipeline: Pipeline, split: Split) -> TokenizedSplit:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_reader, "read_text_rows", lambda pieces, rows: TextRows.of([]))
        patch.setattr(row_renderer, "_has_text_columns", lambda dialogue: False)
        return tokenize(pipeline.without([REPLAY]), split, Stopwatch())


def check(pipeline: Pipeline, split: Split) -> TokenizedSplit:
    expected = tokenize_row_by_row(pipeline, split)
    for _ in range(2):  # the second time, all plans are known
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_blocks, "_LEAST_ROWS", 1)
            found = tokenize(pipeline, split, Stopwatch())
        for field in fields(found.batch):
            left, right = (getattr(each.batch, field.name) for each in (found, expected))
            if left is None or right is None:  # the weights of turns, which these have not
                assert left is right
                continue
            assert left.dtype == right.dtype
            assert np.array_equal(left, right), field.name
        assert found.row_turns.tolist() == expected.row_turns.tolist()
        assert found.rejects == expected.rejects
        assert found.counts == expected.counts
        assert found.warnings == expected.warnings
    return found


TEXTS = ["Hi", "So.", "日本", "é" * 3, "", " ", "\n\u3000", " a", "a ", "<", "<|im_end|>", "<|im_"]
TEXTS += ["<think>\nx\n</think>\n\ny", "</think>", "\ufdd0", "\u0085", "end|>", "a<|im_start|>b"]
contents = st.one_of(*[st.sampled_from(["Hi", "So.", "日本"])] * 6, st.sampled_from(TEXTS))
usual = st.sampled_from(
    [
        ("user", "assistant"),
        ("system", "user", "assistant", "user", "assistant"),
        ("user", "assistant", "user"),
        ("user", "user", "assistant", "assistant"),
    ]
)
roles = st.one_of(usual, usual, usual, st.sampled_from([("user", "tool", "assistant"), ("user",)]))


@st.composite
def row_lines(draw) -> str:
    messages = [{"role": role, "content": draw(contents)} for role in draw(roles)]
    row: object = {"messages": messages}
    match draw(st.integers(0, 20)):
        case 0:
            messages[-1]["train"] = False
        case 1:
            messages[0]["content"] = [{"type": "text", "text": "Hi"}]
        case 2:
            row = {"system": "Be.", "messages": messages, "mood": "good"}
        case 3:
            row = {"enable_thinking": False, "messages": messages}
        case 4:
            row = messages
        case 5:
            row = {"messages": [*messages, {"role": "bot", "content": "Hi"}]}
        case 6:
            return "{"
        case 7 | 8 | 9:
            row = {"id": draw(st.sampled_from([1, "a", True])), "messages": messages}
    return json.dumps(row, ensure_ascii=draw(st.booleans()))


@pytest.mark.parametrize(
    ("template", "option"),
    [*((template, "default") for template in TEMPLATES), *(("plain", name) for name in OPTIONS)]
    + [("earlier answers are left out", name) for name in OPTIONS],
)
@given(st.lists(row_lines(), min_size=8, max_size=30), st.sampled_from(["\n", "\r\n", "\n\n"]))
@settings(max_examples=examples(40), suppress_health_check=[*HealthCheck])
def test_rows_give_the_same_in_blocks_and_rendered_one_by_one(
    tmp_path_factory, template, option, lines, separator
):
    pipeline = load(template, option, tmp_path_factory.getbasetemp())
    text = separator.join(lines).encode()
    piece = LinesInMemory("rows.jsonl", "messages", 1, text, 2**20)
    check(pipeline, Split("0", (piece,)))


@pytest.mark.parametrize("engine", ["tokenizers", "fastokens"])
@pytest.mark.parametrize("name", ["bench_en.jsonl.gz", "bench_zh.jsonl.gz"])
def test_rows_of_real_files_give_the_same_in_blocks_and_one_by_one(tmp_path, name, engine):
    pipeline = load("plain", "default", tmp_path)
    pipeline = replace(pipeline, options=replace(pipeline.options, tokenizer_engine=engine))
    file = describe_input(name, str(shared(f"data/{name}")))
    splits = iter(read_splits([file]))
    split = next(splits)
    (piece,) = split.found_rows
    rows = map(piece.row, range(40))
    text = b"\n".join(row.text or b"" for row in rows)
    found = check(pipeline, Split("0", (LinesInMemory(name, "messages", 1, text, 2**20),)))
    assert found.batch.num_documents == 40


def test_texts_above_the_size_of_a_batch_are_encoded_apart_and_stay_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(row_renderer, "BYTES_PER_BATCH", 300)
    pair = [{"role": "user", "content": "Hi " * 9}, {"role": "assistant", "content": "So."}]
    odd = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So.", "name": "A"}]
    rows = [{"messages": odd if number % 5 == 2 else pair * 2} for number in range(30)]
    text = "\n".join(map(json.dumps, rows)).encode()
    for option in ("default", "never"):
        split = Split("0", (LinesInMemory("rows.jsonl", "messages", 1, text, 2**20),))
        found = check(load("plain", option, tmp_path), split)
        assert sorted({*found.batch.document_rows.tolist()}) == list(range(30))


def test_a_row_that_may_be_above_the_limit_of_replays_is_rendered(tmp_path, monkeypatch):
    monkeypatch.setattr("mtpack.template.tracing.planned_rows.MAX_CHARACTERS", 100)
    contents = ["Hi " * number for number in (1, 2, 5, 8, 11, 20, 50, 100)] * 2
    rows = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "So."}]
        for text in contents
    ]
    text = "\n".join(json.dumps({"messages": row}) for row in rows).encode()
    split = Split("0", (LinesInMemory("rows.jsonl", "messages", 1, text, 2**20),))
    for template in ("plain", "contents twice"):
        check(load(template, "default", tmp_path), split)
