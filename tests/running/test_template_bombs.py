"""A template that does too much in one step stops the run: one line names the row, no output."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from mtpack.cli import main
from mtpack.errors import MtpackError
from mtpack.input.splits import RowsInMemory, Split
from mtpack.options import options_from
from mtpack.running.pipeline import load_pipeline
from mtpack.running.runner import local_runner
from mtpack.running.split_task import SplitTask, run_split_task
from mtpack.running.watchdog import ProcessLimits

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


ROWS = [
    json.dumps({"messages": [{"role": "user", "content": question}, ANSWER]})
    for question in ("fine", "boom", "fine")
]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return tmp_path / "hostile.jinja"


def write_bomb(template: Path, bomb: str) -> None:
    """Write a template that does `bomb` for the second row."""
    template.write_text(f"{LOOP}{{% if messages[0].content == 'boom' %}}{bomb}{{% endif %}}")


def stop(template: Path, limits: ProcessLimits) -> str:
    """Tokenize the rows in workers, one split each, and return the line that stops the run."""

    def tasks() -> Iterator[SplitTask]:
        for number, row in enumerate(ROWS):
            piece = RowsInMemory("rows.jsonl", None, [number + 1], [row.encode()])
            split = Split(number, number, 1, (piece,))
            yield SplitTask(split, template.with_name(f"split-{number}"), template.parent)

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
        f"rows.jsonl line 2: rendering with the chat template of {template} takes longer than "
        "0.517 s; use another chat template or tokenizer, or remove the row"
    )


@pytest.mark.parametrize("bomb", LARGE.values(), ids=LARGE)
def test_a_step_that_makes_a_large_value_stops_the_run(template, bomb):
    write_bomb(template, bomb + HANGS)
    line = stop(template, SMALL)  # the limit in it depends on the memory that workers share
    assert line.startswith(
        f"rows.jsonl line 2: rendering with the chat template of {template} needs more than 0."
    )
    assert line.endswith(
        " GiB of memory; use another chat template, remove the row, or run with fewer --workers"
    )


def test_a_template_that_hangs_for_every_row_stops_the_run(template):
    template.write_text(HANGS + LOOP)
    assert stop(template, BRIEF).startswith(
        f"trying the chat template of {template} takes longer than 0.5 s; "
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
