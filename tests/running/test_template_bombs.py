"""A template that does too much in one step stops the run: one line names the row, no output."""

import json
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import mtpack
from mtpack.cli import main
from mtpack.errors import MtpackError
from mtpack.input.splits import RowsInMemory, Split
from mtpack.option_arguments import options_from
from mtpack.running.pipeline import load_pipeline
from mtpack.running.runner import local_runner
from mtpack.running.split_task import SplitContext, SplitTask, run_split_task
from mtpack.running.watchdog import ProcessLimits, compute_process_limits
from tests.conftest import shared

ONE_RENDER = ProcessLimits(seconds=1e6, render_seconds=0.5, render_memory=2**27)
BRIEF = ProcessLimits(seconds=0.5)
SMALL = ProcessLimits(seconds=1e6, memory=2**28)

ANSWER = {"role": "assistant", "content": "otter"}
LOOP = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
HANGS = "{% set x = 9 ** (9 ** 9) %}"

LONG = {
    "a power": HANGS,
    "a list of the same list, again and again": (
        "{% set ns = namespace(x=[1], y=[1]) %}{% for _ in range(60) %}"
        "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}"
    ),
}
LARGE = {
    "repetition": "{% set x = 'a' * 600000000 %}",
    "doubling": (
        "{% set ns = namespace(x='a') %}{% for _ in range(29) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}"
    ),
}

# In one render: time in a single step of C code and in steps of Python code, and memory.
SLOW = {
    "a power": HANGS,
    "an encoder that is written in Python": "{{ ('äbc' * 1000000).encode('punycode') }}",
    "many steps": (
        "{% set t, p = 'a' * 9000000, 'a' * 4000000 ~ 'b' %}"
        "{% for i in range(99999) %}{% if t.count(p) %}{% endif %}{% endfor %}"
    ),
}
BIG = {
    "a text": "{% set x = 'a' * 10 ** 10 %}",
    "a list": "{% set x = [1] * 10 ** 9 %}",
    "pieces of a text": "{% set x = ('a ' * 10 ** 8).split() %}",
    "lines of a text": "{% set x = ('a ' * 10 ** 7)|wordwrap(1) %}",
}


ROWS = [
    json.dumps({"messages": [{"role": "user", "content": question}, ANSWER]})
    for question in ("fine", "boom", "fine")
]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return tmp_path / "hostile.jinja"


def read_children_seconds() -> float:
    """Return the CPU time of all worker processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_bomb(template: Path, bomb: str) -> None:
    """Write a template that does `bomb` for the second row."""
    template.write_text(f"{LOOP}{{% if messages[0].content == 'boom' %}}{bomb}{{% endif %}}")


def stop(template: Path, limits: ProcessLimits) -> str:
    """Tokenize the rows in workers, one split each, and return the line that stops the run."""

    def tasks() -> Iterator[SplitTask]:
        for number, row in enumerate(ROWS):
            piece = RowsInMemory("rows.jsonl", None, [number + 1], [row.encode()])
            context = SplitContext(template.parent, template.parent)
            yield SplitTask(Split(f"{number}.0", (piece,)), context)

    pipeline = load_pipeline(options_from({"workers": 2, "chat_template": str(template)}))
    with pytest.raises(MtpackError) as stopped, local_runner(pipeline, 1, limits) as runner:
        list(runner.run(run_split_task, tasks()))
    assert stopped.value.exit_status == 1
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


@pytest.mark.parametrize("bomb", LONG.values(), ids=LONG)
def test_a_step_that_takes_too_long_stops_the_run(template, bomb):
    write_bomb(template, bomb)
    assert stop(template, BRIEF) == (
        f"rows.jsonl line 2: rendering with the chat template of {template} takes more than "
        "0.517 s of CPU time; use another chat template or tokenizer, or remove the row"
    )


@pytest.mark.parametrize("bomb", LARGE.values(), ids=LARGE)
def test_a_step_that_makes_a_large_value_stops_the_run(template, bomb):
    write_bomb(template, bomb + HANGS)
    line = stop(template, SMALL)  # the limit in it depends on the memory that workers share
    assert line.startswith(
        f"rows.jsonl line 2: rendering with the chat template of {template} needs more than "
    )
    assert line.endswith(
        " GiB of memory; use another chat template, remove the row, or run with fewer --workers"
    )


@pytest.mark.parametrize("bomb", SLOW.values(), ids=SLOW)
def test_a_single_render_that_takes_too_long_stops_the_run(template, bomb):
    write_bomb(template, bomb)
    assert stop(template, ONE_RENDER) == (
        f"rows.jsonl line 2: rendering with the chat template of {template} takes more than 0.5 s "
        "of CPU time in one render; use another chat template, remove the row, or allow more with "
        "--render-seconds"
    )


@pytest.mark.parametrize("bomb", BIG.values(), ids=BIG)
def test_a_single_render_that_needs_too_much_memory_stops_the_run(template, bomb):
    write_bomb(template, bomb + HANGS)
    assert stop(template, replace(ONE_RENDER, render_seconds=1e6)) == (
        f"rows.jsonl line 2: rendering with the chat template of {template} needs more than "
        "128 MiB of memory in one render; use another chat template, remove the row, or allow more "
        "with --render-memory"
    )


def test_a_probe_is_a_render_too(template):
    template.write_text(HANGS + LOOP)
    assert stop(template, ONE_RENDER).startswith(
        f"trying the chat template of {template} takes more than 0.5 s of CPU time in one render; "
    )


def test_renders_that_are_long_only_together_pass(template, tmp_path):
    """Each of the renders of this row takes milliseconds; together they exceed the limit."""
    write_bomb(template, "{% for i in range(9999) %}{{ i is odd }}{% endfor %}")
    turns = [{"role": "user", "content": "boom"}, ANSWER] * 12
    piece = RowsInMemory("rows.jsonl", None, [1], [json.dumps({"messages": turns}).encode()])
    task = SplitTask(Split("0.0", (piece,)), SplitContext(tmp_path, tmp_path))
    options = options_from({"workers": 1, "merge": "never", "chat_template": str(template)})
    pipeline = load_pipeline(options)
    limits = replace(ONE_RENDER, render_seconds=0.25)
    started = read_children_seconds()
    with local_runner(pipeline, 1, limits) as runner:
        (record,) = runner.run(run_split_task, [task])
    assert record.counts.rows_packed == 1
    assert read_children_seconds() - started > 0.5


def test_a_long_dialogue_with_tools_passes_the_limits_of_renders(tmp_path, request):
    """Qwen3's template goes through all earlier messages for each message."""
    if not request.config.getoption("--full"):
        pytest.skip("takes more than a minute; runs with --full")
    call = {"type": "function", "function": {"name": "find", "arguments": {"word": "otter"}}}
    messages = [
        message
        for number in range(300)
        for message in (
            {"role": "user", "content": f"Question {number}: what is an otter?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "a mammal " * 20},
            {"role": "assistant", "content": "An otter is a mammal. " * 5},
        )
    ]
    tool = {"name": "find", "description": "Find a word.", "parameters": {"type": "object"}}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": messages, "tools": [tool]}))
    report = mtpack.pack(
        rows,
        output=tmp_path / "packed",
        tokenizer=shared("tokenizers/qwen3"),
        chat_template=shared("templates/llama.cpp/Qwen-Qwen3-0.6B.jinja"),
        seq_len=2**17,
        workers=1,
    )
    assert (report.tally.rows_packed, report.tally.turns_packed) == (1, 600)


def test_limits_of_renders_make_no_difference_to_the_output():
    other = options_from({"render_seconds": 3600, "render_memory": "8GiB"})
    assert other.output_options() == options_from({}).output_options()
    limits = compute_process_limits(1, other)
    assert (limits.render_seconds, limits.render_memory) == (3600, 2**33)


def test_a_template_that_hangs_for_every_row_stops_the_run(template):
    template.write_text(HANGS + LOOP)
    assert stop(template, BRIEF).startswith(
        f"trying the chat template of {template} takes more than 0.5 s of CPU time; "
    )


def test_a_run_that_a_template_stops_leaves_nothing(template, tmp_path):
    write_bomb(template, "{{ 'a' * 10 ** 18 }}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{row}\n" for row in ROWS))
    output = tmp_path / "packed"
    for on_error in ("fail", "skip"):
        command = ["pack", str(rows), "--chat-template", str(template), "-o", str(output)]
        done = CliRunner().invoke(main, [*command, "--quiet", "--on-error", on_error])
        assert done.exit_code == 1
        assert done.stderr == (
            f"mtpack: {rows} line 2: rendering with the chat template of {template} needs more "
            "memory than is available; use another chat template, remove the row, "
            "or run with fewer --workers\n"
        )
        assert not output.exists()
