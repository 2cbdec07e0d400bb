"""CPU time to render each input: with Jinja alone, with replay, and with all recordings there are.

    python -m benchmarks.learning mixed.jsonl short.jsonl --chat-template a.jinja --chat-template b

Every measurement is a new process that starts with nothing known of the template:

    jinja       each dialogue is rendered
    replay      the same as in a run: learning gets a share of the time for rendering
    unlimited   every dialogue that is not known yet is recorded

A ratio is of two figures of the same round. A ratio of more than 1 is what learning cost in vain.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import click
from rich.console import Console

from benchmarks.rendering import read_dialogues
from benchmarks.table import Line, show_table
from mtpack.input.dialogue import Dialogue
from mtpack.options import PackOptions
from mtpack.running.pipeline import Pipeline, load_pipeline
from mtpack.template.render_dialogue import finds_turns
from mtpack.template.tracing.budget import LearningBudget
from mtpack.template.tracing.replayer import Replayer
from mtpack.tokenizer.loading import EMBEDDED

_FORK = get_context("fork")


def _make_way(way: str, pipeline: Pipeline, num_dialogues: int) -> Callable[[Dialogue], object]:
    """Return the function that renders a dialogue in one of the ways."""
    budget = LearningBudget(num_dialogues=num_dialogues) if way == "replay" else None
    added_tokens = pipeline.tokenizer.added_tokens
    replayer = Replayer(pipeline.template, added_tokens, "auto", budget=budget)
    if way == "jinja":
        return replayer.render_without_replay
    return replayer.render_dialogue


def measure(way: str, options: PackOptions, chat_template: str | None, file: str) -> float:
    """Return the CPU seconds to render all dialogues of a file, in a process of its own."""
    results = _FORK.SimpleQueue()

    def run() -> None:
        pipeline = load_pipeline(replace(options, chat_template=chat_template))
        dialogues = read_dialogues((file,), pipeline)
        finds_turns(pipeline.template, pipeline.tokenizer.added_tokens)
        render = _make_way(way, pipeline, len(dialogues))
        started = time.process_time()
        for dialogue in dialogues:
            render(dialogue)
        results.put(time.process_time() - started)

    process = _FORK.Process(target=run)
    process.start()
    process.join()
    if process.exitcode:
        raise click.ClickException(f"{file}: the process that renders it failed")
    return float(results.get())


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="DATA...")
@click.option("--tokenizer", help="Default: the one of mtpack.")
@click.option("--chat-template", "chat_templates", multiple=True, help="Repeatable.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--unlimited/--no-unlimited", default=True, help="Whether to measure that way too.")
def main(
    inputs: tuple[str, ...],
    tokenizer: str | None,
    chat_templates: tuple[str, ...],
    rounds: int,
    unlimited: bool,
) -> None:
    """Print a line for each template, file of DATA and way."""
    options = PackOptions(tokenizer=tokenizer)
    figures: defaultdict[str, list[float]] = defaultdict(list)
    lines = []
    ways = ("jinja", "replay", "unlimited")[: 3 if unlimited else 2]
    for template in chat_templates or (None,):
        for file in inputs:
            name = (
                f"{Path(template).stem if template else tokenizer or EMBEDDED}, {Path(file).stem}"
            )
            for _ in range(rounds):
                for way in ways:
                    figures[f"{name}: {way}"].append(measure(way, options, template, file))
            lines += [
                Line(f"{name}: {way}", f"{name}: {way}", "s", f"{name}: jinja", "jinja")
                for way in ways[1:]
            ]
    show_table(figures, Console(width=200, highlight=False), lines)


if __name__ == "__main__":
    main()
