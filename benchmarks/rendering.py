"""Time per dialogue to get its text, the spans of its turns, and whether merging them is exact.

    python benchmarks/rendering.py data/*.jsonl.gz --tokenizer path/to/model

Prints medians over all dialogues of the input, each measured with every way. The ways alternate
after each block of dialogues; within a block, one dialogue follows another, as in a run:

    f-string   a loop written by hand for ChatML: text and spans, no proof
    jinja2     the chat template renders the whole dialogue once: text only
    replay     text, spans and proof, by replay (`mtpack.template.tracing`)
    render     the same by rendering: the dialogue, and for every turn its prompt and own document

Recordings are made in a first pass that is not counted; its figures are below the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import click

from mtpack.input.dialogue import Dialogue
from mtpack.input.files import describe_input, find_inputs
from mtpack.input.reading import read_splits
from mtpack.options import PackOptions
from mtpack.running.pipeline import Pipeline, load_pipeline
from mtpack.running.row_reader import RowReader
from mtpack.template.tracing.replayer import Replayer

_BLOCK = 100  # dialogues


@click.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option("--tokenizer")
@click.option("--chat-template")
@click.option("--merge", type=click.Choice(["auto", "always", "never"]), default="auto")
@click.option("--dialogues", "limit", type=int, default=2000)
def main(
    inputs: tuple[str, ...],
    tokenizer: str | None,
    chat_template: str | None,
    merge: str,
    limit: int,
) -> None:
    """Print a line for each way."""
    pipeline = load_pipeline(PackOptions(tokenizer=tokenizer, chat_template=chat_template))
    template = pipeline.template
    dialogues = read_dialogues(inputs, pipeline)[:limit]
    replayer = Replayer(template, pipeline.tokenizer.added_tokens, merge)
    started = time.perf_counter()
    for dialogue in dialogues:
        replayer.render_dialogue(dialogue)
    first_pass = time.perf_counter() - started
    rendered = len(dialogues) - replayer.replayed
    ways: dict[str, Callable[[Dialogue], object]] = {
        "f-string": write_chatml,
        "jinja2": lambda dialogue: template.render(dialogue.messages, dialogue.tools),
        "replay": replayer.render_dialogue,
        "render": replayer.render_without_replay,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for first in range(0, len(dialogues), _BLOCK):
        for name, way in ways.items():
            for dialogue in dialogues[first : first + _BLOCK]:
                started = time.perf_counter()
                way(dialogue)
                seconds[name].append(time.perf_counter() - started)
    floor = median(seconds["f-string"])
    print(f"{'':10} {'median us':>10} {'x f-string':>11}")
    for name, taken in seconds.items():
        print(f"{name:10} {median(taken) * 1e6:>10.1f} {median(taken) / floor:>11.2f}")
    print(
        f"{len(dialogues):,} dialogues; first pass: {first_pass / len(dialogues) * 1e6:.0f} us "
        f"each, {rendered:,} rendered and recorded"
    )


def read_dialogues(inputs: tuple[str, ...], pipeline: Pipeline) -> list[Dialogue]:
    files = [describe_input(name, name) for name in find_inputs(inputs)]
    rows = (row for split in read_splits(files) for row in RowReader(split, pipeline).read_all())
    return [row for row in rows if isinstance(row, Dialogue)]


def write_chatml(dialogue: Dialogue) -> tuple[str, list[tuple[int, int]]]:
    """Write the text of a ChatML template and the spans of turns, for messages of text."""
    parts, spans, position = [], [], 0
    texts = [message.get("content", "") for message in dialogue.messages]
    for role, content in zip(dialogue.roles, texts, strict=True):
        header = f"<|im_start|>{role}\n"
        body = f"{content}<|im_end|>"
        parts.append(f"{header}{body}\n")
        if role == "assistant":
            start = position + len(header)
            spans.append((start, start + len(body)))
        position += len(header) + len(body) + 1
    return "".join(parts), spans


if __name__ == "__main__":
    main()
