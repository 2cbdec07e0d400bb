"""Replays of real dialogues give the same as rendering, and nearly all dialogues are replayed.

The slow test runs every template on every row, which takes hours. The fast one runs each template
on a seeded tenth of one file. With `-s`, both print a table of how the dialogues were rendered:

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
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.template.tracing.replayer import Replayer
from mtpack.template.turn_probes import TurnProbes
from mtpack.tokenizer.added_tokens import AddedTokens
from mtpack.tokenizer.loading import load_tokenizer
from tests.conftest import shared
from tests.template.test_chat_template import TEMPLATES, compile_named

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
class ReplayCounts:
    """How many dialogues of a file were replayed, or not."""

    replayed: int = 0
    first: int = 0
    """Rendered with Jinja, and replayed the second time: the first dialogues of their shape."""
    rendered: int = 0
    """Rendered with Jinja both times."""
    rejected: int = 0
    """Rejected, as the template refuses them."""

    def format_row(self, template: str, file: str) -> str:
        """Format a line of the table."""
        return f"{template:52} {file:24}" + "".join(f"{count:9}" for count in astuple(self))


HEADER = f"{'template':52} {'file':24}{'replayed':>9}{'first':>9}{'rendered':>9}{'rejected':>9}"


@cache
def read_dialogues(file: str) -> list[Dialogue]:
    path = shared(f"data/{file}")
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        rows = [
            read_dialogue(row, Origin(file, row + 1), line.rstrip(), LINE_LIMIT)
            for row, line in enumerate(lines)
        ]
    return [row for row in rows if isinstance(row, Dialogue)]


@cache
def load_added_tokens() -> AddedTokens:
    return load_tokenizer(str(shared("tokenizers/qwen3"))).added_tokens


def render(replayer: Replayer, dialogue: Dialogue) -> tuple[RenderedDialogue | Reject, bool]:
    """Return the result of a replayer, and whether it was replayed."""
    replayed = replayer.replayed
    found = replayer.render_dialogue(dialogue)
    return found, replayer.replayed > replayed


def replay_all(
    template: ChatTemplate, dialogues: Sequence[Dialogue], sample: Sequence[Dialogue]
) -> ReplayCounts:
    """Replay dialogues; compare the text of each, and the whole result for those of a sample."""
    replayers = {merge: Replayer(template, load_added_tokens(), merge) for merge in MERGES}
    counts = ReplayCounts()
    for dialogue in dialogues:
        found, was_replayed = render(replayers["auto"], dialogue)
        if was_replayed:
            assert isinstance(found, RenderedDialogue)
            mode = TurnProbes(template, load_added_tokens()).choose_mode(dialogue)
            text = template.render(dialogue.messages, dialogue.tools, mode=mode)
            assert found.merged.text == text, str(dialogue.origin)
            counts.replayed += 1
        elif isinstance(found, Reject):
            counts.rejected += 1
        elif render(replayers["auto"], dialogue)[1]:
            counts.first += 1
        else:
            counts.rendered += 1
    for number, dialogue in enumerate(sample):
        for merge in MERGES:  # all replayers render the sample; one of them is compared
            found, was_replayed = render(replayers[merge], dialogue)
            if was_replayed and merge == MERGES[number % 3]:
                expected = render_dialogue(template, load_added_tokens(), dialogue, merge)
                assert found == expected, f"{dialogue.origin}, --merge {merge}"
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_replay_of_every_row_gives_the_same_as_rendering(name):
    counts = {}
    for file in FILES:
        dialogues = read_dialogues(file)
        sample = random.Random(file).sample(dialogues, min(200, len(dialogues)))
        counts[file] = replay_all(compile_named(name), dialogues, sample)
    print(
        "",
        HEADER,
        *(file_counts.format_row(name, file) for file, file_counts in counts.items()),
        sep="\n",
    )
    for file in BENCHMARKS:
        file_counts = counts[file]
        assert file_counts.replayed >= 0.97 * (
            file_counts.replayed + file_counts.first + file_counts.rendered
        ), file
    for file in TOOL_FILES:
        file_counts = counts[file]
        assert file_counts.replayed >= 0.95 * (file_counts.replayed + file_counts.rendered), file


@pytest.mark.oracle
@pytest.mark.parametrize("number", range(len(TEMPLATES)), ids=TEMPLATES)
def test_a_replay_of_a_tenth_of_a_file_gives_the_same_as_rendering(number):
    """One file for each template, so that every file meets many templates."""
    file = FILES[number % len(FILES)]
    dialogues = random.Random(number).sample(
        read_dialogues(file), min(200, len(read_dialogues(file)) // 10)
    )
    counts = replay_all(compile_named(TEMPLATES[number]), dialogues, dialogues[:3])
    print("", HEADER, counts.format_row(TEMPLATES[number], file), sep="\n")
