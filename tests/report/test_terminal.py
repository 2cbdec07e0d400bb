"""No name, key, role, option or template can control the terminal, or forge a line of mtpack."""

import io
import json
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner

from mtpack.cli import main
from mtpack.report.escaping import format_json
from mtpack.report.terminal import SafeConsole, make_table

HOSTILE = "\x1b[2J\x07\r\x9b31m\x7f\u202e\u2066\u2028[red]\nmtpack: forged\u0085"
"""Controls of terminals (C0 and C1), directions, separators, markup, and a line of its own."""
SHOWN = r"\x1b[2J\x07\x0d\x9b31m\x7f\u202e\u2066\u2028[red]\x0amtpack: forged\x85"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"


def quote(text: str) -> str:
    """Return a text as a Jinja string."""
    return "'" + "".join(f"\\u{ord(character):04x}" for character in text) + "'"


def run(*arguments: str | Path) -> tuple[str, str]:
    """Run a command; return what it writes, after a check that it is safe for a terminal."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    for text in (done.stdout, done.stderr):
        controls = {one for one in text if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl")}
        assert controls <= {"\n"}
        assert "\nmtpack: forged" not in text
    return done.stdout, done.stderr


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def dialogue(**more: object) -> dict[str, object]:
    messages = [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": "yes"}]
    return {"messages": messages, **more}


CALL = {"type": "function", "id": "1", "function": {"name": HOSTILE, "arguments": {HOSTILE: 1}}}
BAD_ROWS = {
    "role": {"messages": [{"role": HOSTILE, "content": "a"}]},
    "key of a message": {"messages": [{"role": "user", "content": "a", HOSTILE: {"a": 1}}]},
    "type of a part": {"messages": [{"role": "user", "content": [{"type": HOSTILE}]}]},
    "tool call": {"messages": [{"role": "assistant", "tool_calls": [CALL, CALL]}]},
    "tool": dialogue(tools=[{"type": "function", "function": {"name": HOSTILE, HOSTILE: 1}}]),
    "variable": dialogue(chat_template_kwargs={HOSTILE: 1, "messages": 1}),
    "keys": {HOSTILE: [1]},
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_names_in_a_bad_row_are_escaped(row, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", dialogue(), row)
    for on_error in ("fail", "skip"):
        run("pack", rows, "-o", tmp_path / "packed", "--on-error", on_error)


def test_the_reason_that_a_template_gives_is_escaped(tmp_path):
    template = tmp_path / "hostile.jinja"
    template.write_text(f"{TEMPLATE}{{{{ raise_exception({quote(HOSTILE)}) }}}}")
    rows = write_rows(tmp_path / "rows.jsonl", dialogue())
    _, errors = run("pack", rows, "--chat-template", template, "-o", tmp_path / "packed")
    assert SHOWN.partition(r"\x0a")[0] in errors


@pytest.mark.parametrize("option", ["--tokenizer", "--seq-len", "--template-arg", "--packing"])
def test_values_of_options_are_escaped(option, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", dialogue())
    _, errors = run("pack", rows, option, f"{HOSTILE}=1", "-o", tmp_path / "packed")
    assert "[2J" in errors


COMMANDS = [
    *([HOSTILE], [f"--{HOSTILE}"], ["pack", f"--{HOSTILE}"]),
    *([command, HOSTILE] for command in ("pack", "inspect", "verify")),
]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_commands_options_and_paths_that_do_not_exist_are_escaped(arguments):
    _, errors = run(*arguments)
    assert "[2J" in errors


def test_names_of_files_and_keys_are_escaped_in_reports(tmp_path):
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    rows = write_rows(folder / f"{HOSTILE}.jsonl", dialogue(**{HOSTILE: 1}))
    said, errors = run("pack", rows, "-o", folder / HOSTILE)
    assert said.count(SHOWN) == 4  # two folders, in the output and in the next command
    assert "[2J" in said.replace(SHOWN, "")  # the key that is never read
    assert run("pack", folder, "-o", folder / HOSTILE)[1].count(SHOWN) == 2  # already complete
    (shard,) = (folder / HOSTILE).glob("*.arrow")
    run("inspect", folder / HOSTILE)
    run("inspect", folder / HOSTILE, "--row", "0")
    _, errors = run("inspect", shard)
    assert errors.count(SHOWN) == 2
    broken = folder / f"broken{HOSTILE}.arrow"
    broken.write_bytes(shard.read_bytes()[:100])
    for command in ("inspect", "verify"):
        assert run(command, broken)[1].count(SHOWN) == 2


def test_json_for_programs_is_safe_and_keeps_every_value(tmp_path):
    value = {HOSTILE: ["é", HOSTILE, "👩‍👩‍👧", 1.5]}
    assert json.loads(format_json(value)) == value
    rows = write_rows(tmp_path / "rows.jsonl", dialogue(**{HOSTILE: 1}))
    said, _ = run("pack", rows, "-o", tmp_path / HOSTILE, "--json")
    assert json.loads(said)["output"] == str(tmp_path / HOSTILE)
    said, _ = run("inspect", tmp_path / HOSTILE, "--json")


def test_a_console_escapes_what_nobody_has_escaped():
    written = io.StringIO()
    console = SafeConsole(file=written, width=200)
    table = make_table("left")
    table.add_row(HOSTILE)
    console.print(table)
    shown = written.getvalue()
    assert not any(unicodedata.category(one) in ("Cc", "Cf") for one in shown.replace("\n", ""))
