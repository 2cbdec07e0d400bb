"""Replays of real dialogues are what rendering them gives, and nearly all dialogues are replayed.

The slow test goes over every template and every row, which takes hours; the quick one over
a seeded tenth of one file for each template. Both print what became of them with `-s`:

    python -m pytest -m slow -s tests/template/tracing/test_real_data.py
"""

import gzip
import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache

import pytest

from mtpack.input.dialogue import Dialogue, Origin, Reject
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import read_dialogue
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.tracing.replayer import Replayer
from mtpack.template.turn_spans import RenderedDialogue, render_dialogue
from mtpack.tokenizer.added_tokens import AddedTokens
from mtpack.tokenizer.loading import load_tokenizer
from tests.conftest import shared
from tests.template.test_chat_template import TEMPLATES, compiled

MERGES = ("auto", "always", "never")

BENCHMARKS = ("bench_en.jsonl.gz", "bench_zh.jsonl.gz")
TOOL_FILES = (
    "glaive_toolcall_en.jsonl",
    "glaive_toolcall_zh.jsonl",
    "reason_tool_use.jsonl",
    "tools_long_en.jsonl.gz",
)
FILES = (*BENCHMARKS, *TOOL_FILES)


@dataclass
class Figures:
    """What became of the dialogues of a file."""

    replayed: int = 0
    first: int = 0
    """Rendered, and replayed when they come again: the first of their shape."""
    declined: int = 0
    """Rendered, and rendered again."""
    refused: int = 0

    def row(self, template: str, file: str) -> str:
        """Return a line of the table."""
        return f"{template:52} {file:24}" + "".join(f"{figure:9}" for figure in astuple(self))


HEADER = f"{'template':52} {'file':24}{'replayed':>9}{'first':>9}{'declined':>9}{'refused':>9}"


@cache
def dialogues_of(file: str) -> list[Dialogue]:
    path = shared(f"data/{file}")
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        rows = [
            read_dialogue(row, Origin(file, row + 1), line.rstrip(), LINE_LIMIT)
            for row, line in enumerate(lines)
        ]
    return [row for row in rows if isinstance(row, Dialogue)]


@cache
def added_tokens() -> AddedTokens:
    return load_tokenizer(str(shared("tokenizers/qwen3"))).added_tokens


def rendered(replayer: Replayer, dialogue: Dialogue) -> tuple[RenderedDialogue | Reject, bool]:
    """Return what a replayer gives, and whether it replayed that."""
    replayed = replayer.replayed
    found = replayer.render_dialogue(dialogue)
    return found, replayer.replayed > replayed


def replay_all(
    template: ChatTemplate, dialogues: Sequence[Dialogue], sample: Sequence[Dialogue]
) -> Figures:
    """Replay dialogues, compare the text of each, and everything about those of a sample."""
    replayers = {merge: Replayer(template, added_tokens(), merge) for merge in MERGES}
    figures = Figures()
    for dialogue in dialogues:
        found, was_replayed = rendered(replayers["auto"], dialogue)
        if was_replayed:
            assert isinstance(found, RenderedDialogue)
            text = template.render(dialogue.messages, dialogue.tools)
            assert found.merged.text == text, str(dialogue.origin)
            figures.replayed += 1
        elif isinstance(found, Reject):
            figures.refused += 1
        elif rendered(replayers["auto"], dialogue)[1]:
            figures.first += 1
        else:
            figures.declined += 1
    assert replayers["auto"].audit_mismatches == 0
    for number, dialogue in enumerate(sample):
        for merge in MERGES:  # documents of their own, and prompts, are rendered by all
            found, was_replayed = rendered(replayers[merge], dialogue)
            if was_replayed and merge == MERGES[number % 3]:
                expected = render_dialogue(template, added_tokens(), dialogue, merge)
                assert found == expected, f"{dialogue.origin}, --merge {merge}"
    return figures


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_row_is_replayed_as_it_is_rendered(name):
    figures = {}
    for file in FILES:
        dialogues = dialogues_of(file)
        sample = random.Random(file).sample(dialogues, min(200, len(dialogues)))
        figures[file] = replay_all(compiled(name), dialogues, sample)
    print("", HEADER, *(row.row(name, file) for file, row in figures.items()), sep="\n")
    for file in BENCHMARKS:
        row = figures[file]
        assert row.replayed >= 0.97 * (row.replayed + row.first + row.declined), file
    for file in TOOL_FILES:
        row = figures[file]
        assert row.replayed >= 0.95 * (row.replayed + row.declined), file


@pytest.mark.parametrize("number", range(len(TEMPLATES)), ids=TEMPLATES)
def test_a_tenth_of_a_file_is_replayed_as_it_is_rendered(number):
    """One file for each template, so that every file meets many templates."""
    file = FILES[number % len(FILES)]
    dialogues = random.Random(number).sample(
        dialogues_of(file), min(200, len(dialogues_of(file)) // 10)
    )
    figures = replay_all(compiled(TEMPLATES[number]), dialogues, dialogues[:3])
    print("", HEADER, figures.row(TEMPLATES[number], file), sep="\n")
