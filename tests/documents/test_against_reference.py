"""Documents and loss tokens equal those of the slow reference, for every `--merge`."""

import gzip
import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from mtpack.template.loading import load_chat_template
from mtpack.template.tracing.replayer import Replayer
from mtpack.tokenizer.loading import EMBEDDED_FOLDER, load_tokenizer
from tests.conftest import SAMPLE_DATA, SHARED, shared
from tests.support.template_facts import CHATML, MINIMIND, PHI, QWEN_3
from tests.support.template_table import (
    MERGES,
    CachedReference,
    LoadedTemplate,
    as_dialogue,
    compute_reference_documents,
    list_flags,
    pack,
    refuse,
)

TOKENIZERS = {
    "embedded": CHATML,
    "qwen3": QWEN_3,
    "minimind": MINIMIND,
    "phi-3-mini": replace(PHI, closing="<|endoftext|>"),
}
SAMPLE_FILES = sorted(path.name for path in SAMPLE_DATA.glob("*.jsonl"))
SHARED_FILES = (
    "bench_en.jsonl.gz",
    "bench_zh.jsonl.gz",
    "glaive_toolcall_en.jsonl",
    "glaive_toolcall_zh.jsonl",
    "reason_tool_use.jsonl",
    "tools_long_en.jsonl.gz",
)
NUM_DIALOGUES = 120


@cache
def load(name: str) -> tuple[LoadedTemplate, list[Replayer]]:
    folder = EMBEDDED_FOLDER if name == "embedded" else shared(f"tokenizers/{name}")
    tokenizer = load_tokenizer(str(folder))
    template = load_chat_template(tokenizer, None, (), "2026-01-01")
    replayers = [Replayer(template, tokenizer.added_tokens, merge) for merge in MERGES]
    reference = CachedReference(folder, TOKENIZERS[name])
    return LoadedTemplate(reference, tokenizer, template), replayers


def draw_lines(path: Path) -> list[tuple[int, bytes]]:
    """Return lines of a file, drawn by a seed, each with its number."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        lines = list(enumerate(file, 1))
    return random.Random(path.name).sample(lines, min(NUM_DIALOGUES, len(lines)))


def compare(name: str, path: Path) -> None:
    loaded, replayers = load(name)
    for line, text in draw_lines(path):
        row = json.loads(text)
        dialogue = as_dialogue(row, loaded.template)
        for replayer in replayers:
            expected = compute_reference_documents(loaded.reference, row, replayer.merge)
            rendered = refuse(loaded, dialogue) or replayer.render_dialogue(dialogue)
            found = pack(loaded, rendered, replayer.merge)
            where = f"{path.name} line {line}, --merge {replayer.merge}"
            assert found == expected, where
            assert list_flags([found]) == list_flags([expected]), where
        loaded.reference.rendered.clear()


@pytest.mark.oracle
@pytest.mark.parametrize("file", SAMPLE_FILES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_documents_of_sample_dialogues_equal_the_reference(name, file):
    compare(name, SAMPLE_DATA / file)


@pytest.mark.oracle
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared, which does not exist")
@pytest.mark.parametrize("file", SHARED_FILES)
@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "embedded"])
def test_documents_of_real_dialogues_equal_the_reference(name, file):
    compare(name, shared(f"data/{file}"))
